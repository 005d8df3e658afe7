from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flwr_splitkd.costs import ModelShape, load_shape, shape_from_config
from flwr_splitkd.costs.families import FAMILIES
from flwr_splitkd.errors import ConfigError, UncuttableModelError
from flwr_splitkd.models import add_adapters, measured_shape
from flwr_splitkd.split import Layout, find_layout
from flwr_splitkd.split.surgery import text_config

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 120, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT = {**{key: value for key, value in SIZES.items() if key != "intermediate_size"}, "ffn_dim": 80}
DISTIL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 80, "vocab_size": 120}
MODERN = {**SIZES, "cls_token_id": 1, "sep_token_id": 2}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
WIDE = {"head_dim": 32}


@dataclass(frozen=True)
class Case:
    """A class of transformers with settings for its config."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    what: str = ""

    def __str__(self) -> str:
        return f"{self.model} {self.what}".strip()

    def config(self) -> Any:
        kind = getattr(transformers, self.model).config_class
        return kind(**self.settings, architectures=[self.model])

    def build(self, config: Any) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, self.model)(config)
        return model


CASES = [
    Case("LlamaForCausalLM", GROUPED, "grouped"),
    Case("LlamaForCausalLM", {**GROUPED, **TIED}, "tied"),
    Case("LlamaForCausalLM", {**GROUPED, **WIDE, "attention_bias": True, "mlp_bias": True}, "biases, wide heads"),
    Case("LlamaForSequenceClassification", {**GROUPED, "num_labels": 5}),
    Case("MistralForCausalLM", {**GROUPED, "sliding_window": 4}, "sliding window"),
    Case("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}),
    Case("GraniteForCausalLM", GROUPED),
    Case("SmolLM3ForCausalLM", GROUPED),
    Case("Olmo2ForCausalLM", GROUPED),
    Case("Qwen2ForCausalLM", GROUPED),
    Case("Qwen2ForSequenceClassification", {**GROUPED, "num_labels": 3}),
    Case("Qwen3ForCausalLM", {**GROUPED, **WIDE}),
    Case(
        "Qwen3MoeForCausalLM",
        {
            **GROUPED, **WIDE, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1],
        },
        "one block dense",
    ),
    Case("GemmaForCausalLM", {**GROUPED, **WIDE}),
    Case("Gemma2ForCausalLM", {**GROUPED, **WIDE}),
    Case("Gemma3ForCausalLM", {**GROUPED, **WIDE}),
    Case("PhiForCausalLM", {**GROUPED, "qk_layernorm": True}, "norms of queries and keys"),
    Case("Phi3ForCausalLM", GROUPED),
    Case("Starcoder2ForCausalLM", GROUPED),
    Case("GPTNeoXForCausalLM", SIZES),
    Case("GPT2LMHeadModel", GPT2),
    Case("GPT2LMHeadModel", {**GPT2, **UNTIED, "n_inner": 80}, "untied, narrow MLP"),
    Case("GPT2ForSequenceClassification", {**GPT2, "pad_token_id": 0}),
    Case("OPTForCausalLM", OPT),
    Case("OPTForCausalLM", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}, "as 350m"),
    Case("OPTForCausalLM", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}, "no biases"),
    Case("OPTForSequenceClassification", {**OPT, "word_embed_proj_dim": 16}),
    Case("BertForMaskedLM", SIZES),
    Case("BertForMaskedLM", {**SIZES, **UNTIED}, "untied"),
    Case("BertForSequenceClassification", SIZES),
    Case("BertLMHeadModel", {**SIZES, "is_decoder": True}, "decoder"),
    Case("RobertaForMaskedLM", SIZES),
    Case("RobertaForMaskedLM", {**SIZES, **UNTIED}, "untied"),
    Case("RobertaForSequenceClassification", {**SIZES, "num_labels": 4}),
    Case("XLMRobertaForMaskedLM", SIZES),
    Case("ElectraForMaskedLM", {**SIZES, "embedding_size": 16}),
    Case("ElectraForMaskedLM", {**SIZES, **UNTIED}, "untied"),
    Case("ElectraForSequenceClassification", {**SIZES, "embedding_size": 16}),
    Case("DistilBertForMaskedLM", DISTIL),
    Case("DistilBertForMaskedLM", {**DISTIL, **UNTIED}, "untied"),
    Case("DistilBertForSequenceClassification", DISTIL),
    Case("ModernBertForMaskedLM", MODERN),
    Case("ModernBertForMaskedLM", {**MODERN, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "decoder_bias": False,
                                   "classifier_bias": True}, "other biases"),
    Case("ModernBertForSequenceClassification", MODERN),
]  # fmt: skip

LLAMA = CASES[0]


@cache
def built(index: int) -> tuple[Any, nn.Module, Layout]:
    """A case's config, its model with real values, and where the blocks are."""
    config = CASES[index].config()
    config._attn_implementation = config._experts_implementation = "eager"
    model = CASES[index].build(config).eval()
    return config, model, find_layout(model)


every_case = pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: str(CASES[index]))


def test_every_known_architecture_is_tried(covered: Callable[[str, object], None]) -> None:
    kinds = {case.config().model_type for case in CASES}
    covered("architectures whose shape is told from the config alone", f"{len(kinds)}, in {len(CASES)} forms")
    assert kinds == set(FAMILIES)


@every_case
def test_parameters_are_those_of_the_module(index: int) -> None:
    config, model, layout = built(index)
    shape = shape_from_config(config)
    blocks = [sum(p.numel() for p in model.get_submodule(path).parameters()) for path in layout.block_names]
    before = {*layout.stem, *layout.shared}
    stem = {p for name, p in model.named_parameters(remove_duplicate=False) if name in before}
    assert shape.block_parameters.tolist() == blocks
    assert shape.embedding_parameters == sum(p.numel() for p in stem)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert (shape.embedding_width, shape.vocab_size) == tuple(reversed(model.get_input_embeddings().weight.shape))
    assert shape.hidden_size == text_config(model).hidden_size


def counted_flops(model: nn.Module, layout: Layout, length: int) -> tuple[list[int], int]:
    """FLOPs of each block and of the whole model as `FlopCounterMode` attributes them, with real values."""
    ids = torch.arange(3, 3 + length)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    table = counter.get_flop_counts()
    blocks = [sum(table[f"{type(model).__name__}.{path}"].values()) for path in layout.block_names]
    # The projection of a narrow embedding has no place in a shape. It is small beside real blocks, not beside these.
    narrow = [counts for path, counts in table.items() if path.endswith((".project_in", ".embeddings_project"))]
    return blocks, counter.get_total_flops() - sum(sum(counts.values()) for counts in narrow)


_worst: list[float] = []


@every_case
def test_flops_are_those_that_torch_counts(index: int, covered: Callable[[str, object], None]) -> None:
    config, model, layout = built(index)
    shape = shape_from_config(config)
    for length in (16, 48):
        blocks, total = counted_flops(model, layout, length)
        told = [*shape.block_flops(length, causal=False), shape.forward_flops(length, causal=False)]
        assert told == pytest.approx([*blocks, total], rel=0.01)
        _worst.append(float(np.max(np.abs(np.divide(told, [*blocks, total]) - 1))))
    covered("largest difference from torch's FlopCounterMode", f"{max(_worst):.2%} in {len(_worst)} counts")


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (
            "OPTForCausalLM",  # as facebook/opt-350m
            {
                "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "word_embed_proj_dim": 512, "do_layer_norm_before": False,
            },
        ),
        ("ElectraForMaskedLM", {}),  # as google/electra-small-generator, but for its heads
    ],
)  # fmt: skip
def test_the_projection_of_a_narrow_embedding_is_small_beside_real_blocks(model: str, settings: dict[str, Any]) -> None:
    case = Case(model, settings)
    config = case.config()
    config._attn_implementation = "eager"
    with torch.device("meta"):
        skeleton = case.build(config).eval()
    ids = torch.zeros((1, 128), dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(input_ids=ids)
    assert shape_from_config(config).forward_flops(128) == pytest.approx(counter.get_total_flops(), rel=0.01)


@every_case
def test_measured_equals_told(index: int) -> None:
    case = CASES[index]
    config = case.config()
    measured = measured_shape(lambda: case.build(config))
    # What blocks keep is counted here and told by terms there: test_kept_values.py.
    assert set(differing(measured, shape_from_config(config))) <= {"block_kept_per_token", "block_kept_per_pair"}
    assert measured.name == case.model


def differing(a: ModelShape, b: ModelShape) -> list[str]:
    return [name for name in a.__slots__ if name != "name" and not np.array_equal(getattr(a, name), getattr(b, name))]


@every_case
def test_a_saved_config_says_the_same(index: int, tmp_path: Path) -> None:
    config = CASES[index].config()
    config.save_pretrained(tmp_path)
    assert differing(load_shape(tmp_path), shape_from_config(config)) == []


@every_case
def test_what_a_config_leaves_out_has_the_defaults_of_transformers(index: int) -> None:
    case = CASES[index]
    kind = getattr(transformers, case.model).config_class
    told = shape_from_config({"model_type": kind.model_type, "architectures": [case.model]})
    assert differing(told, shape_from_config(kind(architectures=[case.model]))) == []


def test_a_config_of_many_billions_needs_no_memory() -> None:
    config = LLAMA.config()
    config.update({"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "vocab_size": 128256})
    config.update({"num_key_value_heads": 8, "head_dim": 128})
    shape = measured_shape(lambda: transformers.LlamaForCausalLM(config), name="teacher")
    assert shape.name == "teacher"
    assert set(shape.block_parameters) == set(load_shape("llama-3.1-8b").block_parameters)
    assert set(shape.block_flops_per_token) == set(load_shape("llama-3.1-8b").block_flops_per_token)


def test_the_builders_config_is_as_it_was() -> None:
    config = CASES[5].config()
    model = CASES[5].build(config)
    kernels = (config._attn_implementation, config._experts_implementation)
    measured_shape(lambda: model)
    assert (config._attn_implementation, config._experts_implementation) == kernels
    assert kernels[0] != "eager"
    json.dumps(config.to_dict())


def test_an_architecture_that_is_not_known_is_measured() -> None:
    config = transformers.StableLmConfig(**GROUPED)
    with pytest.raises(ConfigError, match="`model_type` of the config is 'stablelm'.*measured_shape"):
        shape_from_config(config)
    model = transformers.StableLmForCausalLM(config)
    shape = measured_shape(lambda: model)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())


def test_named_blocks_and_adapters() -> None:
    config = LLAMA.config()
    paths = [f"model.layers.{index}" for index in range(2)]
    plain = measured_shape(lambda: LLAMA.build(config), blocks=paths)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    shape = measured_shape(lambda: add_adapters(LLAMA.build(config), lora))
    assert (shape.block_parameters - plain.block_parameters).tolist() == [2 * (64 + 64)] * 2
    assert (shape.block_flops_per_token - plain.block_flops_per_token).tolist() == [2 * 2 * (64 + 64)] * 2


def test_what_cannot_be_measured() -> None:
    with pytest.raises(
        ConfigError, match="Sequential without `vocab_size` and .*expected a model of transformers that reads"
    ):
        measured_shape(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
    with pytest.raises(UncuttableModelError, match="`num_hidden_groups`"):
        measured_shape(lambda: transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SIZES, embedding_size=16)))


class Fused(nn.Module):
    """Attention that asks for no projection and heeds no setting."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        one_head = hidden[:, None]
        return nn.functional.scaled_dot_product_attention(one_head, one_head, one_head)[:, 0]


def test_attention_that_is_always_fused_is_counted_as_eager() -> None:
    def build() -> nn.Module:
        model = LLAMA.build(LLAMA.config())
        for layer in model.model.layers:
            layer.mlp = Fused()
        return model

    plain = shape_from_config(LLAMA.config())
    shape = measured_shape(build)
    assert (shape.block_flops_per_pair - plain.block_flops_per_pair).tolist() == [4 * 64] * 2
    assert (plain.block_flops_per_token - shape.block_flops_per_token).tolist() == [2 * 3 * 64 * 80] * 2


class LooksAtValues(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if float(hidden.sum()) > 0 else -hidden


def test_a_model_that_looks_at_values() -> None:
    def build() -> nn.Module:
        model = LLAMA.build(LLAMA.config())
        model.model.layers[1].mlp = LooksAtValues()
        return model

    with pytest.raises(ConfigError, match="LlamaForCausalLM cannot run without memory, .*Expected a forward pass"):
        measured_shape(build)


class Cubic(nn.Module):
    """Work that grows with triples of tokens."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        pairs = hidden @ hidden.transpose(1, 2)
        return (pairs @ pairs) @ hidden


def test_blocks_that_grow_otherwise() -> None:
    def build() -> nn.Module:
        model = LLAMA.build(LLAMA.config())
        for layer in model.model.layers:
            layer.mlp = Cubic()
        return model

    with pytest.raises(ConfigError, match=r"take .* FLOPs for \[8, 16, 24\] tokens; expected a sum of terms"):
        measured_shape(build)
