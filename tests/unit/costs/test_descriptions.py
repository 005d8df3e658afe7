"""What readers of descriptions share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.costs.descriptions import as_object, check_keys, located, read_json
from flwr_splitkd.errors import ConfigError, DataError


def test_a_file_of_json(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text('{"a": [1, 2.5, null]}')
    assert read_json(file, "Some file") == {"a": [1, 2.5, None]}
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"Some file cannot be read: .*\. Expected a file of JSON"):
        read_json(file, "Some file")


def test_objects_and_their_keys() -> None:
    value = {"a": 1}
    assert as_object(value, "It") is value
    with pytest.raises(ConfigError, match=re.escape("It is [1]; expected an object.")):
        as_object([1], "It")
    check_keys("It", "", value, ("a", "b"))
    with pytest.raises(ConfigError, match=re.escape("It has `a`; expected keys among b, c. Leave it out.")):
        check_keys("It", "", value, ("b", "c"))
    with pytest.raises(ConfigError, match=re.escape("It has `x.y.a`; expected keys among b.")):
        check_keys("It", "x.y", value, ("b",))


@pytest.mark.parametrize("kind", [ConfigError, DataError, TypeError, ValueError, OverflowError])
def test_errors_say_where(kind: type[Exception]) -> None:
    def fail() -> Any:
        raise kind("words")

    with pytest.raises(ConfigError, match="^Here.*words") as raised:
        located("Here", fail)
    assert isinstance(raised.value.__cause__, kind)


def test_other_errors_and_values_pass() -> None:
    assert located("Here", lambda: 5) == 5
    fail: Callable[[], int] = lambda: 1 // 0  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        located("Here", fail)
