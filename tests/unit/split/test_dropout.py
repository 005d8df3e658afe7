from __future__ import annotations

import torch
from torch import Tensor, nn

from flwr_splitkd.split import EdgeHalf, find_layout, seed_dropout


def network() -> nn.Sequential:
    return nn.Sequential(*(nn.Dropout(0.5) for _ in range(4))).train()


def run(model: nn.Module, seed: int, step: int, microbatch: int) -> Tensor:
    with seed_dropout(model, find_layout(model, ""), seed) as dropout:
        dropout.at(step, microbatch)
        return model(torch.ones(64))


def test_same_place_same_masks_whatever_the_generator_did() -> None:
    first = run(network(), 1, 2, 3)
    torch.manual_seed(99)
    assert torch.equal(first, run(network(), 1, 2, 3))


def test_seed_step_and_microbatch_all_matter() -> None:
    runs = [run(network(), *place) for place in ((1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 23, 0))]
    assert len({tuple(r.tolist()) for r in runs}) == len(runs)


def test_layers_have_different_masks() -> None:
    """With one mask for all, survivors of one layer would survive all four: about half instead of a "
    "sixteenth."""
    assert int((run(network(), 1, 2, 3) != 0).sum()) < 16


def test_the_callers_generator_is_given_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(network(), 1, 2, 3)
    assert torch.equal(torch.rand(3), expected)


def test_hooks_are_gone_afterwards() -> None:
    model = network()
    run(model, 1, 2, 3)
    assert not model._forward_pre_hooks
    assert not any(block._forward_hooks for block in model)


def test_stubs_count_as_blocks() -> None:
    model = network()
    layout = find_layout(model, "")
    with seed_dropout(model, layout, 1) as dropout:
        dropout.at(2, 3)
        hidden = model[1](model[0](torch.ones(64)))  # around the model: unseeded, only the shape matters
        dropout.at(2, 3)
        model(hidden)
    with EdgeHalf(model, 3, layout) as edge, seed_dropout(model, layout, 1) as dropout:
        dropout.at(2, 3)
        shape = {"data_shape": torch.tensor([64]), "data_zero": torch.zeros(())}
        last = edge(torch.ones(64), shape) != 0
    whole = run(model, 1, 2, 3) != 0
    assert torch.equal(whole & last, whole)  # what survives all four layers survives the last one
    assert int(last.sum()) > int(whole.sum())
