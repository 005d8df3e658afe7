from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flwr_splitkd.errors import CutError, TensorError
from flwr_splitkd.split import DeviceHalf, EdgeHalf, find_layout, load_unit_state, unit_state


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3)))


def test_a_unit_moves_with_its_buffers() -> None:
    source, target = network(), network()
    layout = find_layout(source, "")
    source(torch.randn(8, 4))
    state = unit_state(source, layout, "blocks.1")
    assert {"1.1.running_mean", "1.1.num_batches_tracked", "1.0.weight"} <= set(state)
    untouched = copy.deepcopy(target.state_dict())
    load_unit_state(target, state)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name] if name in state else untouched[name])


def test_an_unknown_unit() -> None:
    model = network()
    with pytest.raises(CutError, match=r"`unit` is 'blocks\.3'; expected .*'blocks\.2'"):
        unit_state(model, find_layout(model, ""), "blocks.3")


def test_a_unit_that_the_other_half_holds() -> None:
    model = network()
    layout = find_layout(model, "")
    with pytest.raises(CutError, match=r"`unit` is 'blocks\.2', which the other half holds"):
        unit_state(DeviceHalf(copy.deepcopy(model), 1, layout).model, layout, "blocks.2")
    with EdgeHalf(model, 1, layout), pytest.raises(CutError, match=r"'blocks\.0'.*restore\(\)"):
        unit_state(model, layout, "blocks.0")


def test_a_tensor_that_does_not_fit_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    good = torch.zeros(4, 4)
    for name, bad, message in (
        ("0.0.weight", torch.zeros(4, 5), r"`0\.0\.weight` has shape \(4, 5\); expected \(4, 4\)"),
        (
            "0.0.weight",
            torch.zeros(4, 4).half(),
            r"`0\.0\.weight` is torch\.float16; expected torch\.float32",
        ),
        ("7.weight", torch.zeros(1), r"`7\.weight` is not held by Sequential"),
    ):
        with pytest.raises(TensorError, match=message):
            load_unit_state(model, {"1.0.weight": good, name: bad})
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_skeleton_has_no_memory_to_load_into() -> None:
    model = network().to("meta")
    with pytest.raises(TensorError, match=r"`0\.0\.bias` is still on the meta device"):
        load_unit_state(model, {"0.0.bias": torch.zeros(4)})
