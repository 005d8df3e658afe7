"""Cross-entropy and divergences per token, each with its gradient in closed form.

These functions overwrite what they are given: a chunk of logits is the largest thing in memory, and every
copy of it that is not made is a larger chunk that fits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["TokenLosses", "divergence_", "log_softmax_", "token_losses_"]


class TokenLosses(NamedTuple):
    """Losses of some tokens and the gradient of their weighted sum.

    Attributes
    ----------
    cross_entropy
        In nats per token.
    kl
        The divergence in nats per token, at the given temperature, without the factor temperature squared.
    gradient
        Of ``sum((1 - kd_ratio) * cross_entropy + kd_ratio * temperature^2 * kl)`` with respect to the
        student's logits.
    """

    cross_entropy: Float[Tensor, " tokens"]
    kl: Float[Tensor, " tokens"]
    gradient: Float[Tensor, "tokens vocab"]


def log_softmax_(logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
    """Replace logits by log-probabilities in place.

    Parameters
    ----------
    logits
        Overwritten. A row with NaN or +inf becomes NaN.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    return logits.sub_(logits.exp().sum(-1, keepdim=True).log_())


def divergence_(
    student: Float[Tensor, "tokens vocab"], teacher: Float[Tensor, "tokens vocab"], beta: float
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens vocab"]]:
    r"""Compute the divergence of student and teacher and its gradient with respect to the student's logits.

    With teacher probabilities p and student probabilities q (Agarwal et al., "On-Policy Distillation of
    Language Models", section 3, in whose direction TRL's ``beta`` points, too):

    - beta = 0: ``KL(p || q)``, gradient ``q - p``;
    - beta = 1: ``KL(q || p)``, gradient ``q * (log q - log p - KL(q || p))``;
    - between: with the mixture ``m = beta * p + (1 - beta) * q``, the generalised Jensen-Shannon divergence
      ``beta * KL(p || m) + (1 - beta) * KL(q || m)``,
      gradient ``(1 - beta) * q * (log q - log m - KL(q || m))``.

    The end points are definitions: the expression between them tends to 0 at both ends.

    Parameters
    ----------
    student, teacher
        Log-probabilities, both overwritten; the returned gradient is the student's storage.
    beta
        In [0, 1].
    """
    if beta == 0:
        p = teacher.exp()
        value = teacher.sub_(student).mul_(p).sum(-1)
        return value, student.exp_().sub_(p)

    q = student.exp()
    if beta == 1:
        log_ratio = student.sub_(teacher)
        value = torch.mul(q, log_ratio, out=teacher).sum(-1)
        return value, log_ratio.sub_(value.unsqueeze(-1)).mul_(q)

    p = teacher.exp()
    # Where p and q both underflow, log m would be -inf and the term 0 * inf = NaN; it should be 0.
    log_m = (p * beta).add_(q, alpha=1 - beta).clamp_min_(torch.finfo(p.dtype).tiny).log_()
    kl_teacher = teacher.sub_(log_m).mul_(p).sum(-1)
    log_ratio = student.sub_(log_m)
    kl_student = torch.mul(q, log_ratio, out=log_m).sum(-1)
    gradient = log_ratio.sub_(kl_student.unsqueeze(-1)).mul_(q).mul_(1 - beta)
    return kl_teacher.mul_(beta).add_(kl_student, alpha=1 - beta), gradient


def token_losses_(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"] | None,
    labels: Int[Tensor, " tokens"],
    *,
    temperature: float,
    kd_ratio: float,
    beta: float,
) -> TokenLosses:
    """Compute cross-entropy, divergence and the gradient of their weighted sum.

    The loss of a token is ``(1 - kd_ratio) * CE + kd_ratio * T^2 * D(T, beta)`` with both models' logits
    divided by T inside D. The factor T^2 keeps the gradient's size independent of T (Hinton et al.,
    "Distilling the Knowledge in a Neural Network", section 2); since ``d(logits / T) = 1 / T``, one T of it
    remains in the gradient.

    Parameters
    ----------
    student_logits, teacher_logits
        Overwritten. The teacher's are not looked at when ``kd_ratio`` is 0.
    labels
        In [0, vocab).
    temperature
        T > 0.
    kd_ratio
        In [0, 1].
    beta
        In [0, 1], see :func:`divergence_`.
    """
    log_q = log_softmax_(student_logits)
    tokens = torch.arange(labels.numel(), device=labels.device)
    cross_entropy = -log_q[tokens, labels]
    gradient = log_q.exp().mul_(1 - kd_ratio)
    gradient[tokens, labels] -= 1 - kd_ratio
    if kd_ratio == 0 or teacher_logits is None:
        return TokenLosses(cross_entropy, torch.zeros_like(cross_entropy), gradient)

    if temperature != 1.0:
        # Softmax ignores a shift of its row, so the log-probabilities at T = 1 serve as logits.
        log_q = log_softmax_(log_q.div_(temperature))
        teacher_logits.div_(temperature)
    kl, kl_gradient = divergence_(log_q, log_softmax_(teacher_logits), beta)
    return TokenLosses(cross_entropy, kl, gradient.add_(kl_gradient, alpha=kd_ratio * temperature))
