from __future__ import annotations

import pytest
import torch
from torch import nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.split import clip_coefficient, grad_norms, scale_gradients


def parameters(scale: float) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    named = {f"p{i}": nn.Parameter(torch.zeros(7, i + 1)) for i in range(9)}
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    named["p4"].grad = None
    return named


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_equals_torch_on_the_whole_model(scale: float) -> None:
    whole, halves = parameters(scale), parameters(scale)
    total = torch.nn.utils.clip_grad_norm_(whole.values(), 0.7)
    device = grad_norms(list(halves.items())[:5])
    edge = grad_norms(list(halves.items())[5:])
    factor, got = clip_coefficient({**edge, **device}, list(halves), 0.7)
    assert torch.equal(got, total)
    scale_gradients(halves.values(), factor)
    for name, parameter in whole.items():
        expected, clipped = parameter.grad, halves[name].grad
        assert (expected is None and clipped is None) or torch.equal(expected, clipped)


def test_no_gradient_at_all() -> None:
    factor, total = clip_coefficient({}, ["p"], 1.0)
    assert float(factor) == 1.0
    assert float(total) == 0.0


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_not_positive(max_norm: float) -> None:
    with pytest.raises(ConfigError, match=f"`max_norm` is {max_norm}; expected a number > 0"):
        clip_coefficient({}, [], max_norm)


def test_a_norm_without_a_place_in_the_order() -> None:
    with pytest.raises(ConfigError, match=r"`norms` has 'lm_head\.weight'"):
        clip_coefficient({"lm_head.weight": torch.tensor(1.0)}, ["p"], 1.0)
