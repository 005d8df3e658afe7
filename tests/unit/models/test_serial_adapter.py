from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import SerialAdapterConfig, SerialAdapters
from tiny_llms import VOCAB, WIDTH, tiny_llm

IDS = torch.arange(4, 24).reshape(2, 10)


def trained(model: nn.Module, config: SerialAdapterConfig, seed: int = 0) -> SerialAdapters:
    adapters = SerialAdapters(model, config, seed=seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return adapters


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("llama", ("self_attn.o_proj", "mlp.down_proj")),
        ("gpt2", ("attn.c_proj", "mlp.c_proj")),
        ("qwen2", ("self_attn.o_proj", "mlp.down_proj")),
    ],
)
def test_the_usual_layers_and_nothing_else(name: str, ends: tuple[str, ...]) -> None:
    model = tiny_llm(name)
    names = list(model.state_dict())
    before = model(input_ids=IDS).logits
    adapters = SerialAdapters(model, SerialAdapterConfig(bottleneck=8))
    assert len(adapters.layer_names) == 4 and all(layer.endswith(ends) for layer in adapters.layer_names)
    shapes = {parameter.shape for parameter in adapters.parameters_by_name().values()}
    assert shapes == {(8, WIDTH), (8,), (WIDTH, 8), (WIDTH,)}
    with adapters.attached(model):
        assert torch.equal(model(input_ids=IDS).logits, before), "an untrained adapter changes nothing"
    with trained(model, adapters.config).attached(model):
        assert not torch.allclose(model(input_ids=IDS).logits, before, atol=1e-2)
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("activation", "function"),
    [("gelu", functional.gelu), ("relu", torch.relu), ("silu", functional.silu), ("tanh", torch.tanh)],
)
def test_the_formula(activation: str, function: object) -> None:
    layer = nn.ModuleDict({"o_proj": nn.Linear(6, 5)})
    config = SerialAdapterConfig(bottleneck=3, activation=activation, target_modules=("o_proj",))
    adapters = trained(layer, config)
    weights = adapters.parameters_by_name()
    x = torch.randn(4, 6)
    plain = layer["o_proj"](x)
    inner = function(plain @ weights["o_proj.down.weight"].T + weights["o_proj.down.bias"])  # type: ignore[operator]
    expected = plain + inner @ weights["o_proj.up.weight"].T + weights["o_proj.up.bias"]
    with adapters.attached(layer):
        torch.testing.assert_close(layer["o_proj"](x), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_under_checkpointing(use_reentrant: bool) -> None:
    model = tiny_llm().requires_grad_(False).train()
    adapters = trained(model, SerialAdapterConfig(bottleneck=8))
    embedded = model.get_input_embeddings()(IDS)  # type: ignore[operator]

    def gradients() -> dict[str, torch.Tensor]:
        with adapters.attached(model):
            loss = model(inputs_embeds=embedded.clone().requires_grad_(), labels=IDS, use_cache=False).loss
            torch.autograd.backward(loss)
        found = {name: parameter.grad.clone() for name, parameter in adapters.parameters_by_name().items()}
        adapters.zero_grad()
        return found

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})  # type: ignore[operator]
    for name, gradient in gradients().items():
        assert torch.equal(gradient, plain[name]), name
        assert gradient.any(), name


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft 0.18 says so of any model
def test_beside_lora_on_the_same_layers() -> None:
    model = tiny_llm()
    adapters = trained(model, SerialAdapterConfig(bottleneck=8))
    with adapters.attached(model):
        expected = model(input_ids=IDS).logits
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj", "down_proj"]))
    assert SerialAdapters(model, adapters.config).layer_names == adapters.layer_names
    with adapters.attached(model), tuned.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, expected)


def test_a_half_precision_model_keeps_its_dtype() -> None:
    model = tiny_llm().to(torch.bfloat16)
    adapters = trained(model, SerialAdapterConfig(bottleneck=8))
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    with adapters.attached(model):
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16


def test_the_seed_alone_decides_the_weights() -> None:
    model = tiny_llm()
    before = torch.get_rng_state()
    first, again, other = (SerialAdapters(model, SerialAdapterConfig(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in first.parameters_by_name().items():
        assert torch.equal(parameter, again.parameters_by_name()[name])
        assert torch.equal(parameter, other.parameters_by_name()[name]) == ("up" in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 0}, "`bottleneck` is 0; expected an integer of at least 1"),
        ({"bottleneck": 2.0}, "`bottleneck` is 2.0"),
        ({"activation": "softmax"}, "expected one of gelu, relu, silu, tanh"),
        ({"target_modules": ()}, "expected a tuple of names"),
        ({"target_modules": ["o_proj"]}, "expected a tuple of names"),
    ],
)
def test_what_is_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SerialAdapterConfig(**settings)  # type: ignore[arg-type]


def test_layers_that_are_not_there() -> None:
    with pytest.raises(
        ConfigError, match="'c_proj' and LlamaForCausalLM has no such layer.*It has: down_proj, gate_proj"
    ):
        SerialAdapters(tiny_llm(), SerialAdapterConfig(target_modules=("o_proj", "c_proj")))
    odd = nn.Sequential(nn.Linear(VOCAB, 4))
    with pytest.raises(ConfigError, match="None and Sequential has no such layer; .* It has: 0"):
        SerialAdapters(odd, SerialAdapterConfig())
