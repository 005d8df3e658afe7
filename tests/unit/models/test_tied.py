from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from flwr_splitkd.errors import ConfigError, CutError
from flwr_splitkd.models import build_skeleton, embeddings_are_tied, materialize, set_tied_embeddings
from flwr_splitkd.split import DeviceHalf, find_layout

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
    "pad_token_id": 1,
}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=96)),
    "bert": lambda: BertForMaskedLM(BertConfig(**TINY)),
    "xlm-roberta": lambda: XLMRobertaForMaskedLM(XLMRobertaConfig(**TINY)),
}
IDS = torch.arange(4, 24).reshape(2, 10)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = BUILDERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", BUILDERS)
def test_untied_model_survives_saving_and_loading(name: str, tmp_path: Path) -> None:
    model = build(name)
    expected = model(input_ids=IDS).logits
    assert embeddings_are_tied(model)
    set_tied_embeddings(model, "untie")
    assert not embeddings_are_tied(model)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert not embeddings_are_tied(loaded)
    assert torch.equal(loaded(input_ids=IDS).logits, expected)
    assert find_layout(model).shared == ()


@pytest.mark.parametrize("name", BUILDERS)
def test_untying_a_skeleton_then_filling_it(name: str) -> None:
    model = build(name)
    expected = model(input_ids=IDS).logits
    skeleton = build_skeleton(BUILDERS[name]).eval()
    set_tied_embeddings(skeleton, "untie")
    assert not embeddings_are_tied(skeleton)
    materialize(skeleton, model.state_dict())
    assert not embeddings_are_tied(skeleton)
    assert torch.equal(skeleton(input_ids=IDS).logits, expected)


def test_untied_matrices_train_apart() -> None:
    model = build("llama")
    set_tied_embeddings(model, "untie")
    model(input_ids=IDS).logits.sum().backward()
    embedding, projection = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding.grad is not None
    assert projection.grad is not None
    assert not torch.equal(embedding.grad, projection.grad)


@pytest.mark.parametrize("name", BUILDERS)
def test_frozen_model_can_be_cut(name: str) -> None:
    model = build(name)
    set_tied_embeddings(model, "freeze")
    assert embeddings_are_tied(model)
    assert not model.get_input_embeddings().weight.requires_grad
    half = DeviceHalf(model, 1, find_layout(model))
    assert sum(n.endswith(("lm_head.weight", "decoder.weight")) for n in half.state_names()) == 0


def test_refusal_names_the_cost_of_the_ways_out() -> None:
    with pytest.raises(CutError, match=r"GPT2LMHeadModel uses one \(96, 32\) matrix .* 0\.0 MiB.* 'freeze'"):
        set_tied_embeddings(build("gpt2"), "refuse")


@pytest.mark.parametrize("policy", ["refuse", "untie", "freeze"])
def test_nothing_happens_to_an_untied_model(policy: str) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False))
    set_tied_embeddings(model, policy)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in model.parameters())


def test_unknown_policy() -> None:
    with pytest.raises(ConfigError, match="`tied_embeddings` is 'share'; expected 'refuse', 'untie' or 'freeze'"):
        set_tied_embeddings(build("llama"), "share")  # type: ignore[arg-type]
