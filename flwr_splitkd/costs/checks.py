"""Range checks of settings: one wording for every field."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from numbers import Real
from typing import Any

from flwr_splitkd.errors import ConfigError

__all__ = ["check_choice", "check_number", "gib_at_least"]


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    unit: str = "",
    remedy: str = "",
) -> None:
    """Check that a setting is a finite number within its bounds.

    Parameters
    ----------
    name
        Of the setting, for the message.
    value
        What was given.
    minimum, maximum
        Inclusive bounds.
    above
        Exclusive lower bound.
    unit, remedy
        For the message; the remedy is a sentence.

    Raises
    ------
    ConfigError
        If it is not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    # An integer may be larger than any float, which `math.isfinite` does not take.
    if is_number and abs(value) <= sys.float_info.max and minimum <= value <= maximum and value > above:
        return
    bounds = [
        text
        for text, bound in (
            (f"more than {above:g}", above),
            (f"at least {minimum:g}", minimum),
            (f"at most {maximum:g}", maximum),
        )
        if math.isfinite(bound)
    ]
    expected = "a finite number" + (" of " + " and ".join(bounds) if bounds else "") + (f" {unit}" if unit else "")
    raise ConfigError(f"`{name}` is {value!r}; expected {expected}." + (f" {remedy}" if remedy else ""))


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Check that a setting is one of a few words.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"`{name}` is {value!r}; expected one of {', '.join(repr(choice) for choice in choices)}.")


def gib_at_least(size_bytes: float) -> str:
    """Write a size in GiB with four digits, rounded up: what a remedy asks for has to be enough."""
    gib = size_bytes / (1 << 30)
    if gib <= 0:
        return "0 GiB"
    unit = 10.0 ** (math.floor(math.log10(gib)) - 3)
    return f"{math.ceil(gib / unit * (1 - 1e-12)) * unit:.4g} GiB"
