"""A teacher by its largest logits: what is kept is exact, what is left out shares what is left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flwr_splitkd.distill import DistillationLoss, Head, LogitTransform, TopK, top_k_logits
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
    found, rest_mass = top_k_logits(hidden, head, k=k, temperature=temperature, chunk_size=chunk_size)
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
    assert found.pack().shape == (TOKENS, 11)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_filled_up_distribution(beta: float) -> None:
    teacher_hidden, teacher_head = _teacher()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    head = Head(weight=torch.randn(VOCAB, 6, generator=generator, dtype=torch.float64))
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    labels[2] = -100
    loss = DistillationLoss(temperature=2.0, kd_ratio=0.6, beta=beta, chunk_size=4)
    found, _ = top_k_logits(teacher_hidden, teacher_head, k=5, temperature=2.0)
    terms = loss.from_hidden(hidden, head, found, teacher_head, labels)
    (gradient,) = torch.autograd.grad(terms.loss, hidden)
    dense = found.dense(torch.arange(TOKENS), torch.empty(TOKENS * VOCAB, dtype=torch.float64), VOCAB)
    expected = loss.from_logits(hidden @ head.weight.T, dense, labels)
    (expected_gradient,) = torch.autograd.grad(expected.loss, hidden)
    assert float(terms.loss) == pytest.approx(float(expected.loss), rel=1e-12)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-10)


def test_more_entries_come_nearer() -> None:
    teacher_hidden, teacher_head = _teacher()
    hidden, head = _teacher(seed=2)
    loss, labels = DistillationLoss(kd_ratio=1.0), torch.zeros(TOKENS, dtype=torch.int64)
    exact = float(loss.from_hidden(hidden, head, teacher_hidden, teacher_head, labels).kl_sum)
    apart = []
    for k in (1, 8, 36):
        found, _ = top_k_logits(teacher_hidden, teacher_head, k=k, temperature=1.0)
        apart.append(abs(float(loss.from_hidden(hidden, head, found, teacher_head, labels).kl_sum) - exact))
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-9


@pytest.mark.parametrize("k", [0, -1, VOCAB, VOCAB + 1])
def test_out_of_range(k: int) -> None:
    hidden, head = _teacher()
    with pytest.raises(ConfigError, match=f"`teacher_top_k` is {k}; expected 1..36"):
        top_k_logits(hidden, head, k=k, temperature=1.0)
