"""A split encoder equals the unsplit one: what goes to the cloud, every gradient, and training with all that belongs to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from tiny_encoders import ENCODERS, LAYERS, SPLIT_POINTS, encoder_config, padded_tokens, tiny_encoder
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoModel

from flwr_splitkd.models import build_skeleton, materialize
from flwr_splitkd.split import (
    DeviceEncoder,
    Layout,
    ServerEncoder,
    clip_coefficient,
    encoder_units,
    export_optimizer_state,
    find_layout,
    grad_norms,
    import_optimizer_state,
    scale_gradients,
    seed_dropout,
    unit_state,
)

MAX_NORM = 0.05


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loss_of(encoding: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """What a cloud that looks at the tokens alone might compute."""
    kept = encoding * inputs["attention_mask"][..., None]
    return kept.pow(2).mean() + kept.logsumexp(-1).mean()


def gradients(*halves: nn.Module | DeviceEncoder | ServerEncoder) -> dict[str, Tensor]:
    return {n: p.grad for half in halves for n, p in half.named_parameters() if p.grad is not None}


def unsplit(model: nn.Module, layout: Layout, step: int) -> Tensor:
    inputs = padded_tokens(step)
    with seed_dropout(model, layout, seed=3) as dropout:
        dropout.at(step, 1)
        encoding = model(**inputs).last_hidden_state
        dropout.at(step, 2)  # the next micro-batch's forward may come before this one's backward
        loss_of(encoding, inputs).backward()
    return encoding


def chain(device: DeviceEncoder, server: ServerEncoder, step: int) -> Tensor:
    inputs = padded_tokens(step)
    with (
        seed_dropout(device.model, device.layout, seed=3) as on_device,
        seed_dropout(server.model, server.layout, seed=3) as on_edge,
    ):
        on_device.at(step, 1)
        on_edge.at(step, 1)
        sent = device(inputs)
        beside = device.edge_inputs(inputs)
        assert "input_ids" not in beside
        smashed = sent.detach().clone().requires_grad_()
        encoding = server(smashed, beside)
        received = encoding.detach().clone().requires_grad_()
        loss_of(received, inputs).backward()
        on_device.at(step, 2)
        on_edge.at(step, 2)
        encoding.backward(received.grad)
        sent.backward(smashed.grad)
    return encoding


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_and_gradients(name: str, checkpointing: bool) -> None:
    model = tiny_encoder(name)
    layout = find_layout(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    whole = copy.deepcopy(model)
    expected = unsplit(whole, layout, step=5)
    assert not torch.equal(expected, unsplit(copy.deepcopy(model), layout, step=6))
    for split_point in SPLIT_POINTS:
        device = DeviceEncoder(copy.deepcopy(model), split_point, layout)
        server = ServerEncoder(copy.deepcopy(model), split_point, layout)
        assert torch.equal(chain(device, server, step=5), expected)
        got = gradients(device, server)
        assert got.keys() == gradients(whole).keys()
        assert [n for n, grad in gradients(whole).items() if not torch.equal(grad, got[n])] == []


@pytest.mark.parametrize("name", ENCODERS)
def test_dropout_is_active_and_the_same_in_every_part(name: str) -> None:
    """Guard of the test above: without dropout the output is another one."""
    model = tiny_encoder(name)
    layout = find_layout(model)
    trained = unsplit(copy.deepcopy(model), layout, step=5)
    assert not torch.equal(trained, unsplit(copy.deepcopy(model).eval(), layout, step=5))


def adamw(half: nn.Module | DeviceEncoder | ServerEncoder) -> Optimizer:
    # At L the edge has nothing to train, and torch refuses an optimiser without parameters.
    parameters = list(half.parameters())
    return AdamW(parameters or [nn.Parameter(torch.zeros(0))], lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("name", ENCODERS)
def test_training_with_clipping_and_split_points_that_change(name: str) -> None:
    whole = tiny_encoder(name)
    layout = find_layout(whole)
    order = [n for n, _ in whole.named_parameters()]
    state = {n: t.clone() for n, t in whole.state_dict().items()}
    optimizer = adamw(whole)
    steps = [split_point for split_point in (1, LAYERS, 2, LAYERS - 1) for _ in range(2)]
    totals = []
    for step in range(len(steps)):
        optimizer.zero_grad()
        unsplit(whole, layout, step)
        totals.append(torch.nn.utils.clip_grad_norm_(whole.parameters(), MAX_NORM))
        optimizer.step()
    assert min(totals) > MAX_NORM  # clipping is at work

    moments: dict[str, dict[str, Tensor]] = {}
    for step, split_point in enumerate(steps):
        # Every half is built anew from what the one before it left, as after a change of hands.
        device = DeviceEncoder(skeleton(name), split_point, layout)
        server = ServerEncoder(skeleton(name), split_point, layout)
        optimizers = {}
        for half in (device, server):
            materialize(half, {n: state[n] for n in half.state_names()})
            half.train()
            optimizers[half] = adamw(half)
            held = {n: m for n, m in moments.items() if n in half.state_names()}
            import_optimizer_state(optimizers[half], half.named_parameters(), held)
        chain(device, server, step)
        norms = {**grad_norms(device.named_parameters()), **grad_norms(server.named_parameters())}
        factor, total = clip_coefficient(norms, order, MAX_NORM)
        assert torch.equal(total, totals[step])
        scale_gradients([*device.parameters(), *server.parameters()], factor)
        for half, units in zip((device, server), encoder_units(layout, split_point), strict=True):
            optimizers[half].step()
            moments |= export_optimizer_state(optimizers[half], half.named_parameters())
            for unit in units:
                state |= {n: t.clone() for n, t in unit_state(half.model, layout, unit).items()}
    assert state.keys() == whole.state_dict().keys()
    assert [n for n, t in whole.state_dict().items() if not torch.equal(t, state[n])] == []
    parameters = dict(whole.named_parameters())
    assert moments.keys() == {n for n, p in parameters.items() if p in optimizer.state}
    for parameter_name, entries in moments.items():
        expected = optimizer.state[parameters[parameter_name]]
        assert all(torch.equal(value, expected[key]) for key, value in entries.items()), parameter_name


def skeleton(name: str) -> nn.Module:
    return build_skeleton(lambda: AutoModel.from_config(encoder_config(name)))


@pytest.mark.parametrize("split_point", [1, LAYERS])
def test_a_pooler_never_trains(split_point: int) -> None:
    """The cloud reads the last hidden state, so a pooler behind it gets no gradient, and no optimiser moves it."""
    model = tiny_encoder("bert")
    layout = find_layout(model)
    pooler = {"pooler.dense.weight", "pooler.dense.bias"}
    assert set(layout.head) == pooler
    before = copy.deepcopy({n: t for n, t in model.state_dict().items() if n in pooler})
    device = DeviceEncoder(copy.deepcopy(model), split_point, layout)
    server = ServerEncoder(model, split_point, layout)
    holder = device if split_point == LAYERS else server
    assert pooler <= set(holder.state_names())
    optimizer = adamw(holder)
    chain(device, server, step=0)
    optimizer.step()
    after = holder.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert not pooler & export_optimizer_state(optimizer, holder.named_parameters()).keys()
    assert not pooler & grad_norms(holder.named_parameters()).keys()
