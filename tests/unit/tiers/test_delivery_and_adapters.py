"""What travels when little trains, and the whole student on a device at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_model
from test_turns import CNN_BLOCKS, Cnn, Federation, images, llama, sentences
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.errors import StoreError
from flwr_splitkd.models import inner_model, save_student, set_tied_embeddings
from flwr_splitkd.split import find_layout
from flwr_splitkd.tiers.units import FROZEN, versioned_units


def llama_lora() -> nn.Module:
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(llama(), config)  # type: ignore[arg-type]


def gpt2() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"vocab_size": 400, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False))
    model.transformer.wte.requires_grad_(False)
    return model


def test_every_tensor_belongs_to_one_versioned_unit() -> None:
    model = inner_model(llama_lora())
    units = versioned_units(model, find_layout(model))
    assert sorted(name for names in units.values() for name in names) == sorted(model.state_dict())
    for unit, names in units.items():
        assert all(("lora_" in name) == (not unit.endswith(FROZEN)) for name in names), unit


def test_a_frozen_table_beside_trainable_positions_travels_once(tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=gpt2)
    first, _ = federation.turn(0, 1, sentences())
    federation.turn(1, 1, sentences())
    back, _ = federation.turn(0, 1, sentences())
    table = 400 * 16 * 4
    # Its positions and its block changed on the other device, its table did not.
    assert back.handover_bytes > 0
    assert first.handover_bytes - back.handover_bytes < table  # moments did not exist then
    again, _ = federation.turn(2, 1, sentences())
    assert again.handover_bytes - back.handover_bytes == table


def test_with_adapters_the_base_stays_where_it_is(tmp_path: Path) -> None:
    lora, full = Federation(tmp_path / "lora", build=llama_lora), Federation(tmp_path / "full")
    before = lora.weights()
    for federation in (lora, full):
        for device, cut in ((0, 2), (1, 2)):
            federation.turn(device, cut, sentences())
    back_lora, _ = lora.turn(0, 2, sentences())
    back_full, _ = full.turn(0, 2, sentences())
    adapters = sum(
        tensor.numel() * 4
        for name, tensor in before.items()
        if "lora_" in name and ("layers.0." in name or "layers.1." in name)
    )
    scalars = 2 * 8 * 4  # the step counts of AdamW, of 8 matrices, down and up
    assert back_lora.handover_bytes == 2 * 3 * adapters + scalars
    assert back_lora.handover_bytes < back_full.handover_bytes / 2
    after = lora.weights()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if "lora_" in name}


def llama_tied() -> nn.Module:
    torch.manual_seed(2)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, tie_word_embeddings=True))
    set_tied_embeddings(model, "freeze")
    return model


def llama_tied_lora() -> nn.Module:
    return get_peft_model(llama_tied(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [llama, llama_lora, llama_tied, llama_tied_lora])
def test_the_whole_student_on_the_device(build: object, tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=build)  # type: ignore[arg-type]
    federation.turn(0, 2, sentences())
    whole = federation.student.layout.num_blocks
    before = federation.weights()
    outcome, report = federation.turn(0, whole, sentences(), mode="deliver")
    other, _ = federation.turn(1, whole, sentences(), mode="deliver")
    assert report is not None
    assert (report.num_steps, outcome.num_steps, outcome.cut) == (0, 0, whole)
    assert 0 < outcome.handover_bytes < other.handover_bytes, "what the cache has does not travel"
    assert all(torch.equal(tensor, before[name]) for name, tensor in federation.weights().items())
    federation.student.model.eval()
    ids = sentences()[0]["input_ids"]
    for device in (0, 1):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / f"student-{device}").eval()
        expected = federation.student.model(input_ids=ids).logits
        assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_another_module_is_delivered_as_safetensors(tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=Cnn, task="classification", blocks=CNN_BLOCKS)
    federation.turn(0, 1, images())
    federation.turn(0, len(CNN_BLOCKS), images(), mode="deliver")
    loaded = Cnn()
    load_model(loaded, str(tmp_path / "student-0" / "model.safetensors"))
    for name, tensor in federation.weights().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_training_goes_on_after_a_delivery(tmp_path: Path) -> None:
    with_delivery, without = Federation(tmp_path / "with"), Federation(tmp_path / "without")
    for federation in (with_delivery, without):
        federation.turn(0, 2, sentences())
        if federation is with_delivery:
            federation.turn(0, 4, sentences(), mode="deliver")
        federation.turn(0, 3, sentences())
    for name, tensor in with_delivery.weights().items():
        assert torch.equal(tensor, without.weights()[name]), name


def test_a_folder_that_cannot_be_written_keeps_what_it_had(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    save_student(llama(), folder)
    kept = (folder / "model.safetensors").read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        save_student(llama(), tmp_path / "file" / "student")
    save_student(llama(), folder)
    assert (folder / "model.safetensors").read_bytes() == kept
