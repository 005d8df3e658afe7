"""Where a model to measure comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, Gemma2Config, GPT2Config, LlamaConfig, PretrainedConfig

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.telemetry import find_source
from flwr_splitkd.telemetry.source import Source, alike_blocks

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save(config: PretrainedConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = save(LlamaConfig(**SIZES, num_hidden_layers=3), tmp_path / "a-llama")
    for path in (folder, folder / "config.json"):
        source = find_source(str(path))
        assert source.name == "a-llama"
        model = source.skeleton(dtype=torch.bfloat16)
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
        assert len(model.layers) == 3  # type: ignore[arg-type]


def test_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_to_measure.py").write_text(
        "from transformers import LlamaConfig, LlamaModel\n"
        "value = 3\n"
        "class Models:\n"
        "    @staticmethod\n"
        f"    def student():\n        return LlamaModel(LlamaConfig(**{SIZES!r}, num_hidden_layers=2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = find_source("models_to_measure:Models.student")
    model = source.skeleton(dtype=torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in model.parameters())
    with pytest.raises(ConfigError, match="`layers` is 2 and models_to_measure:Models.student is a function"):
        source.skeleton(layers=2)
    with pytest.raises(ConfigError, match="is a int; expected a function"):
        find_source("models_to_measure:value")
    with pytest.raises(ConfigError, match="cannot be imported.*no attribute 'other'"):
        find_source("models_to_measure:other")
    with pytest.raises(ConfigError, match="cannot be imported: No module named 'no_such_module'"):
        find_source("no_such_module:build")


@pytest.mark.parametrize("model", ["./nowhere/config.json", "/nowhere", "nowhere.json"])
def test_nothing_there(model: str) -> None:
    with pytest.raises(ConfigError, match="does not exist; expected a config.json or a folder with one"):
        find_source(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is a folder without a config.json"),
        ("{", "is no known model"),
        ("{}", "is no known model"),
        ('{"model_type": "abacus"}', "is no known model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "is no known model"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_source(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, num_hidden_layers=5),
        GPT2Config(n_embd=32, n_layer=5, n_head=4, vocab_size=96, bos_token_id=1, eos_token_id=2),
        BertConfig(**SIZES, num_hidden_layers=5),
    ],
    ids=["llama", "gpt2", "bert"],
)
def test_fewer_layers_of_equal_blocks(config: PretrainedConfig) -> None:
    source = Source(name="tiny", config=config)
    assert source.skeleton(layers=2).config.num_hidden_layers == 2
    assert config.num_hidden_layers == 5
    assert alike_blocks(source, 2) == [[0, 1]] * 5


def test_fewer_layers_of_blocks_of_two_kinds() -> None:
    """Sliding windows and full attention take turns."""
    config = Gemma2Config(**SIZES, num_hidden_layers=5, num_key_value_heads=2, head_dim=8)
    assert alike_blocks(Source(name="tiny", config=config), 2) == [[0], [1], [0], [1], [0]]
    few = Source(name="tiny", config=config).skeleton(layers=3)
    assert few.config.layer_types == config.layer_types[:3]  # type: ignore[union-attr]
    config.layer_types = ["sliding_attention"] * 4 + ["full_attention"]
    with pytest.raises(
        ConfigError, match="`layers` is 3 and block 4 of tiny is like none of them; expected at least 5"
    ):
        alike_blocks(Source(name="tiny", config=config), 3)


@pytest.mark.parametrize("layers", [0, 1, 6])
def test_layers_out_of_range(layers: int) -> None:
    source = Source(name="tiny", config=LlamaConfig(**SIZES, num_hidden_layers=5))
    with pytest.raises(ConfigError, match=f"`layers` is {layers}; expected 2..5 for tiny"):
        source.skeleton(layers=layers)


def test_a_config_that_builds_no_model() -> None:
    config = BertConfig(hidden_size=30, num_attention_heads=4, num_hidden_layers=2)
    with pytest.raises(
        ConfigError, match="tiny cannot be built from its config: The hidden size .30. is not a multiple"
    ):
        Source(name="tiny", config=config).skeleton()


def test_a_function_that_builds_no_model() -> None:
    with pytest.raises(ConfigError, match="returned a int"):
        Source(name="odd", build=lambda: 3).skeleton()  # type: ignore[arg-type, return-value]
    assert isinstance(Source(name="plain", build=lambda: nn.Linear(2, 2)).skeleton(), nn.Linear)
