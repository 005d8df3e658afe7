from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models import PretrainedModel, build_skeleton, fingerprint, materialize
from flwr_splitkd.split import DeviceHalf, find_layout

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False)).save_pretrained(tmp_path, max_shard_size="40kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path


def test_whole_skeleton_and_part_are_one_model(folder: Path) -> None:
    builder = PretrainedModel(folder)
    whole, skeleton = builder(), build_skeleton(builder)
    layout = find_layout(skeleton)
    assert all(p.is_meta for p in skeleton.parameters())
    assert fingerprint(skeleton, layout) == fingerprint(whole, find_layout(whole))
    half = DeviceHalf(skeleton, 2, layout)
    part = builder.load_part(half.state_names())
    assert list(part) == list(half.state_names())
    materialize(half, part)
    for name, tensor in half.model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])


def test_only_the_named_tensors_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Recorder:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self._file = safe_open(*args, **kwargs)

        def __enter__(self) -> Recorder:
            self._opened = self._file.__enter__()
            return self

        def __exit__(self, *exc: object) -> None:
            self._file.__exit__(*exc)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._opened.get_tensor(name)

    monkeypatch.setattr("flwr_splitkd.models.pretrained.safe_open", Recorder)
    names = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
    PretrainedModel(folder).load_part(names)
    assert sorted(read) == names


def test_dtype_is_the_same_everywhere(folder: Path) -> None:
    builder = PretrainedModel(folder, dtype="bfloat16")
    assert next(builder().parameters()).dtype == torch.bfloat16
    assert next(builder.skeleton().parameters()).dtype == torch.bfloat16
    assert builder.load_part(["model.norm.weight"])["model.norm.weight"].dtype == torch.bfloat16


def test_config_options_reach_the_skeleton(tmp_path: Path) -> None:
    LlamaModel(LlamaConfig(**TINY)).save_pretrained(tmp_path)
    builder = PretrainedModel(tmp_path, task="sequence-classification", num_labels=5)
    assert builder.skeleton().score.weight.shape == (5, 32)


def test_a_checkpoint_of_the_base_model(tmp_path: Path) -> None:
    base = LlamaModel(LlamaConfig(**TINY))
    base.save_pretrained(tmp_path)
    part = PretrainedModel(tmp_path).load_part(["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(part["model.layers.0.mlp.up_proj.weight"], base.layers[0].mlp.up_proj.weight)


def test_a_tied_projection_is_read_under_the_embeddings_name(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96))
    model.save_pretrained(tmp_path)
    part = PretrainedModel(tmp_path).load_part(["lm_head.weight"])
    assert torch.equal(part["lm_head.weight"], model.transformer.wte.weight)


def test_a_tensor_that_is_not_in_the_files(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"`score\.weight` is not in the safetensors files of"):
        PretrainedModel(folder).load_part(["score.weight"])


def test_a_folder_without_safetensors(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(StoreError, match=r"has no model\.safetensors"):
        PretrainedModel(folder).load_part(["model.norm.weight"])


def test_a_broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(StoreError, match="cannot be read as a safetensors index"):
        PretrainedModel(folder).load_part(["model.norm.weight"])


def test_unknown_task_and_dtype(folder: Path) -> None:
    with pytest.raises(ConfigError, match="`task` is 'translation'; expected one of"):
        PretrainedModel(folder, task="translation")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`dtype` is 'float7'"):
        PretrainedModel(folder, dtype="float7").skeleton()


def test_repr_hides_the_token() -> None:
    shown = repr(PretrainedModel("org/name", token="hf_secret", revision="main"))
    assert shown == "PretrainedModel('org/name', task='causal-lm', revision='main')"


@pytest.mark.parametrize("saved_with_head", [True, False])
def test_an_encoder_is_read_without_head_and_pooler(saved_with_head: bool, tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    (RobertaForMaskedLM if saved_with_head else RobertaModel)(config).save_pretrained(tmp_path)
    builder = PretrainedModel(tmp_path, task="encoder")
    whole, skeleton = builder(), builder.skeleton()
    assert isinstance(whole, RobertaModel) and whole.pooler is None
    assert list(skeleton.state_dict()) == list(whole.state_dict())
    names = [name for name in whole.state_dict() if ".layer.1." in name]
    part = builder.load_part(names)
    assert list(part) == names
    assert all(torch.equal(part[name], whole.state_dict()[name]) for name in names)
    ids = torch.tensor([[3, 9, 4]])
    assert whole.eval()(input_ids=ids).last_hidden_state.shape == (1, 3, 16)
