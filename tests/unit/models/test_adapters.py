"""Adapters on a student: which tensors they put where, and how their settings and weights travel."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.errors import ConfigError, UncuttableModelError
from flwr_splitkd.models import (
    add_adapters,
    build_skeleton,
    exchanged_state,
    find_head,
    fingerprint,
    inner_model,
    load_exchanged_state,
    peft_from_json,
    peft_to_json,
    set_tied_embeddings,
)
from flwr_splitkd.split import DeviceHalf, EdgeHalf, find_layout, verify_cut

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def llama(tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, tie_word_embeddings=tied))


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=3, num_labels=4))


def test_only_adapters_train_and_the_skeleton_agrees() -> None:
    whole = inner_model(add_adapters(llama(), LORA))
    skeleton = inner_model(build_skeleton(llama, LORA))
    trainable = [name for name, parameter in whole.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert [n for n, p in skeleton.named_parameters() if p.requires_grad] == trainable
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert fingerprint(skeleton, find_layout(skeleton)) == fingerprint(whole, find_layout(whole))


def test_a_model_without_peft_is_left_alone() -> None:
    model = llama()
    assert add_adapters(model, None) is model
    assert inner_model(model) is model
    assert exchanged_state(model).keys() == model.state_dict().keys()


@pytest.mark.parametrize("cut", [1, 2])
def test_a_classifier_that_trains_beside_lora_belongs_to_the_head(cut: int) -> None:
    whole = inner_model(add_adapters(bert(), LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False))).eval()
    layout = find_layout(whole)
    assert {name for name in layout.head if name.startswith("classifier.")} == {
        f"classifier.{part}.{leaf}"
        for part in ("original_module", "modules_to_save.default")
        for leaf in ("weight", "bias")
    }
    verify_cut(whole, layout)
    inputs = {"input_ids": torch.randint(1, 32, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    expected = whole(**inputs).logits
    expected.sum().backward()
    name = "classifier.modules_to_save.default.weight"
    gradient = whole.get_parameter(name).grad

    other = inner_model(add_adapters(bert(), LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False))).eval()
    other.load_state_dict(whole.state_dict())
    edge = EdgeHalf(other, cut, layout)
    device_model = inner_model(add_adapters(bert(), LoraConfig(r=2, task_type="SEQ_CLS"))).eval()
    device_model.load_state_dict(whole.state_dict())
    device = DeviceHalf(device_model, cut, layout)
    got = edge(device(inputs), device.edge_inputs(inputs)).logits
    got.sum().backward()
    assert torch.equal(got, expected)
    assert torch.equal(other.get_parameter(name).grad, gradient)


def test_tied_embeddings_that_do_not_train_need_no_choice() -> None:
    model = inner_model(add_adapters(llama(tied=True), LORA))
    set_tied_embeddings(model, "refuse")
    verify_cut(model, find_layout(model))


def test_exchanged_state_is_what_peft_applications_exchange() -> None:
    model = add_adapters(llama(), LORA)
    state = {name: tensor.clone() for name, tensor in exchanged_state(model).items()}
    reference = get_peft_model(llama(), LORA)
    assert state.keys() == get_peft_model_state_dict(reference, save_embedding_layers=False).keys()
    load_exchanged_state(reference, state)
    for name, tensor in get_peft_model_state_dict(reference, save_embedding_layers=False).items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=5, lora_dropout=0.25, target_modules=["q_proj"], use_rslora=True),
        LoraConfig(target_modules="all-linear", rank_pattern={"q_proj": 4}, bias="lora_only"),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
)
def test_settings_travel_as_text(config: object) -> None:
    text = peft_to_json(config)  # type: ignore[arg-type]
    assert "peft_version" not in text
    other = peft_from_json(text)
    assert type(other) is type(config)
    assert other is not None
    assert {k: v for k, v in other.to_dict().items() if k != "peft_version"} == {
        k: v
        for k, v in config.to_dict().items()  # type: ignore[attr-defined]
        if k != "peft_version"
    }
    assert isinstance(add_adapters(llama(), other), PeftModel)


def test_no_adapters_travel_as_no_text() -> None:
    assert peft_to_json(None) == ""
    assert peft_from_json("") is None


@pytest.mark.parametrize("text", ['{"peft_type": "NO_SUCH"}', '{"peft_type": "LORA", "rnk": 3}', "{", '{"r": 3}'])
def test_settings_of_another_version_are_refused_with_their_text(text: str) -> None:
    with pytest.raises(ConfigError, match="which this PEFT does not take"):
        peft_from_json(text)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no_such_module"):
        add_adapters(llama(), LoraConfig(target_modules=["no_such_module"]))
    with pytest.raises(ConfigError, match="expected one of the two"):
        add_adapters(add_adapters(llama(), LORA), LORA)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ConfigError, match="PromptTuningConfig; expected adapters that are layers"):
        add_adapters(llama(), prompts)
    with pytest.raises(ConfigError, match="PromptTuningConfig; expected adapters that are layers"):
        inner_model(get_peft_model(llama(), prompts))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft 0.18 says so of any model
@pytest.mark.parametrize("setting", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapted_output_projection_is_refused(setting: dict[str, list[str]]) -> None:
    model = inner_model(add_adapters(llama(), LoraConfig(**{"target_modules": ["q_proj"], **setting})))
    with pytest.raises(UncuttableModelError, match="Leave it out of `target_modules` and `modules_to_save`"):
        find_head(model)
