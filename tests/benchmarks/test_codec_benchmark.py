"""The codec benchmark: what it counts, and that what it trains is the unsplit model with the cut's rounding."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the benchmark needs it")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import codec as benchmark
import torch
from _codec_training import Arm, Crossing
from _quality_training import Turn
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.wire.codec import round_trip
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


def test_a_tensor_is_copied_once_each_way() -> None:
    stages = benchmark.copies()
    assert len(stages) == 6
    assert sum(value for _, value in stages) == pytest.approx(2.0, abs=0.02)


def test_feedback_lowers_the_error_of_the_sum() -> None:
    tensors = [torch.randn(8, 16, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(16)]
    single, total = benchmark.relative_errors(tensors, pb.CODEC_INT8_BLOCKWISE, feedback=False)
    with_single, with_total = benchmark.relative_errors(tensors, pb.CODEC_INT8_BLOCKWISE, feedback=True)
    assert with_total < 0.5 * total and with_single > single > 1e-3


def _student() -> LlamaForCausalLM:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, tie_word_embeddings=False))


def _gradients(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    ids = torch.arange(12).view(2, 6)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _crossed(arm: Arm, steps: int = 1) -> tuple[Crossing, dict[str, torch.Tensor]]:
    crossing = Crossing(arm)
    list(crossing.turns([Turn(server_round=1, device=0, cut=2, batches=[])]))
    model = crossing.student(_student())
    for _ in range(steps):
        model.zero_grad()
        gradients = _gradients(model)
    return crossing, gradients


def test_without_a_codec_nothing_changes() -> None:
    expected = _gradients(_student())
    crossing, gradients = _crossed(Arm(name="none"))
    assert len(crossing.smashed) == len(crossing.gradients) == 1  # it was listened to, at one cut
    assert all(torch.equal(gradients[name], tensor) for name, tensor in expected.items())


def test_the_gradient_at_the_cut_is_rounded() -> None:
    """By hand: the upper half from rounded smashed data, the lower half from its rounded gradient."""
    _, gradients = _crossed(Arm(name="int8", codec="int8"))
    model, ids = _student(), torch.arange(12).view(2, 6)
    kept: list[torch.Tensor] = []

    def at_the_cut(_: object, __: object, hidden: torch.Tensor) -> torch.Tensor:
        kept.append(hidden)
        kept.append(round_trip(hidden, pb.CODEC_INT8_BLOCKWISE).requires_grad_())
        return kept[1]

    model.model.layers[1].register_forward_hook(at_the_cut)
    model(input_ids=ids, labels=ids).loss.backward()
    kept[0].backward(round_trip(kept[1].grad, pb.CODEC_INT8_BLOCKWISE))
    for name, parameter in model.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True)])
def test_feedback_is_of_one_direction(up: bool, down: bool) -> None:
    """The same step twice, so that a residual alone makes the difference."""
    without = _crossed(Arm(name="int8", codec="int8"), steps=2)
    arm = Arm(name="feedback", codec="int8", feedback_up=up, feedback_down=down)
    once, twice = _crossed(arm), _crossed(arm, steps=2)
    assert all(torch.equal(once[1][name], tensor) for name, tensor in without[1].items())
    head, stem = "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(twice[1][head], without[1][head]) is not up  # above the cut
    assert not torch.equal(twice[1][stem], without[1][stem])
