"""What a strategy was made with, as data for ``config.json``."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

__all__ = ["describe", "versions"]

_PACKAGES = ("flwr_splitkd", "flwr", "torch", "transformers", "peft", "grpcio", "numpy")


def describe(value: Any) -> Any:
    """A setting as JSON can hold it: functions by name, objects by class and public attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: describe(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):  # whose order is another one in each process
        return sorted((describe(item) for item in value), key=str)
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    if isinstance(value, partial):  # whose own words have an address in them
        return {"function": describe(value.func), **describe(value.keywords), "arguments": describe(value.args)}
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if "__repr__" in vars(type(value)):
        return repr(value)
    public = {name: describe(item) for name, item in vars(value).items() if not name.startswith("_")}
    return {"class": type(value).__name__, **public}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
