"""How the edge computes: each option gives what torch gives with it, and leaves alone what it promises to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.split import (
    DeviceHalf,
    EdgeHalf,
    export_optimizer_state,
    find_layout,
    import_optimizer_state,
)
from flwr_splitkd.tiers.edge import EdgeCompute, EdgeTeacher, Objective
from flwr_splitkd.tiers.edge.teacher import TeacherData
from flwr_splitkd.tiers.optimizer import OptimizerSettings

CPU = torch.device("cpu")
IDS = torch.arange(24).reshape(2, 12) % 60


def student() -> nn.Module:
    torch.manual_seed(3)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, **heads)
    )


def served(compute: EdgeCompute, cut: int = 1) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Outputs, gradients of the edge's half and the gradient at the cut of one micro-batch."""
    model = student()
    layout = find_layout(model)
    device = DeviceHalf(copy.deepcopy(model), cut, layout)
    with torch.no_grad():
        smashed, beside = device({"input_ids": IDS}), device.edge_inputs({"input_ids": IDS})
    compute.prepare(model, layout)
    objective = Objective(model, None, DistillationLoss(kd_ratio=0.0), "causal-lm", compute)
    smashed.requires_grad_(True)
    half = EdgeHalf(model, cut, layout)
    outputs = objective.outputs(half, smashed, beside)
    loss = objective.loss_of(outputs, None, IDS, IDS.numel())
    loss.terms.loss.backward()
    gradients = {name: p.grad for name, p in half.named_parameters() if p.grad is not None}
    assert smashed.grad is not None
    return outputs.detach(), gradients, smashed.grad


def test_without_options_nothing_changes() -> None:
    model = student()
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state  # type: ignore[operator, union-attr]
    assert torch.equal(served(EdgeCompute())[0], hidden)


def test_autocast_is_torch_s_and_ends_before_the_loss() -> None:
    """The same numbers as torch.autocast around the model's own forward pass; weights' type outside of it."""
    outputs, gradients, at_cut = served(EdgeCompute(autocast="bfloat16"))
    plain = served(EdgeCompute())
    assert outputs.dtype == at_cut.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert not torch.equal(outputs, plain[0])
    model = student()
    layout = find_layout(model)
    device, edge = DeviceHalf(copy.deepcopy(model), 1, layout), EdgeHalf(model, 1, layout)
    with torch.no_grad():
        smashed, beside = device({"input_ids": IDS}), device.edge_inputs({"input_ids": IDS})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = edge(smashed, beside).logits
    head = model.get_submodule("lm_head").weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.nn.functional.linear(outputs, head), logits)  # type: ignore[arg-type]
    for name, gradient in gradients.items():
        error = (gradient - plain[1][name]).norm() / plain[1][name].norm()
        assert 0 < error < 0.1, name


def test_a_teacher_computes_so_too_and_answers_in_the_device_s_type() -> None:
    outputs = []
    for compute in (EdgeCompute(), EdgeCompute(autocast="bfloat16")):
        teacher = EdgeTeacher(student(), has_head=True, compute_device=CPU, compute=compute)
        embedded = torch.nn.functional.embedding(IDS, teacher.units["teacher"]["weight/embedding"])
        outputs.append(teacher.outputs(TeacherData(embedded, {"attention_mask": torch.ones_like(IDS)})))
    assert outputs[1].dtype == torch.float32
    assert not torch.equal(*outputs)
    assert (outputs[0] - outputs[1]).norm() < 0.05 * outputs[0].norm()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_fused_optimizer_goes_on_from_moments_that_were_handed_over(name: str) -> None:
    settings = OptimizerSettings(name=name, momentum=0.9, learning_rate=0.1)  # type: ignore[arg-type]

    def trained(times: int, *, handed_over: bool) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(5, 5)
        optimizer = settings.build(layer.parameters(), fused=True)
        for step in range(times):
            if handed_over and step == 2:
                moments = export_optimizer_state(optimizer, layer.named_parameters())
                optimizer = settings.build(layer.parameters(), fused=True)
                import_optimizer_state(optimizer, layer.named_parameters(), moments)
            layer(torch.ones(1, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.param_groups[0]["fused"]
        return layer.weight.detach()

    assert torch.equal(trained(4, handed_over=True), trained(4, handed_over=False))


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_up_to_rounding_at_every_cut() -> None:
    for cut in (1, 2):
        plain, compiled = served(EdgeCompute(), cut), served(EdgeCompute(compile=True), cut)
        torch.testing.assert_close(compiled[0], plain[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled[2], plain[2], rtol=1e-3, atol=1e-6)
        assert compiled[1].keys() == plain[1].keys()


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ConfigError, match="'float8'"):
        EdgeCompute(autocast="float8")  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="Sequential"):
        EdgeCompute(compile=True).prepare(model, find_layout(model, ["0", "1"]))


def test_a_model_is_prepared_once_for_all_halves() -> None:
    """A half is cut out of the prepared model: its blocks stay the compiled ones."""
    model = student()
    layout = find_layout(model)
    EdgeCompute(compile=True).prepare(model, layout)
    half = EdgeHalf(model, 1, layout)
    assert "forward" in vars(half.model.get_submodule(layout.block_names[1]))
