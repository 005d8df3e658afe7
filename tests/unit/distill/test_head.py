"""Heads and their transforms."""

from __future__ import annotations

import pytest
import torch

from flwr_splitkd.distill import Head, LogitTransform
from flwr_splitkd.errors import ConfigError


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_scale_out_of_range(scale: float) -> None:
    with pytest.raises(ConfigError, match=f"`scale` is {scale}"):
        LogitTransform(scale=scale)


@pytest.mark.parametrize("softcap", [0.0, -30.0, float("nan"), float("inf")])
def test_softcap_out_of_range(softcap: float) -> None:
    with pytest.raises(ConfigError, match=f"`softcap` is {softcap}"):
        LogitTransform(softcap=softcap)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int8)])
def test_weight_that_is_no_matrix_of_floats(weight: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=str(weight.dtype)):
        Head(weight=weight)


def test_bias_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"\(4,\).*expected \(3,\)"):
        Head(weight=torch.zeros(3, 2), bias=torch.zeros(4))
    with pytest.raises(ConfigError, match=r"bfloat16.*expected.*float32"):
        Head(weight=torch.zeros(3, 2), bias=torch.zeros(3, dtype=torch.bfloat16))


def test_first_shares_memory() -> None:
    head = Head(weight=torch.randn(5, 2), bias=torch.randn(5), transform=LogitTransform(scale=2.0))
    first = head.first(3)
    assert first.vocab_size == 3
    assert first.weight.data_ptr() == head.weight.data_ptr()
    assert first.bias is not None
    assert first.bias.shape == (3,)
    assert first.transform == head.transform
