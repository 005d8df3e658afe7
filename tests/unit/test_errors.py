"""The error tree: one root, documented where it is defined, and built-in bases that callers rely on."""

from __future__ import annotations

import pytest

from flwr_splitkd import errors
from flwr_splitkd.errors import SplitKDError


def _defined() -> list[type[Exception]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def test_every_error_has_the_one_root_and_is_exported() -> None:
    assert all(issubclass(error, SplitKDError) for error in _defined())
    assert sorted(error.__name__ for error in _defined()) == sorted(errors.__all__)


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("├──", " ").replace("└──", " ").replace("│", " ").split()
        if words and words[0].endswith("Error"):
            drawn.append((line.index(words[0]), words[0]))
    assert {name for _, name in drawn} == set(errors.__all__)
    above: list[tuple[int, str]] = []
    for column, name in drawn:
        above = [entry for entry in above if entry[0] < column]
        if above:
            assert issubclass(getattr(errors, name), getattr(errors, above[-1][1])), name
        above.append((column, name))


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ConfigError", ValueError),
        ("CutError", ValueError),
        ("DataError", ValueError),
        ("NonFiniteError", ArithmeticError),
        ("NoDeviceError", RuntimeError),
        ("StoreError", OSError),
        ("ClockError", OSError),
        ("PeerLostError", ConnectionError),
    ],
)
def test_a_caller_may_catch_the_builtin_kind(name: str, base: type[Exception]) -> None:
    error = getattr(errors, name)("the message")
    assert isinstance(error, base)
    assert str(error) == "the message"
