"""An output head in its parts, so that the last step from hidden states to logits can run in chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flwr_splitkd.errors import ConfigError

__all__ = ["Head", "LogitTransform", "head_logits", "match_vocabulary", "transform_", "transform_slope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """What a model does to its logits after the head's matrix product.

    ``logits = softcap * tanh(scale * (h @ W.T + b) / softcap)``, without the tanh where ``softcap`` is None.

    Gemma 2 sets ``softcap`` (its ``final_logit_softcapping``), Cohere sets ``scale`` (its ``logit_scale``),
    and Granite divides, so its ``scale`` is ``1 / logits_scaling``.

    Parameters
    ----------
    scale
        Factor on the raw logits, finite and not 0.
    softcap
        Bound on the absolute value of a logit, > 0; None for no bound.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ConfigError(
                f"`scale` is {self.scale}; expected a finite number other than 0. "
                "Use 1.0 for a model that does not scale its logits."
            )
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ConfigError(
                f"`softcap` is {self.softcap}; expected a finite number > 0. "
                "Use None for a model that does not cap its logits."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """An output head: ``logits = transform(hidden @ weight.T + bias)``.

    Parameters
    ----------
    weight
        One row per vocabulary entry. With ``requires_grad`` False it costs no gradient memory.
    bias
        One value per vocabulary entry, of the weight's dtype; None for none.
    transform
        What happens to the logits afterwards.

    Raises
    ------
    ConfigError
        If ``weight`` is no matrix of floats, or ``bias`` does not fit it.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    transform: LogitTransform = field(default_factory=LogitTransform)

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if self.weight.ndim != 2 or not self.weight.is_floating_point():
            raise ConfigError(
                f"`weight` has shape {tuple(self.weight.shape)} and dtype {self.weight.dtype}; expected a "
                "[vocab, hidden] matrix of floats. Pass the weight of the model's output embedding."
            )
        if self.bias is None:
            return
        if self.bias.shape != self.weight.shape[:1] or self.bias.dtype != self.weight.dtype:
            raise ConfigError(
                f"`bias` has shape {tuple(self.bias.shape)} and dtype {self.bias.dtype}; expected "
                f"{(self.weight.shape[0],)} and {self.weight.dtype} to fit the weight. "
                "Pass the bias of the same layer."
            )

    @property
    def vocab_size(self) -> int:
        """Number of vocabulary entries."""
        return self.weight.shape[0]

    def first(self, vocab_size: int) -> Head:
        """Return the head of the first entries, sharing this one's memory."""
        bias = None if self.bias is None else self.bias[:vocab_size]
        return Head(weight=self.weight[:vocab_size], bias=bias, transform=self.transform)


def match_vocabulary(teacher_size: int, student_size: int, policy: Literal["slice", "refuse"]) -> int:
    """Return how many of the teacher's first vocabulary entries the student is compared with.

    A teacher's surplus entries may be left out, and its probabilities are then renormalised over the rest.
    Missing ones are never made up: a padded logit of 0 would be a probability that no model ever gave.

    Parameters
    ----------
    teacher_size, student_size
        Number of logits of each model.
    policy
        What to do with a larger teacher: "slice" leaves out its surplus entries, "refuse" raises.

    Raises
    ------
    ConfigError
        If the teacher's vocabulary is smaller than the student's, or larger under "refuse".
    """
    if teacher_size < student_size:
        raise ConfigError(
            f"the teacher's vocabulary is {teacher_size}; expected at least {student_size}, the student's. "
            "Choose a teacher and a student that share a tokenizer, or shrink the student's output embedding."
        )
    if teacher_size > student_size and policy == "refuse":
        raise ConfigError(
            f"the teacher's vocabulary is {teacher_size}; expected {student_size}, the student's. If the "
            f"first {student_size} entries mean the same in both, set `teacher_vocab` to 'slice'."
        )
    return student_size


def head_logits(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    workspace: Float[Tensor, " size"],
) -> Float[Tensor, "tokens vocab"]:
    """Compute ``hidden @ weight.T + bias`` into a reused workspace.

    The product runs in the weight's dtype, as the model's own head does, and is widened to the workspace's
    before anything else happens to it: a softmax in bfloat16 would be off by a percent.

    Parameters
    ----------
    hidden
        Hidden states of the weight's dtype.
    weight, bias
        The head.
    workspace
        At least ``tokens * vocab`` elements, overwritten. The result is a view of it.
    """
    tokens, vocab = hidden.shape[0], weight.shape[0]
    # Vocabulary first in memory: the product of a tall matrix with a narrow one is faster than its transpose.
    out = workspace[: tokens * vocab].view(vocab, tokens)
    if weight.dtype == out.dtype:
        torch.mm(weight, hidden.T, out=out)
    else:
        out.copy_(torch.mm(weight, hidden.T))
    if bias is not None:
        out.add_(bias.unsqueeze(1))
    return out.T


def transform_(logits: Float[Tensor, "tokens vocab"], transform: LogitTransform) -> Float[Tensor, "tokens vocab"]:
    """Apply ``softcap * tanh(scale * logits / softcap)`` in place.

    Parameters
    ----------
    logits
        Raw logits, overwritten.
    transform
        The model's.
    """
    if transform.scale != 1.0:
        logits.mul_(transform.scale)
    if transform.softcap is not None:
        # tanh would turn an infinite logit into a harmless one; this is 0 for a finite row and NaN for any
        # other.
        non_finite = logits.sum(-1, keepdim=True).mul_(0.0)
        logits.div_(transform.softcap).tanh_().mul_(transform.softcap).add_(non_finite)
    return logits


def transform_slope(
    logits: Float[Tensor, "tokens vocab"], transform: LogitTransform
) -> Float[Tensor, "tokens vocab"] | float:
    """Return the derivative of :func:`transform_` as a function of its result.

    ``scale * (1 - (logits / softcap)^2)``, since ``tanh' = 1 - tanh^2``; ``scale`` alone without a softcap.

    Parameters
    ----------
    logits
        Transformed logits, left as they are.
    transform
        The model's.
    """
    if transform.softcap is None:
        return transform.scale
    return (logits / transform.softcap).square_().neg_().add_(1.0).mul_(transform.scale)
