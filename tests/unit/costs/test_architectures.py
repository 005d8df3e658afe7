from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import ModelShape, load_shape, named_shape, shape_from_config
from flwr_splitkd.costs.catalog import CATALOG
from flwr_splitkd.costs.families import FAMILIES
from flwr_splitkd.costs.memory import kept_values
from flwr_splitkd.errors import ConfigError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def same(a: ModelShape, b: ModelShape) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__slots__ if name != "name")


# What the models' publishers, or `num_parameters()` of the published checkpoints, say.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "bert-base": 109_514_298,
    "distilbert-base": 66_985_530,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    shape = named_shape(name)
    assert shape.name == name
    assert shape.num_parameters == PUBLISHED[name]


def test_llama_by_hand() -> None:
    """d 32, 4 heads of 8, 2 groups, an MLP of 48, 96 tokens."""
    shape = shape_from_config(LLAMA)
    linear = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    assert shape.block_parameters.tolist() == [linear + 2 * 32] * 3
    assert shape.block_flops_per_token.tolist() == [2 * linear] * 3
    assert shape.block_flops_per_pair.tolist() == [4 * 32] * 3
    assert shape.embedding_parameters == 96 * 32
    assert (shape.head_parameters, shape.head_flops_per_token) == (32 + 96 * 32, 2 * 96 * 32)
    assert (shape.hidden_size, shape.embedding_width, shape.vocab_size, shape.tied) == (32, 32, 96, False)
    assert shape.name == "llama"


def test_llama_keeps_what_its_flops_say() -> None:
    shape = shape_from_config(LLAMA)
    bare = replace(shape, block_kept_per_token=None, block_kept_per_pair=None)
    for length in (0, 512):
        assert kept_values(shape, length).tolist() == kept_values(bare, length).tolist()


def test_what_gpt2_keeps_by_hand() -> None:
    """Two LayerNorms 4 d, attention 4 d, a GELU of elementary functions 5 x 4 d, two dropouts 2 d; three maps a head."""
    shape = named_shape("gpt2")
    assert shape.block_kept_per_token is not None and shape.block_kept_per_pair is not None
    assert shape.block_kept_per_token.tolist() == [(4 + 4 + 20 + 2) * 768] * 12
    assert shape.block_kept_per_pair.tolist() == [3 * 12] * 12
    plain = {"model_type": "gpt2", "attn_pdrop": 0.0, "resid_pdrop": 0, "activation_function": "gelu"}
    shape = shape_from_config(plain)
    assert shape.block_kept_per_token is not None and shape.block_kept_per_pair is not None
    assert shape.block_kept_per_token.tolist() == [(4 + 4 + 8) * 768] * 12
    assert shape.block_kept_per_pair.tolist() == [0] * 12


def test_dropout_of_attention_keeps_maps_and_repeats_keys() -> None:
    """LLAMA: 4 heads of 8, 2 groups."""
    plain, dropped = shape_from_config(LLAMA), shape_from_config({**LLAMA, "attention_dropout": 0.1})
    eager = shape_from_config(SimpleNamespace(**LLAMA, _attn_implementation="eager"))
    for shape, maps in ((dropped, 3), (eager, 1)):
        assert (kept_values(shape) - kept_values(plain)).tolist() == pytest.approx([2 * (32 - 16)] * 3)
        assert (kept_values(shape, 10) - kept_values(shape)).tolist() == pytest.approx([10 * maps * 4] * 3)


def test_a_tied_head_costs_flops_and_no_parameters() -> None:
    untied, tied = shape_from_config(LLAMA), shape_from_config({**LLAMA, "tie_word_embeddings": True})
    assert tied.tied
    assert untied.num_parameters - tied.num_parameters == 96 * 32
    assert tied.head_flops_per_token == untied.head_flops_per_token


def test_experts_count_whole_as_parameters_and_active_as_flops() -> None:
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2}
    shape, expert = shape_from_config(config), 3 * 32 * 48
    dense = shape_from_config(LLAMA)
    router = 32 * 6
    assert (shape.block_parameters - dense.block_parameters).tolist() == [5 * expert + router] * 3
    assert (shape.block_flops_per_token - dense.block_flops_per_token).tolist() == [2 * (expert + router)] * 3


def test_some_blocks_of_a_sparse_model_are_dense() -> None:
    config = {
        **LLAMA, "model_type": "qwen3_moe", "num_hidden_layers": 5, "num_experts": 4, "num_experts_per_tok": 1,
        "moe_intermediate_size": 24, "decoder_sparse_step": 2, "mlp_only_layers": [3],
    }  # fmt: skip
    parameters = shape_from_config(config).block_parameters
    assert (parameters != parameters[0]).tolist() == [False, True, False, False, False]


def test_an_object_is_read_like_a_dict() -> None:
    assert same(shape_from_config(SimpleNamespace(**LLAMA)), shape_from_config(LLAMA))
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 96}
    assert same(shape_from_config(SimpleNamespace(**gpt2)), shape_from_config(gpt2))
    usual = {
        "model_type": "gpt2",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 96,
    }
    assert same(shape_from_config(usual), shape_from_config(gpt2))


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_config_of_nothing_but_its_type(kind: str) -> None:
    shape = shape_from_config({"model_type": kind})
    assert shape.num_blocks > 1
    assert shape.num_parameters > 10**6


def test_the_head_follows_the_task() -> None:
    bert = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "a", "1": "b", "2": "c"},
    }
    shape = shape_from_config(bert)
    assert shape.head_parameters == 768 * 768 + 768 + 3 * 768 + 3
    assert (shape.head_flops_per_token, shape.tied) == (0.0, False)
    assert same(shape, shape_from_config({"model_type": "bert", "num_labels": 3}, task="sequence-classification"))
    masked = shape_from_config(bert, task="masked-lm")
    assert same(masked, shape_from_config({"model_type": "bert"}))
    assert same(masked, shape_from_config({"model_type": "bert", "architectures": ["BertForPreTraining"]}))
    assert masked.head_flops_per_token == 2 * 768 * (768 + 30522)
    scored = shape_from_config({**LLAMA, "num_labels": 5}, task="sequence-classification")
    assert (scored.head_parameters, scored.head_flops_per_token) == (32 + 5 * 32, 2 * 5 * 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, r"`model_type` of the config is 'mamba'; expected one of \['bert'.*measured_shape"),
        ({}, "`model_type` of the config is None"),
        (object(), "The config is a object without `model_type`"),
        (
            {**LLAMA, "attention_dropout": 1.5},
            "`attention_dropout` of the llama config is 1.5; expected a number of 0 to 1",
        ),
        ({"model_type": "gpt2", "resid_pdrop": "no"}, "`resid_pdrop` of the gpt2 config is 'no'"),
        ({**LLAMA, "hidden_size": 0}, "`hidden_size` of the llama config is 0; expected an integer of at least 1"),
        ({**LLAMA, "vocab_size": None}, "`vocab_size` of the llama config is None"),
        ({**LLAMA, "num_attention_heads": True}, "`num_attention_heads` of the llama config is True"),
        ({**LLAMA, "num_attention_heads": 64}, "has 64 heads for a width of 32"),
        ({"model_type": "gpt2", "n_layer": "12"}, "`n_layer` of the gpt2 config is '12'"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "`add_cross_attention` of the config is True"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "is 9; expected at most its 8 experts"),
        (
            {"model_type": "qwen3_moe", "mlp_only_layers": 3},
            "`mlp_only_layers` of the qwen3_moe config is 3; expected a list",
        ),
        (
            {**LLAMA, "architectures": ["LlamaForTokenClassification"]},
            "names 'LlamaForTokenClassification'.*Pass `task`",
        ),
    ],
)
def test_what_cannot_be_told(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_from_config(config)


def test_a_task_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"`task` is 'masked-lm'; expected one of \['causal-lm', .*\] for llama"):
        shape_from_config(LLAMA, task="masked-lm")


def test_another_number_of_the_same_blocks() -> None:
    whole, deep = named_shape("llama-3.1-8b"), named_shape("llama-3.2-8b/64")
    assert (deep.num_blocks, deep.name) == (64, "llama-3.2-8b/64")
    assert set(deep.block_parameters) == set(whole.block_parameters)
    assert same(deep, named_shape("llama-3.1-8b/64"))
    assert named_shape("llama-3.2-1b/12").num_blocks == 12
    assert named_shape("gpt2/5").num_blocks == 5
    assert named_shape("distilbert-base/3").num_blocks == 3


def test_every_name_of_the_catalog_loads() -> None:
    for name in CATALOG:
        assert load_shape(name).name == name


@pytest.mark.parametrize("name", ["gpt5", "gpt2/", "gpt2/0", "gpt2/many", "llama-3.2-8b"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ConfigError, match="There is no model .*expected one of .*llama-3.2-1b/12.*load_shape"):
        named_shape(name)


def test_a_config_file_and_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(LLAMA))
    assert same(load_shape(folder), shape_from_config(LLAMA))
    assert same(load_shape(str(file)), shape_from_config(LLAMA))
    assert load_shape(folder).name == load_shape(file).name == "student"
    assert load_shape(folder, task="sequence-classification").head_parameters == 32 + 2 * 32


def test_a_path_that_does_not_hold_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*config\.json; expected one of .*gpt2.* or the path"):
        load_shape(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_shape(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="holds a list; expected an object"):
        load_shape(file)
