"""A teacher's distributions by k entries of each: smaller than its hidden states, and lossy.

The gradient of ``KL(p || q)`` with respect to the student's logits is ``q - p``. So whatever stands for p and is p on average
leaves the gradient as it is on average, and adds noise to it. The k largest entries alone are never p on average; here the largest
are kept, and the other places go to a sample of the rest, each of whose entries stands for as much probability as any other's
(systematic sampling with probability proportional to size: Madow, "On the theory of systematic sampling, II", 1949). Anshumann et
al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", 2025, show for samples with replacement what the bias
costs.

Other divergences are not linear in p. For them the k largest are kept, and all others share what is left.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flwr_splitkd.distill.head import Head, head_logits, transform_
from flwr_splitkd.errors import ConfigError

__all__ = ["Others", "TopK", "top_k_logits"]

Others = Literal["sampled", "even"]

# Its exponential is no more than nothing beside any probability, and its product with 0 is 0, as that of -inf is not.
_LEAST_LOG = math.log(torch.finfo(torch.float32).tiny)
# 2^64 over the golden ratio, as a signed number: its multiples are spread evenly over the integers.
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)


class TopK(NamedTuple):
    """Logits of k entries of each token, and one logit that all other entries are given.

    Attributes
    ----------
    values, indices
        The entries' logits, and their places in the vocabulary.
    rest
        The logit of each other entry.
    kl_offset
        Nats to be added to the divergence from these entries, so that it is right on average, too. No gradient depends on it.
    """

    values: Float[Tensor, "tokens k"]
    indices: Int[Tensor, "tokens k"]
    rest: Float[Tensor, " tokens"]
    kl_offset: Float[Tensor, " tokens"]

    def dense(self, rows: Int[Tensor, " chunk"], workspace: Tensor, vocab: int) -> Float[Tensor, "chunk vocab"]:
        """Logits of some tokens over the whole vocabulary, in the workspace's memory."""
        logits = workspace[: rows.numel() * vocab].view(rows.numel(), vocab)
        logits.copy_(self.rest[rows, None].expand(-1, vocab))
        return logits.scatter_(1, self.indices[rows], self.values[rows].to(logits.dtype))

    def pack(self) -> Float[Tensor, "tokens columns"]:
        """All of it in one float32 tensor of ``2 (k + 1)`` columns; a place is exact up to 16,777,216."""
        numbers = torch.stack([self.rest.float(), self.kl_offset.float()], dim=1)
        return torch.cat([self.values.float(), self.indices.float(), numbers], dim=1)

    @classmethod
    def unpack(cls, packed: Float[Tensor, "tokens columns"]) -> TopK:
        """Undo `pack`."""
        k = packed.shape[1] // 2 - 1
        return cls(packed[:, :k], packed[:, k : 2 * k].long(), packed[:, -2], packed[:, -1])


@torch.no_grad()
def top_k_logits(
    hidden: Float[Tensor, "tokens hidden"],
    head: Head,
    *,
    k: int,
    temperature: float,
    others: Others = "sampled",
    chunk_size: int = 128,
) -> tuple[TopK, Float[Tensor, " tokens"]]:
    """Return k entries of every token, and the probability at `temperature` of all that is not kept exactly.

    Parameters
    ----------
    hidden
        Final hidden states.
    head
        Of the vocabulary that the student is compared on.
    k
        From 1 to the vocabulary's size less one.
    temperature
        At which the loss will compare the distributions.
    others
        ``"sampled"``: some of the k entries are a sample of what is not kept exactly, and the rest is left out; at `temperature`
        each entry's probability is right on average. For ``beta = 0``. The sample is drawn by the largest entries' own places: the
        same distributions give the same sample, whoever asks and when.
        ``"even"``: the k largest are exact, and all others share evenly what is left.
    chunk_size
        Tokens whose logits are in memory at once.

    Raises
    ------
    ConfigError
        If `k` is out of range.
    """
    vocab = head.vocab_size
    if not 1 <= k < vocab:
        raise ConfigError(
            f"`teacher_top_k` is {k}; expected 1..{vocab - 1} for a vocabulary of {vocab}, or None for all."
        )
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    workspace = hidden.new_empty(min(chunk_size, len(hidden)) * vocab, dtype=dtype)
    keep = _with_a_sample if others == "sampled" else _with_an_even_rest
    parts, masses = [], []
    for start in range(0, len(hidden), chunk_size):
        logits = transform_(
            head_logits(hidden[start : start + chunk_size], head.weight, head.bias, workspace), head.transform
        )
        part, mass = keep(logits, k, temperature)
        parts.append(part)
        masses.append(mass)
    return TopK(*(torch.cat(column) for column in zip(*parts, strict=True))), torch.cat(masses)


def _with_an_even_rest(logits: Tensor, k: int, temperature: float) -> tuple[TopK, Tensor]:
    """Overwrites the logits."""
    values, indices = logits.topk(k, dim=1)
    total = (logits / temperature).logsumexp(1)
    others = logits.scatter_(1, indices, -math.inf).div_(temperature).logsumexp(1)
    rest = temperature * (others - math.log(logits.shape[1] - k))
    return TopK(values, indices, rest, torch.zeros_like(rest)), (others - total).exp()


def _with_a_sample(logits: Tensor, k: int, temperature: float) -> tuple[TopK, Tensor]:
    """Overwrites the logits."""
    probabilities = logits.div_(temperature).sub_(logits.logsumexp(1, keepdim=True)).exp_()
    entropy = torch.special.entr(probabilities).sum(1)
    weights, indices, mass = sample_entries(probabilities, k)
    values = temperature * weights.log().clamp_min(_LEAST_LOG)
    # Of KL(p || q) = -H(p) - sum p log q the second term is right on average; the first is that of fewer entries.
    offset = torch.special.entr(weights).sum(1) - entropy
    return TopK(values, indices, torch.full_like(mass, temperature * _LEAST_LOG), offset), mass


def sample_entries(
    probabilities: Float[Tensor, "tokens vocab"], k: int, start: Float[Tensor, " tokens"] | None = None
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"], Float[Tensor, " tokens"]]:
    """Choose k entries of each row and what each stands for, so that their sum is 1 and every entry is right on average.

    An entry is kept as it is if it is larger than what each sampled one will stand for. Along the running sum of the others go as
    many steps of equal size as there are places left, so that an entry is met as often as its probability asks for.

    Parameters
    ----------
    probabilities
        Rows that sum to 1; overwritten.
    k
        Less than the vocabulary.
    start
        Where in its step each row's walk begins, uniform in [0, 1). None derives it from the places of the row's largest entries.

    Returns
    -------
    weights, indices, mass
        What each entry stands for, its place, and the sum of those that are a sample.
    """
    largest, places = probabilities.topk(k, dim=1)
    # With j entries kept, each of the k - j others stands for an equal part of what is left.
    left = 1 - (largest.cumsum(1) - largest)
    each = left / torch.arange(k, 0, -1, device=largest.device)
    exact = (largest > each).cumprod(1).bool()
    count = k - exact.sum(1, keepdim=True)
    running = probabilities.scatter_(1, places, largest.masked_fill(exact, 0.0)).cumsum(1)
    mass = running[:, -1:]
    begin = _pseudo_random(places) if start is None else start
    number = torch.arange(k, device=largest.device) - (k - count)
    along = (number.clamp_min(0) + begin[:, None].to(mass.dtype)) / count.clamp_min(1) * mass
    along = torch.minimum(along, torch.nextafter(mass, torch.zeros_like(mass)))  # rounded, the last step may end beyond
    met = torch.searchsorted(running, along, right=True).clamp_max(probabilities.shape[1] - 1)
    weights = torch.where(exact, largest, mass / count.clamp_min(1))
    return weights, torch.where(exact, places, met), mass[:, 0].masked_fill(count[:, 0] == 0, 0.0)


def _pseudo_random(places: Int[Tensor, "tokens k"]) -> Float[Tensor, " tokens"]:
    """Return a number in [0, 1) for each row, always the same for the same places."""
    odd = 2 * torch.arange(places.shape[1], device=places.device) + 1
    mixed = (places * odd).sum(1) * _SPREAD  # wraps around
    return ((mixed >> 40) & 0xFFFFFF).double() / (1 << 24)
