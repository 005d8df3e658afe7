"""A teacher's distributions by their largest entries: smaller than its hidden states, and lossy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flwr_splitkd.distill.head import Head, head_logits, transform_
from flwr_splitkd.errors import ConfigError

__all__ = ["TopK", "top_k_logits"]


class TopK(NamedTuple):
    """The k largest logits of each token, and one logit that all other entries are given.

    At the temperature that it was made for, the others together have the probability that they had; how it was distributed among
    them is lost.

    Attributes
    ----------
    values, indices
        The largest logits and their places in the vocabulary.
    rest
        The logit of each other entry.
    """

    values: Float[Tensor, "tokens k"]
    indices: Int[Tensor, "tokens k"]
    rest: Float[Tensor, " tokens"]

    def dense(self, rows: Int[Tensor, " chunk"], workspace: Tensor, vocab: int) -> Float[Tensor, "chunk vocab"]:
        """Logits of some tokens over the whole vocabulary, in the workspace's memory."""
        logits = workspace[: rows.numel() * vocab].view(rows.numel(), vocab)
        logits.copy_(self.rest[rows, None].expand(-1, vocab))
        return logits.scatter_(1, self.indices[rows], self.values[rows].to(logits.dtype))

    def pack(self) -> Float[Tensor, "tokens columns"]:
        """All of it in one float32 tensor of ``2 k + 1`` columns; a place is exact up to 16,777,216."""
        return torch.cat([self.values.float(), self.indices.float(), self.rest.float()[:, None]], dim=1)

    @classmethod
    def unpack(cls, packed: Float[Tensor, "tokens columns"]) -> TopK:
        """Undo `pack`."""
        k = packed.shape[1] // 2
        return cls(packed[:, :k], packed[:, k : 2 * k].long(), packed[:, -1])


@torch.no_grad()
def top_k_logits(
    hidden: Float[Tensor, "tokens hidden"], head: Head, *, k: int, temperature: float, chunk_size: int = 128
) -> tuple[TopK, Float[Tensor, " tokens"]]:
    """Return the k largest logits of every token, and the probability that the others had together at `temperature`.

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
    parts, masses = [], []
    for start in range(0, len(hidden), chunk_size):
        logits = transform_(
            head_logits(hidden[start : start + chunk_size], head.weight, head.bias, workspace), head.transform
        )
        values, indices = logits.topk(k, dim=1)
        total = (logits / temperature).logsumexp(1)
        others = logits.scatter_(1, indices, -math.inf).div_(temperature).logsumexp(1)
        parts.append(TopK(values, indices, temperature * (others - math.log(vocab - k))))
        masses.append((others - total).exp())
    return TopK(*(torch.cat(column) for column in zip(*parts, strict=True))), torch.cat(masses)
