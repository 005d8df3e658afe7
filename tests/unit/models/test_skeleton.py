from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.errors import ConfigError, TensorError
from flwr_splitkd.models import build_skeleton, materialize, set_tied_embeddings
from flwr_splitkd.split import DeviceHalf, EdgeHalf, find_layout

IDS = torch.arange(4, 24).reshape(2, 10)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, vocab_size=96,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96))


def test_parameters_have_no_memory_and_buffers_are_real() -> None:
    skeleton, real = build_skeleton(llama), llama()
    assert all(p.is_meta for p in skeleton.parameters())
    assert {n: (t.shape, t.dtype) for n, t in skeleton.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in real.state_dict().items()
    }
    buffers = dict(skeleton.named_buffers())
    assert "model.rotary_emb.inv_freq" in buffers
    for name, buffer in real.named_buffers():
        assert torch.equal(buffers[name], buffer)


def test_other_modules_are_built_as_before() -> None:
    build_skeleton(llama)
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_skeleton_needs_no_memory_for_weights() -> None:
    def huge() -> nn.Module:
        return nn.Sequential(*(nn.Linear(10_000, 10_000) for _ in range(1000)))  # 400 GB

    assert sum(p.numel() for p in build_skeleton(huge).parameters()) > 10**11


def test_tied_parameters_stay_tied_and_one_name_fills_both() -> None:
    skeleton, real = build_skeleton(gpt2), gpt2()
    assert skeleton.lm_head.weight is skeleton.transformer.wte.weight
    state = real.state_dict()
    del state["lm_head.weight"]
    materialize(skeleton, state)
    assert skeleton.lm_head.weight is skeleton.transformer.wte.weight
    assert torch.equal(skeleton.eval()(input_ids=IDS).logits, real.eval()(input_ids=IDS).logits)


def test_a_parameter_registered_twice_by_hand_stays_tied() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        shared = nn.Parameter(torch.ones(3, 3))
        model[0].weight = shared
        model[1].weight = shared
        return model

    skeleton = build_skeleton(tied)
    assert skeleton[0].weight is skeleton[1].weight


def test_frozen_parameters_stay_frozen() -> None:
    def frozen() -> nn.Module:
        model = gpt2()
        set_tied_embeddings(model, "freeze")
        return model

    skeleton = build_skeleton(frozen)
    assert not skeleton.transformer.wte.weight.requires_grad
    materialize(skeleton, gpt2().state_dict())
    assert not skeleton.transformer.wte.weight.requires_grad
    assert skeleton.transformer.wpe.weight.requires_grad


def test_a_device_half_from_a_skeleton_equals_one_from_the_model() -> None:
    real = llama()
    layout = find_layout(real)
    half = DeviceHalf(build_skeleton(llama), 2, layout)
    materialize(half, {n: real.state_dict()[n] for n in half.state_names()})
    reference = DeviceHalf(copy.deepcopy(real), 2, layout)
    assert not any(t.is_meta for t in half.model.state_dict().values())
    assert torch.equal(half({"input_ids": IDS}), reference({"input_ids": IDS}))
    edge = EdgeHalf(real, 2, layout)
    assert edge(half({"input_ids": IDS}), {}).logits.shape == (2, 10, 96)


def test_buffers_are_received_too() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    real = normed()
    real(torch.randn(8, 4))
    skeleton = build_skeleton(normed)
    materialize(skeleton, real.state_dict())
    assert all(torch.equal(t, real.state_dict()[n]) for n, t in skeleton.state_dict().items())
    assert int(skeleton[1].num_batches_tracked) == 1


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    state = llama().state_dict()
    name = "model.norm.weight"
    for change, message in (
        ({"model.other.weight": torch.zeros(1)}, "`model.other.weight` was received but LlamaForCausalLM"),
        ({name: torch.zeros(31)}, r"`model\.norm\.weight` has shape \(31,\) .* expected \(32,\)"),
        (
            {name: torch.zeros(32, dtype=torch.bfloat16)},
            r"torch\.bfloat16; expected \(32,\) and torch\.float32",
        ),
    ):
        skeleton = build_skeleton(llama)
        with pytest.raises(TensorError, match=message):
            materialize(skeleton, {**state, **change})
        assert all(p.is_meta for p in skeleton.parameters())


def test_a_missing_tensor() -> None:
    state = llama().state_dict()
    del state["model.layers.3.mlp.up_proj.weight"]
    with pytest.raises(TensorError, match=r"`model\.layers\.3\.mlp\.up_proj\.weight` .* not received \(1 missing"):
        materialize(build_skeleton(llama), state)


def test_a_builder_with_its_own_skeleton() -> None:
    class Builder:
        def __call__(self) -> nn.Module:
            raise AssertionError("the whole model must not be built")

        def skeleton(self) -> nn.Module:
            return nn.Linear(2, 2)

    assert build_skeleton(Builder()).weight.is_meta


def test_a_builder_that_needs_the_memory() -> None:
    with pytest.raises(ConfigError, match=r"model builder failed with .*expected a builder that only builds"):
        build_skeleton(lambda: nn.Linear(2, 2).to("cpu", torch.float64))
    with pytest.raises(ConfigError, match="returned a str; expected a torch"):
        build_skeleton(lambda: "model")  # type: ignore[arg-type,return-value]
