"""The ranges of DistillationLoss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", x) for x in (0.0, -1.0, INF, NAN)),
        *(("kd_ratio", x) for x in (-0.01, 1.01, NAN)),
        *(("beta", x) for x in (-0.01, 1.01, NAN)),
        *(("chunk_size", x) for x in (0, -5)),
        ("teacher_vocab", "pad"),
    ],
)
def test_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillationLoss(**{name: value})
    assert f"`{name}` is {value!r}; expected" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("kd_ratio", 0), ("kd_ratio", 1), ("beta", 0), ("beta", 1)])
def test_end_points_are_in_range(name: str, value: int) -> None:
    assert getattr(DistillationLoss(**{name: value}), name) == value


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistillationLoss().beta = 1.0  # type: ignore[misc]
