"""Weighted means of copies."""

from __future__ import annotations

import pytest
import torch

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.tiers.edge.averaging import Copies, WeightedMean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_mean_is_weighted_and_equal_copies_come_back_unchanged(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    copies = [torch.randn(3, 5, generator=generator).to(dtype) for _ in range(4)]
    mean, same = WeightedMean(), WeightedMean()
    for weight, copy in zip((3, 1, 7, 5), copies, strict=True):
        mean.add(weight, copy)
        same.add(weight, copies[0])
    expected = sum(w * copy.double() for w, copy in zip((3, 1, 7, 5), copies, strict=True)) / 16
    assert torch.equal(mean.value(), expected.to(dtype))
    assert torch.equal(same.value(), copies[0])
    assert same.count == 4


def test_copies_of_no_weight_are_left_out_and_one_is_itself() -> None:
    mean, copy = WeightedMean(), torch.randn(3)
    mean.add(0, torch.full((3,), float("nan")))
    with pytest.raises(ConfigError, match="at least one"):
        mean.value()
    mean.add(2, copy)
    assert torch.equal(mean.value(), copy)
    with pytest.raises(ConfigError, match="`weight` is -1"):
        mean.add(-1, copy)


def test_whole_numbers_and_steps_are_the_largest() -> None:
    copies = Copies()
    for weight, step in ((1, 5.0), (3, 2.0)):
        copies.add(
            weight,
            {"w": torch.full((2,), step), "num_batches": torch.tensor(int(step))},
            {"w": {"step": torch.tensor(step), "exp_avg": torch.full((2,), step)}},
        )
    assert torch.equal(copies.weights()["w"], torch.full((2,), 2.75))
    assert int(copies.weights()["num_batches"]) == 5
    moments = copies.moments()["w"]
    assert float(moments["step"]) == 5.0
    assert torch.equal(moments["exp_avg"], torch.full((2,), 2.75))
    assert copies.num_copies("w") == 2


def test_a_copy_without_moments_counts_as_zero() -> None:
    copies = Copies()
    copies.add(1, {"w": torch.ones(2)}, {"w": {"step": torch.tensor(4.0), "exp_avg": torch.ones(2)}})
    copies.add(3, {"w": torch.ones(2)}, {})
    moments = copies.moments()["w"]
    assert torch.equal(moments["exp_avg"], torch.full((2,), 0.25))
    assert float(moments["step"]) == 4.0
