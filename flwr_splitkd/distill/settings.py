"""The distillation loss as a user sets it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from flwr_splitkd.distill.head import Head
from flwr_splitkd.distill.kd import LossTerms, distillation_loss, distillation_loss_from_logits
from flwr_splitkd.distill.top_k import TopK
from flwr_splitkd.errors import ConfigError

__all__ = ["DistillationLoss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationLoss:
    """Settings of the loss ``(1 - kd_ratio) * CE + kd_ratio * temperature^2 * D``.

    D is the divergence of the two models' distributions at ``temperature``; see
    :func:`~flwr_splitkd.distill.kd.distillation_loss` for the formula.

    Parameters
    ----------
    temperature
        Softens both distributions inside D, > 0.
    kd_ratio
        Weight of the distillation term, in [0, 1]; cross-entropy with the labels has the rest. At 0 the
        teacher is not needed.
    beta
        In [0, 1]: 0 is the forward KL(teacher || student), 1 the reverse KL(student || teacher), and between
        them lies the generalised Jensen-Shannon divergence.
    ignore_index
        The label of tokens that take no part in the loss.
    chunk_size
        Tokens whose logits are in memory at once, >= 1. More is faster and takes more memory: about
        ``5 * chunk_size * vocab * 4`` bytes. Fewer than 64 is slow.
    teacher_vocab
        What to do with a teacher whose vocabulary is larger than the student's: "refuse" it, or "slice" its
        first entries, which must then mean the same as the student's. A smaller one is always refused.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    temperature: float = 1.0
    kd_ratio: float = 0.5
    beta: float = 0.0
    ignore_index: int = -100
    chunk_size: int = 128
    teacher_vocab: Literal["slice", "refuse"] = "refuse"

    def __post_init__(self) -> None:
        """Check the ranges; NaN is out of every range."""
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"`temperature` is {self.temperature}; expected a finite number > 0. "
                "Use 1.0 to compare the distributions as they are."
            )
        if not 0 <= self.kd_ratio <= 1:
            raise ConfigError(
                f"`kd_ratio` is {self.kd_ratio}; expected 0 to 1. Use 0 for the labels alone, 1 for the teacher alone."
            )
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"`beta` is {self.beta}; expected 0 to 1. Use 0 for forward KL, 1 for reverse KL.")
        if self.chunk_size < 1:
            raise ConfigError(f"`chunk_size` is {self.chunk_size}; expected at least 1 token. Leave it out if unsure.")
        if self.teacher_vocab not in ("slice", "refuse"):
            raise ConfigError(f"`teacher_vocab` is {self.teacher_vocab!r}; expected 'slice' or 'refuse'. Use 'refuse'.")

    def from_hidden(
        self,
        student_hidden: Float[Tensor, "tokens student_hidden"],
        student_head: Head,
        teacher_hidden: Float[Tensor, "tokens teacher_hidden"] | TopK | None,
        teacher_head: Head | None,
        labels: Int[Tensor, " tokens"],
        *,
        num_tokens: int | None = None,
    ) -> LossTerms:
        """Call :func:`~flwr_splitkd.distill.kd.distillation_loss` with these settings."""
        return distillation_loss(
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            labels,
            temperature=self.temperature,
            kd_ratio=self.kd_ratio,
            beta=self.beta,
            ignore_index=self.ignore_index,
            chunk_size=self.chunk_size,
            teacher_vocab=self.teacher_vocab,
            num_tokens=num_tokens,
        )

    def from_logits(
        self,
        student_logits: Float[Tensor, "tokens vocab"],
        teacher_logits: Float[Tensor, "tokens teacher_vocab"] | None,
        labels: Int[Tensor, " tokens"],
        *,
        num_tokens: int | None = None,
    ) -> LossTerms:
        """Call :func:`~flwr_splitkd.distill.kd.distillation_loss_from_logits` with these settings."""
        return distillation_loss_from_logits(
            student_logits,
            teacher_logits,
            labels,
            temperature=self.temperature,
            kd_ratio=self.kd_ratio,
            beta=self.beta,
            ignore_index=self.ignore_index,
            chunk_size=self.chunk_size,
            teacher_vocab=self.teacher_vocab,
            num_tokens=num_tokens,
        )
