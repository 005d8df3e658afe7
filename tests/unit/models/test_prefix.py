from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from flwr_splitkd.errors import ConfigError, TensorError
from flwr_splitkd.models import PrefixedLLM
from tiny_llms import BOS, EOS, LLMS, VOCAB, WIDTH, tiny_llm

# Padding in every place: none, on the right, on the left, in between.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0]])
LABELS = torch.tensor([[11, 12, 13, EOS], [21, EOS, -100, -100], [31, 32, EOS, -100], [-100, 41, -100, EOS]])


def prefix(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(seed))


def row_logits(model: nn.Module, embedded: Tensor) -> Tensor:
    """Of one sequence without padding."""
    logits: Tensor = model(inputs_embeds=embedded.unsqueeze(0), use_cache=False).logits[0]
    return logits


def plain_loss(model: nn.Module, given: Tensor) -> Tensor:
    """Row by row, without padding, from whole logits."""
    losses = []
    for row, mask, labels in zip(given, MASK, LABELS, strict=True):
        real, answer = row[mask.bool()], labels[labels >= 0]
        embedded = torch.cat([real, model.get_input_embeddings()(answer)])  # type: ignore[operator]
        logits = row_logits(model, embedded)[len(real) - 1 : -1]
        losses.append(functional.cross_entropy(logits, answer, reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("name", LLMS)
def test_loss_and_gradient_are_those_of_unpadded_rows(name: str) -> None:
    model = tiny_llm(name).requires_grad_(False)
    ours, theirs = prefix().requires_grad_(), prefix().requires_grad_()
    terms = PrefixedLLM(model).loss(ours, MASK, LABELS)
    expected = plain_loss(model, theirs)
    torch.autograd.backward([terms.loss, expected])
    assert terms.num_tokens == 11
    torch.testing.assert_close(terms.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert ours.grad is not None and not ours.grad[MASK == 0].any() and ours.grad[MASK == 1].any(-1).all()


def test_logits_are_made_for_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llm()
    llm = PrefixedLLM(model)
    rows = []
    linear = functional.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] == VOCAB:
            rows.append(x.shape)
        return linear(x, weight, bias)

    monkeypatch.setattr(functional, "linear", counting)
    llm.loss(prefix(), MASK, LABELS)
    assert rows == []
    model(inputs_embeds=prefix())
    assert rows == [(4, 6, WIDTH)]


def greedy(model: nn.Module, embedded: Tensor, most: int) -> list[int]:
    """Without a cache, from whole logits."""
    tokens: list[int] = []
    while len(tokens) < most and EOS not in tokens:
        tokens.append(int(row_logits(model, embedded)[-1].argmax()))
        added = model.get_input_embeddings()(torch.tensor(tokens[-1:]))  # type: ignore[operator]
        embedded = torch.cat([embedded, added])
    return tokens


@pytest.mark.parametrize("name", LLMS)
def test_answers_are_those_of_a_greedy_loop_without_cache(name: str) -> None:
    model = tiny_llm(name)
    # A penalty in the model's own settings must not change what is most probable.
    model.generation_config = GenerationConfig(eos_token_id=EOS, bos_token_id=BOS, repetition_penalty=3.0)
    own = model.generation_config
    with torch.no_grad():
        model.get_output_embeddings().weight[EOS] *= 2.5  # type: ignore[operator]  # some rows end early
        expected = [greedy(model, row[mask.bool()], 8) for row, mask in zip(prefix(), MASK, strict=True)]
    tokens = PrefixedLLM(model).generate(prefix(), MASK, max_new_tokens=8)
    assert [[token for token in row if token >= 0] for row in tokens.tolist()] == expected
    for row in tokens.tolist():
        if EOS in row:
            assert set(row[row.index(EOS) + 1 :]) <= {-100}
    assert tokens.shape[1] == max(map(len, expected))
    assert model.generation_config is own


def test_some_answers_end_and_some_do_not() -> None:
    """Else the test above would say little."""
    model = tiny_llm()
    llm = PrefixedLLM(model)
    first = llm.generate(prefix(), MASK, max_new_tokens=8)
    model.generation_config.eos_token_id = [int(first[0, 2]), 7]  # type: ignore[union-attr]
    tokens = llm.generate(prefix(), MASK, max_new_tokens=8)
    place = first[0].tolist().index(int(first[0, 2]))
    assert torch.equal(tokens[0, : place + 1], first[0, : place + 1])
    assert (tokens[0, place + 1 :] == -100).all()


def test_the_first_token_goes_before_the_prefix() -> None:
    model = tiny_llm()
    longer, mask = PrefixedLLM(model).with_bos(prefix(), MASK)
    bos = model.get_input_embeddings().weight[BOS]  # type: ignore[operator]
    assert torch.equal(longer[:, 0], bos.expand(4, -1)) and torch.equal(longer[:, 1:], prefix())
    assert mask[:, 0].all() and torch.equal(mask[:, 1:], MASK)
    for config in (model.config, model.generation_config):
        config.bos_token_id = None  # type: ignore[union-attr]
    assert torch.equal(PrefixedLLM(model).with_bos(prefix(), MASK)[0], prefix())
    model.config.bos_token_id = VOCAB  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"`bos_token_id` of the LLM is 96; expected 0\.\.95.*`add_bos`"):
        PrefixedLLM(model).with_bos(prefix(), MASK)


def test_a_batch_without_answers_has_no_loss() -> None:
    given = prefix().requires_grad_()
    terms = PrefixedLLM(tiny_llm()).loss(given, MASK, torch.full_like(LABELS, -100))
    torch.autograd.backward(terms.loss)
    assert terms.num_tokens == 0 and float(terms.loss) == 0
    assert given.grad is not None and not given.grad.any()


def test_sequences_that_cannot_be() -> None:
    llm = PrefixedLLM(tiny_llm())
    mask = MASK.clone()
    mask[2] = 0
    with pytest.raises(TensorError, match="Row 2 has no position"):
        llm.loss(prefix(), mask, LABELS)
    with pytest.raises(TensorError, match="Row 2 has no position"):
        llm.generate(prefix(), mask, max_new_tokens=2)
    labels = LABELS.clone()
    labels[2] = -100
    assert llm.loss(prefix(), mask, labels).num_tokens == 8, "a row without an answer needs no prefix"
    with pytest.raises(TensorError, match=r"65 positions long; expected at most 64"):
        llm.generate(prefix(), MASK, max_new_tokens=59)


_BERT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft 0.18 says so of any model
def test_models_that_cannot_continue_a_prefix() -> None:
    with pytest.raises(ConfigError, match="BertForMaskedLM, which does not generate"):
        PrefixedLLM(BertForMaskedLM(BertConfig(**_BERT)))
    with pytest.raises(ConfigError, match="a position sees those after it"):
        PrefixedLLM(BertLMHeadModel(BertConfig(**_BERT)))
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration, which does not generate"):
        sizes = {"vocab_size": 64, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 32}
        PrefixedLLM(T5ForConditionalGeneration(T5Config(**sizes)))
    with pytest.raises(ConfigError, match="takes no `inputs_embeds`"):
        PrefixedLLM(nn.Linear(2, 2))
    tuned = get_peft_model(tiny_llm(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="with adapters; expected one without"):
        PrefixedLLM(tuned.get_base_model())
