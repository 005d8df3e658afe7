"""Training in two halves with clipping and a cut that changes on the way equals unsplit training, bit for "
"bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.errors import TensorError
from flwr_splitkd.split import (
    DeviceHalf,
    EdgeHalf,
    clip_coefficient,
    export_optimizer_state,
    find_layout,
    grad_norms,
    import_optimizer_state,
    load_unit_state,
    scale_gradients,
    unit_state,
)

CUTS = (2, 2, 1, 1, 3, 3)
MAX_NORM = 0.05


def student() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, vocab_size=96,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def batch(step: int) -> Tensor:
    return torch.randint(0, 96, (2, 8), generator=torch.Generator().manual_seed(step))


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def adamw(parameters: list[torch.nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=1e-2, weight_decay=0.1)


def sgd(parameters: list[torch.nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=1e-1, momentum=0.9)


@pytest.mark.parametrize("make", [adamw, sgd])
def test_six_steps_with_two_cut_changes(make: Callable[[list[torch.nn.Parameter]], Optimizer]) -> None:
    whole = student()
    optimizer = make(list(whole.parameters()))
    clipped = []
    for step in range(len(CUTS)):
        optimizer.zero_grad()
        loss_of(whole(input_ids=batch(step)).logits, batch(step)).backward()
        clipped.append(torch.nn.utils.clip_grad_norm_(whole.parameters(), MAX_NORM))
        optimizer.step()

    model = student()
    layout = find_layout(model)
    order = [n for n, _ in model.named_parameters()]
    states: dict[str, dict[str, Tensor]] = {}
    step = 0
    for cut in dict.fromkeys(CUTS):
        device = DeviceHalf(copy.deepcopy(model), cut, layout)
        edge = EdgeHalf(model, cut, layout)
        optimizers = []
        for half in (device, edge):
            optimizers.append(make(list(half.parameters())))
            held = {n for n, _ in half.named_parameters()}
            import_optimizer_state(
                optimizers[-1], half.named_parameters(), {n: s for n, s in states.items() if n in held}
            )
        for _ in range(CUTS.count(cut)):
            for half_optimizer in optimizers:
                half_optimizer.zero_grad()
            inputs = {"input_ids": batch(step)}
            sent = device(inputs)
            received = sent.detach().requires_grad_()
            loss_of(edge(received, device.edge_inputs(inputs)).logits, batch(step)).backward()
            sent.backward(received.grad)
            norms = {**grad_norms(device.named_parameters()), **grad_norms(edge.named_parameters())}
            factor, total = clip_coefficient(norms, order, MAX_NORM)
            assert torch.equal(total, clipped[step])
            scale_gradients([*device.parameters(), *edge.parameters()], factor)
            for half_optimizer in optimizers:
                half_optimizer.step()
            step += 1
        for half, half_optimizer in zip((device, edge), optimizers, strict=True):
            states |= export_optimizer_state(half_optimizer, half.named_parameters())
        edge.restore()
        for unit in layout.units(cut)[0]:
            load_unit_state(model, unit_state(device.model, layout, unit))
    assert float(clipped[0]) > MAX_NORM  # clipping was at work
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    for name, parameter in whole.named_parameters():
        assert set(states[name]) == {k for k, v in optimizer.state[parameter].items() if v is not None}
        for key, value in states[name].items():
            assert torch.equal(value, optimizer.state[parameter][key]), (name, key)


def test_imported_state_is_a_copy() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = adamw([parameter])
    moment = torch.ones(2)
    import_optimizer_state(optimizer, [("w", parameter)], {"w": {"exp_avg": moment, "step": torch.tensor(3.0)}})
    moment.zero_()
    assert torch.equal(optimizer.state[parameter]["exp_avg"], torch.ones(2))


def test_parameters_without_a_state_are_left_out() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert export_optimizer_state(adamw([parameter]), [("w", parameter)]) == {}


def test_state_of_an_unknown_parameter() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TensorError, match=r"names `model\.layers\.9\.weight`"):
        import_optimizer_state(adamw([parameter]), [("w", parameter)], {"model.layers.9.weight": {}})


def test_state_of_another_shape() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TensorError, match=r"`exp_avg` of `w` has shape \(3,\); expected \(2,\)"):
        import_optimizer_state(adamw([parameter]), [("w", parameter)], {"w": {"exp_avg": torch.zeros(3)}})


def test_state_that_is_no_tensor() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = adamw([parameter])
    optimizer.state[parameter]["history"] = [1, 2]
    with pytest.raises(TensorError, match=r"`history` of `w` in AdamW is a list"):
        export_optimizer_state(optimizer, [("w", parameter)])


@pytest.mark.parametrize("copied", [True, False])
def test_moments_are_copied_unless_nobody_else_needs_them(copied: bool) -> None:
    parameter, moment = torch.nn.Parameter(torch.ones(3)), torch.full((3,), 2.0)
    optimizer = adamw([parameter])
    entries = {"exp_avg": moment, "exp_avg_sq": torch.ones(3), "step": torch.tensor(3.0)}
    import_optimizer_state(optimizer, [("w", parameter)], {"w": entries}, copy=copied)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert (moment.tolist() == [2.0] * 3) == copied
    assert (optimizer.state[parameter]["exp_avg"].data_ptr() == moment.data_ptr()) != copied
