"""A teacher by k logits of each token: the largest are exact; the others are right on average, or share evenly what is left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flwr_splitkd.distill import DistillationLoss, Head, LogitTransform, Others, TopK, top_k_logits
from flwr_splitkd.distill.top_k import sample_entries
from flwr_splitkd.errors import ConfigError

VOCAB, WIDTH, TOKENS = 37, 8, 11


def _teacher(seed: int = 0) -> tuple[Tensor, Head]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    return hidden, Head(weight=weight, bias=bias, transform=LogitTransform(scale=0.7, softcap=4.0))


def _logits(hidden: Tensor, head: Head) -> Tensor:
    assert head.bias is not None
    return 4.0 * torch.tanh(0.7 * (hidden @ head.weight.T + head.bias) / 4.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, VOCAB - 1])
@pytest.mark.parametrize("chunk_size", [3, 128])
def test_the_largest_are_exact_and_the_others_have_their_mass(temperature: float, k: int, chunk_size: int) -> None:
    hidden, head = _teacher()
    found, rest_mass = top_k_logits(hidden, head, k=k, temperature=temperature, others="even", chunk_size=chunk_size)
    dense = found.dense(torch.arange(TOKENS), torch.empty(TOKENS * VOCAB, dtype=torch.float64), VOCAB)
    expected = (_logits(hidden, head) / temperature).softmax(1)
    got = (dense / temperature).softmax(1)
    largest = expected.topk(k).indices
    assert torch.allclose(got.gather(1, largest), expected.gather(1, largest), rtol=1e-10)
    assert torch.allclose(rest_mass, 1 - expected.gather(1, largest).sum(1), atol=1e-12)
    others = got.scatter(1, largest, math.nan)
    for row, mass in zip(others, rest_mass, strict=True):
        shared = row[~row.isnan()]
        assert torch.allclose(shared, mass / (VOCAB - k) * torch.ones_like(shared))


def test_it_is_packed_exactly() -> None:
    hidden, head = _teacher()
    found, _ = top_k_logits(hidden.float(), Head(weight=head.weight.float()), k=5, temperature=2.0)
    again = TopK.unpack(found.pack())
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    assert found.pack().shape == (TOKENS, 12)


@pytest.mark.parametrize("others", ["sampled", "even"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_filled_up_distribution(beta: float, others: Others) -> None:
    teacher_hidden, teacher_head = _teacher()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    head = Head(weight=torch.randn(VOCAB, 6, generator=generator, dtype=torch.float64))
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    labels[2] = -100
    loss = DistillationLoss(temperature=2.0, kd_ratio=0.6, beta=beta, chunk_size=4)
    found, _ = top_k_logits(teacher_hidden, teacher_head, k=5, temperature=2.0, others=others)
    terms = loss.from_hidden(hidden, head, found, teacher_head, labels)
    (gradient,) = torch.autograd.grad(terms.loss, hidden)
    dense = found.dense(torch.arange(TOKENS), torch.empty(TOKENS * VOCAB, dtype=torch.float64), VOCAB)
    expected = loss.from_logits(hidden @ head.weight.T, dense, labels)
    (expected_gradient,) = torch.autograd.grad(expected.loss, hidden)
    offset = 0.6 * 2.0**2 * float(found.kl_offset[labels != -100].mean())
    assert float(terms.loss) == pytest.approx(float(expected.loss) + offset, rel=1e-9)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-10)


def test_more_entries_come_nearer() -> None:
    teacher_hidden, teacher_head = _teacher()
    hidden, head = _teacher(seed=2)
    loss, labels = DistillationLoss(kd_ratio=1.0), torch.zeros(TOKENS, dtype=torch.int64)
    exact = float(loss.from_hidden(hidden, head, teacher_hidden, teacher_head, labels).kl_sum)
    apart = []
    for k in (1, 8, 36):
        found, _ = top_k_logits(teacher_hidden, teacher_head, k=k, temperature=1.0, others="even")
        apart.append(abs(float(loss.from_hidden(hidden, head, found, teacher_head, labels).kl_sum) - exact))
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-9


def _rows(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    logits = {
        "usual": 2 * torch.randn(TOKENS, VOCAB, generator=generator, dtype=torch.float64),
        "flat": torch.zeros(TOKENS, VOCAB, dtype=torch.float64),
        "steep": 12 * torch.randn(TOKENS, VOCAB, generator=generator, dtype=torch.float64),
        "certain": 1000 * torch.eye(VOCAB, dtype=torch.float64)[:TOKENS],
    }
    return logits[kind].softmax(1)


@pytest.mark.parametrize("kind", ["usual", "flat", "steep", "certain"])
@pytest.mark.parametrize("k", [1, 6, VOCAB - 1])
def test_a_sample_is_right_on_average(kind: str, k: int) -> None:
    """Over all places where the walk may begin, each entry stands for its own probability, and every sample for 1."""
    expected, starts = _rows(kind), 1000
    mean = torch.zeros_like(expected)
    for number in range(starts):
        start = torch.full((TOKENS,), (number + 0.5) / starts, dtype=torch.float64)
        weights, indices, mass = sample_entries(expected.clone(), k, start)
        assert torch.allclose(weights.sum(1), torch.ones(TOKENS, dtype=torch.float64), rtol=1e-9)
        kept = weights > 1e-12
        assert all(len(set(row[here].tolist())) == int(here.sum()) for row, here in zip(indices, kept, strict=True))
        as_it_is = torch.isclose(weights, expected.gather(1, indices), rtol=1e-9)
        assert ((weights * as_it_is).sum(1) >= 1 - mass - 1e-9).all()
        mean.scatter_add_(1, indices, weights / starts)
    # An entry is met in as many of the starts as its size asks for, one more or less.
    assert float((mean - expected).abs().max()) <= 1.01 / (k * starts) + 1e-9


def test_the_largest_of_a_sample_are_exact() -> None:
    expected = torch.tensor([[0.5, 0.3, 0.05, 0.05, 0.04, 0.03, 0.03]], dtype=torch.float64)
    weights, indices, mass = sample_entries(expected.clone(), 4, torch.tensor([0.5]))
    assert indices[0, :2].tolist() == [0, 1]
    assert weights[0].tolist() == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert float(mass) == pytest.approx(0.2)
    # Steps of 0.1, the first one half of that, along 0.05, 0.1, 0.14, 0.17, 0.2.
    assert indices[0, 2:].tolist() == [3, 5]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_sample_is_the_same_whoever_asks(temperature: float) -> None:
    hidden, head = _teacher()
    found, mass = top_k_logits(hidden, head, k=5, temperature=temperature)
    for chunk_size in (1, 3):
        again, again_mass = top_k_logits(hidden, head, k=5, temperature=temperature, chunk_size=chunk_size)
        assert torch.equal(found.indices, again.indices)
        assert torch.allclose(found.values, again.values, rtol=1e-9) and torch.allclose(mass, again_mass, atol=1e-12)
    dense = found.dense(torch.arange(TOKENS), torch.empty(TOKENS * VOCAB, dtype=torch.float64), VOCAB)
    got, expected = (dense / temperature).softmax(1), (_logits(hidden, head) / temperature).softmax(1)
    exact = torch.isclose(got, expected, rtol=1e-9)
    assert torch.allclose((got * exact).sum(1), 1 - mass, atol=1e-9)
    assert (got.gather(1, found.indices) > 0).all() and torch.allclose(
        got.gather(1, found.indices).sum(1), torch.ones(TOKENS, dtype=torch.float64), rtol=1e-9
    )


def test_a_large_vocabulary_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(8, 128_256, generator=generator)).softmax(1)
    weights, indices, mass = sample_entries(probabilities.clone(), 64)
    assert torch.allclose(weights.sum(1), torch.ones(8), atol=1e-3)
    assert int(indices.min()) >= 0 and int(indices.max()) < 128_256
    assert all(len(set(row.tolist())) == 64 for row in indices)
    assert (mass > 0.1).all()


def test_the_end_of_the_walk_meets_an_entry_that_has_a_probability() -> None:
    """Rounded, a start just below 1 is 1: the last step must not end on an entry that is exact already, or on none."""
    probabilities = torch.full((1, 512), 0.5 / 511)
    probabilities[0, -1] = 0.5
    start = torch.tensor([1 - 2**-30], dtype=torch.float64)
    weights, indices, mass = sample_entries(probabilities, 64, start=start)
    assert (indices == 511).sum() == 1 and weights[indices == 511] == 0.5
    assert indices.unique().numel() == 64 and float(mass) == pytest.approx(0.5)


def test_the_gradient_of_a_sample_is_nearer_than_that_of_an_even_rest() -> None:
    """Summed over many tokens, as a step sums it: what noise does to each token goes away, what bias does stays."""
    generator = torch.Generator().manual_seed(5)
    vocab, tokens = 400, 2000
    prior = 2 * torch.randn(vocab, generator=generator, dtype=torch.float64)
    expected = (prior + torch.randn(tokens, vocab, generator=generator, dtype=torch.float64)).softmax(1)
    head = Head(weight=torch.eye(vocab, dtype=torch.float64))
    ways: tuple[Others, Others] = ("sampled", "even")
    apart = {}
    for others in ways:
        found, _ = top_k_logits(expected.log(), head, k=16, temperature=1.0, others=others)
        dense = found.dense(torch.arange(tokens), torch.empty(tokens * vocab, dtype=torch.float64), vocab).softmax(1)
        apart[others] = float((dense - expected).mean(0).abs().sum())
    assert apart["sampled"] < apart["even"] / 4, apart


def test_the_divergence_from_a_sample_is_right_on_average() -> None:
    generator = torch.Generator().manual_seed(6)
    vocab, tokens = 200, 2000
    teacher = 2 * torch.randn(tokens, vocab, generator=generator, dtype=torch.float64)
    student = teacher + torch.randn(tokens, vocab, generator=generator, dtype=torch.float64)
    head, labels = Head(weight=torch.eye(vocab, dtype=torch.float64)), torch.zeros(tokens, dtype=torch.int64)
    loss = DistillationLoss(kd_ratio=1.0, temperature=2.0)
    exact = float(loss.from_hidden(student, head, teacher, head, labels).kl_sum)
    found, _ = top_k_logits(teacher, head, k=16, temperature=2.0)
    # Of 16 out of 200 entries each token's is a quarter of a nat off, the entropy of so few alone would be more than one.
    sampled = float(loss.from_hidden(student, head, found, head, labels).kl_sum)
    assert sampled / tokens == pytest.approx(exact / tokens, abs=3 * 0.25 / tokens**0.5)
    assert float(found.kl_offset.mean()) < -1


@pytest.mark.parametrize("k", [0, -1, VOCAB, VOCAB + 1])
def test_out_of_range(k: int) -> None:
    hidden, head = _teacher()
    with pytest.raises(ConfigError, match=f"`teacher_top_k` is {k}; expected 1..36"):
        top_k_logits(hidden, head, k=k, temperature=1.0)
