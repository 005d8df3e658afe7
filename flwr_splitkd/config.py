"""Run configs: flat dotted or dashed keys to a validated dataclass, with every mistake reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from flwr_splitkd.errors import ConfigError

__all__ = ["parse_run_config", "setting"]

_Settings = TypeVar("_Settings")
_Value = bool | int | float | str


def setting(
    default: _Value,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection[str] | None = None,
    above: float | None = None,
) -> Any:
    """Declare a field of a settings dataclass with its bounds.

    Parameters
    ----------
    default
        Value when the key is absent.
    minimum, maximum
        Inclusive bounds of a number.
    above
        Exclusive lower bound of a number.
    choices
        The strings that are allowed.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "choices": choices, "above": above}
    return dataclasses.field(default=default, metadata=bounds)


def parse_run_config(
    settings: type[_Settings], run_config: Mapping[str, Any], *, where: str = "The run config", what: str = "this app"
) -> _Settings:
    """Build a settings dataclass from Flower's run config.

    A field ``learning_rate`` is the key ``learning-rate``. Every key must be known, of the field's type (an
    integer will do for a float) and within the field's bounds.

    Parameters
    ----------
    settings
        A dataclass whose fields are bool, int, float or str.
    run_config
        ``context.run_config``; it is not changed.
    where, what
        Words for errors: where the keys stand, and whose keys they are.

    Raises
    ------
    ConfigError
        With one line for each key that is wrong.
    """
    hints = typing.get_type_hints(settings)
    fields = {_key(field.name): field for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    errors: list[str] = []
    values: dict[str, Any] = {}
    for key, value in run_config.items():
        field = fields.get(key)
        if field is None:
            errors.append(_unknown(key, fields, what))
            continue
        problem = _problem(value, hints[field.name], field.metadata)
        if problem:
            errors.append(f"`{key}` is {value!r}; expected {problem}.")
        else:
            values[field.name] = float(value) if hints[field.name] is float else value
    if errors:
        raise ConfigError(f"{where} has mistakes:\n  " + "\n  ".join(errors))
    return settings(**values)


def _key(name: str) -> str:
    return name.replace("_", "-")


def _unknown(key: str, known: Collection[str], what: str) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"expected one of {', '.join(sorted(known))}."
    return f"`{key}` is not a key of {what}; {hint}"


def _problem(value: Any, kind: Any, bounds: Mapping[str, Any]) -> str:
    """What was expected, or an empty string if the value is fine."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if not any(_is_a(value, one) for one in kinds):
        return " or ".join(one.__name__ for one in kinds)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    minimum, maximum, above = bounds.get("minimum"), bounds.get("maximum"), bounds.get("above")
    if minimum is not None and value < minimum:
        return f"at least {minimum}" + (f" and at most {maximum}" if maximum is not None else "")
    if above is not None and value <= above:
        return f"more than {above}"
    if maximum is not None and value > maximum:
        return f"at most {maximum}"
    choices = bounds.get("choices")
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    return ""


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
