from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CohereConfig,
    CohereForCausalLM,
    ElectraConfig,
    ElectraForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from flwr_splitkd.distill import LogitTransform
from flwr_splitkd.errors import UncuttableModelError
from flwr_splitkd.models import HeadTap, build_skeleton, find_head
from flwr_splitkd.split import EdgeHalf, find_layout

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.arange(4, 24).reshape(2, 10)
BUILDERS: dict[str, tuple[Callable[[], nn.Module], LogitTransform]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**TINY)), LogitTransform()),
    "gemma2": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, num_key_value_heads=2, head_dim=8)),
        LogitTransform(softcap=30.0),
    ),
    "cohere": (lambda: CohereForCausalLM(CohereConfig(**TINY)), LogitTransform(scale=0.0625)),
    "granite": (
        lambda: GraniteForCausalLM(GraniteConfig(**TINY, logits_scaling=4.0)),
        LogitTransform(scale=0.25),
    ),
    "bert": (lambda: BertForMaskedLM(BertConfig(**TINY)), LogitTransform()),
    "roberta": (lambda: RobertaForMaskedLM(RobertaConfig(**TINY)), LogitTransform()),
    "electra": (lambda: ElectraForMaskedLM(ElectraConfig(**TINY, embedding_size=16)), LogitTransform()),
}


def logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    head = find_head(model)
    raw = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.transform.scale
    cap = head.transform.softcap
    return raw if cap is None else torch.tanh(raw / cap) * cap


@pytest.mark.parametrize("name", BUILDERS)
def test_head_of_the_hidden_states_is_the_models_logits(name: str) -> None:
    build, transform = BUILDERS[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        expected = model(input_ids=IDS).logits
        names = list(model.state_dict())
        with HeadTap(model) as tap:
            assert model(input_ids=IDS).logits.shape[-1] == 0
            assert list(model.state_dict()) == names
            hidden = tap.hidden
        assert torch.equal(model(input_ids=IDS).logits, expected)
    head = find_head(model)
    assert head.transform == transform
    assert head.weight is model.get_output_embeddings().weight
    torch.testing.assert_close(logits_of(model, hidden), expected)
    assert find_head(build_skeleton(build)).transform == transform


def test_gradients_flow_through_the_tap_inside_an_edge_half() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False)).eval()
    edge = EdgeHalf(model, 2, find_layout(model))
    smashed = torch.randn(2, 10, 32, requires_grad=True)
    edge(smashed, {}).logits.sum().backward()
    expected, smashed.grad = smashed.grad, None
    with HeadTap(model) as tap:
        edge(smashed, {})
        logits_of(model, tap.hidden).sum().backward()
    assert torch.equal(smashed.grad, expected)


def test_the_projection_comes_back_after_an_error() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    with pytest.raises(RuntimeError, match="on purpose"), HeadTap(model):
        raise RuntimeError("on purpose")
    assert model(input_ids=IDS).logits.shape == (2, 10, 96)


def test_a_forward_that_the_projection_has_of_its_own_comes_back() -> None:
    """As in a model that is spread over devices: what moves its input is an attribute of the instance."""
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden) + 1
    expected = model(input_ids=IDS).logits
    with HeadTap(model):
        model(input_ids=IDS)
    assert torch.equal(model(input_ids=IDS).logits, expected)


def test_a_tap_that_nothing_ran_through() -> None:
    with (
        HeadTap(LlamaForCausalLM(LlamaConfig(**TINY))) as tap,
        pytest.raises(UncuttableModelError, match="did not call"),
    ):
        _ = tap.hidden


def test_a_classifier_has_no_head_over_the_vocabulary() -> None:
    with pytest.raises(UncuttableModelError, match="BertForSequenceClassification has no output projection"):
        find_head(BertForSequenceClassification(BertConfig(**TINY)))


class Squared(LlamaForCausalLM):
    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.square()
        return output


def test_unknown_arithmetic_on_the_logits() -> None:
    with pytest.raises(UncuttableModelError, match="Squared does something to its logits that is not known"):
        find_head(Squared(LlamaConfig(**TINY)))
