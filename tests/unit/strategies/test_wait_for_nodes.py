"""No device at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flwr_splitkd.errors import NoDeviceError
from flwr_splitkd.strategies import rounds


class _Grid:
    def __init__(self, *answers: list[int]) -> None:
        self._answers = list(answers)

    def get_node_ids(self) -> list[int]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: now_s[0], sleep=sleep))


def _wait(grid: Any, minimum: int) -> list[int]:
    return rounds.wait_for_nodes(grid, minimum, 30.0)


def test_nobody() -> None:
    message = "0 nodes are connected after 30 s; expected at least 1.*`node_timeout_s`.*`min_available_nodes`"
    with pytest.raises(NoDeviceError, match=message):
        _wait(_Grid([]), 1)


def test_too_few() -> None:
    with pytest.raises(NoDeviceError, match="2 nodes are connected after 30 s; expected at least 3"):
        _wait(_Grid([5, 4]), 3)


def test_enough_in_the_end_and_sorted() -> None:
    assert _wait(_Grid([], [9], [9, 3]), 2) == [3, 9]
    assert _wait(_Grid([7]), 0) == [7]
