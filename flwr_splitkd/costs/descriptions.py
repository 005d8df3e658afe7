"""What readers of descriptions share: files of JSON, and errors that say where in the description something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flwr_splitkd.errors import ConfigError, DataError

__all__ = ["as_object", "check_keys", "located", "read_json"]

_T = TypeVar("_T")


def read_json(file: Path, what: str) -> Any:
    """Read a file of JSON.

    Parameters
    ----------
    file
        Its path.
    what
        What it is, for the message.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be read: {error}. Expected a file of JSON.") from error


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """Check that a value is an object of JSON, and return it.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} is {value!r}; expected an object.")
    return value


def check_keys(what: str, key: str, value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Check that an object has no keys but these.

    Parameters
    ----------
    what
        The whole description, for the message.
    key
        Where in it the object is; empty for the description itself.
    value
        The object.
    names
        Its keys.

    Raises
    ------
    ConfigError
        If it has another one.
    """
    for name in value:
        if name not in names:
            path = f"{key}.{name}" if key else name
            raise ConfigError(f"{what} has `{path}`; expected keys among {', '.join(names)}. Leave it out.")


def located(what: str, make: Callable[[], _T]) -> _T:
    """Call, and say in the error's message where in the description something is wrong.

    Raises
    ------
    ConfigError
        If the call raises that or a `DataError`, or meets a value of another type than it expects.
    """
    try:
        return make()
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{what}: {error}") from error
    except (TypeError, ValueError, OverflowError) as error:  # a field of another type than its reader expects
        raise ConfigError(f"{what} holds what is no number or name: {error}.") from error
