"""The distillation loss over a batch, chunk by chunk, attached to autograd.

Logits of a whole batch are never held. Each chunk of tokens computes its logits, its losses and the gradient
of its logits, which goes at once into the gradients of the hidden states and the head; autograd later only
hands these out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from flwr_splitkd.distill.formulas import TokenLosses, token_losses_
from flwr_splitkd.distill.head import Head, head_logits, match_vocabulary, transform_, transform_slope
from flwr_splitkd.distill.top_k import TopK
from flwr_splitkd.errors import ConfigError, DataError

__all__ = ["LossTerms", "distillation_loss", "distillation_loss_from_logits"]


class LossTerms(NamedTuple):
    """The loss of a batch and what it is made of.

    Attributes
    ----------
    loss
        The scalar to call ``backward()`` on, float32 (float64 for float64 inputs).
    cross_entropy_sum
        Cross-entropy summed over the counted tokens, in nats, detached. Sums add up over micro-batches.
    kl_sum
        The divergence summed over the counted tokens, in nats, without ``temperature^2``, detached; 0 when
        ``kd_ratio`` is 0.
    num_tokens
        Tokens of this batch that were counted, that is, not ignored.
    """

    loss: Float[Tensor, ""]
    cross_entropy_sum: Float[Tensor, ""]
    kl_sum: Float[Tensor, ""]
    num_tokens: int


class _HandOut(torch.autograd.Function):
    """Gives a loss whose gradients are known already its place in the graph.

    Backward hands out the saved tensors themselves if nothing scales the loss: autograd has dropped its own
    references by the time ``.grad`` is set and then takes the tensor without a copy, so a head's gradient
    exists only once. They are narrowed to half precision here and not before, because a loss that is scaled
    against underflow has to scale the wide ones.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors
        if grad_output.item() != 1.0:
            gradients = tuple(None if g is None else g * grad_output for g in gradients)
        narrowed = (None if g is None else g.to(t) for g, t in zip(gradients, ctx.dtypes, strict=True))
        return None, None, *narrowed


def _hand_out(loss: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:
    attached: Tensor = _HandOut.apply(loss, gradients, *inputs)  # type: ignore[no-untyped-call]
    return attached


def distillation_loss(
    student_hidden: Float[Tensor, "tokens student_hidden"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"] | TopK | None,
    teacher_head: Head | None,
    labels: Int[Tensor, " tokens"],
    *,
    temperature: float,
    kd_ratio: float,
    beta: float,
    ignore_index: int = -100,
    chunk_size: int = 128,
    teacher_vocab: Literal["slice", "refuse"] = "refuse",
    num_tokens: int | None = None,
) -> LossTerms:
    r"""Compute cross-entropy plus distillation from hidden states, without ever holding a batch of logits.

    .. math::
        \frac{1}{N} \sum_i (1 - r)\, \mathrm{CE}(y_i, q_i) + r\, T^2\, D_\beta(p_i^{(T)}, q_i^{(T)})

    over the tokens whose label is not ``ignore_index``; r is ``kd_ratio``, T ``temperature``, p the teacher,
    q the student, and D as in :func:`~flwr_splitkd.distill.formulas.divergence_`. Split knowledge
    distillation computes it on the edge server.

    Labels belong to the hidden state in the same place: for a causal model, shift them before the call.
    Softmax and sums run in float32 for narrower inputs. Cross-entropy is reported even when ``kd_ratio`` is
    1; it costs under a percent. Hidden states in ignored places are not looked at.

    Ranges are checked by :class:`~flwr_splitkd.distill.DistillationLoss`, not here.

    Parameters
    ----------
    student_hidden, teacher_hidden
        Final hidden states, of the dtype of their heads. The teacher never gets a gradient, and may be given by some of its
        logits instead; its head then tells the vocabulary alone.
    student_head, teacher_head
        Output heads. A student head that requires no gradient costs no ``[vocab, hidden]`` memory; one that
        does is accumulated in place, in float32. The teacher's parts may be None when ``kd_ratio`` is 0.
    labels
        In [0, vocab) or ``ignore_index``.
    temperature
        T > 0.
    kd_ratio
        In [0, 1].
    beta
        In [0, 1].
    ignore_index
        The label of tokens that take no part. A batch of nothing else has loss 0 and gradients 0.
    chunk_size
        Tokens per chunk, >= 1.
    teacher_vocab
        What to do with a larger teacher vocabulary.
    num_tokens
        N: the counted tokens of all micro-batches of an optimizer step. Default: those of this batch.

    Raises
    ------
    ConfigError
        If the teacher is missing, or widths, dtypes or vocabularies do not fit.
    DataError
        If labels are out of range, do not match the hidden states, or outnumber ``num_tokens``.
    """
    _check_hidden("student", student_hidden, student_head, labels)
    teacher: tuple[Tensor | TopK, Head] | None = None
    if kd_ratio > 0:
        if teacher_hidden is None or teacher_head is None:
            raise _missing_teacher(kd_ratio)
        if isinstance(teacher_hidden, TopK):
            _check_rows("teacher_hidden", teacher_hidden.values, labels)
        else:
            _check_hidden("teacher", teacher_hidden, teacher_head, labels)
        vocab = match_vocabulary(teacher_head.vocab_size, student_head.vocab_size, teacher_vocab)
        teacher = teacher_hidden, teacher_head.first(vocab)
    counted = _counted_tokens(labels, student_head.vocab_size, ignore_index, num_tokens)
    mean = 1 / max(1, counted.numel() if num_tokens is None else num_tokens)

    dtype = torch.promote_types(student_head.weight.dtype, torch.float32)
    size = min(chunk_size, counted.numel()) * student_head.vocab_size
    # Every chunk writes into the same memory: fresh pages would cost as much time as the softmax.
    student_workspace = student_hidden.new_empty(size, dtype=dtype)
    teacher_workspace = student_hidden.new_empty(size if teacher else 0, dtype=dtype)
    gradients = _Gradients(student_hidden, student_head, dtype)

    def chunk(rows: Tensor) -> TokenLosses:
        hidden = student_hidden[rows]
        logits = _logits(hidden, student_head, student_workspace)
        slope = transform_slope(logits, student_head.transform)
        losses = token_losses_(
            logits,
            _teacher_logits(*teacher, rows, teacher_workspace) if teacher else None,
            labels[rows].long(),
            temperature=temperature,
            kd_ratio=kd_ratio,
            beta=beta,
        )
        gradients.add_(rows, hidden, losses.gradient.mul_(slope), mean)
        if teacher and isinstance(teacher[0], TopK):
            losses.kl.add_(teacher[0].kl_offset[rows])
        return losses

    cross_entropy, kl = _over_chunks(chunk, counted, chunk_size, dtype)
    loss = (cross_entropy * (1 - kd_ratio) + kl * (kd_ratio * temperature**2)) * mean
    loss = _hand_out(loss, gradients.all(), student_hidden, student_head.weight, student_head.bias)
    return LossTerms(loss, cross_entropy, kl, counted.numel())


def distillation_loss_from_logits(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens teacher_vocab"] | None,
    labels: Int[Tensor, " tokens"],
    *,
    temperature: float,
    kd_ratio: float,
    beta: float,
    ignore_index: int = -100,
    chunk_size: int = 128,
    teacher_vocab: Literal["slice", "refuse"] = "refuse",
    num_tokens: int | None = None,
) -> LossTerms:
    """Compute the loss of :func:`distillation_loss` from logits that exist already.

    For classifiers, whose classes are few. The formulas are the same; the logits are taken as they are, with
    any softcap or scale applied.

    Parameters
    ----------
    student_logits, teacher_logits
        Final logits, one row per labelled item. The teacher never gets a gradient, and may be None when
        ``kd_ratio`` is 0.
    labels
        In [0, vocab) or ``ignore_index``.
    temperature, kd_ratio, beta, ignore_index, chunk_size, teacher_vocab, num_tokens
        As in :func:`distillation_loss`.

    Raises
    ------
    ConfigError
        If the teacher is missing or its vocabulary does not fit.
    DataError
        If labels are out of range, do not match the logits, or outnumber ``num_tokens``.
    """
    vocab = student_logits.shape[-1]
    _check_rows("student_logits", student_logits, labels)
    teacher: Tensor | None = None
    if kd_ratio > 0:
        if teacher_logits is None:
            raise _missing_teacher(kd_ratio)
        _check_rows("teacher_logits", teacher_logits, labels)
        teacher = teacher_logits[:, : match_vocabulary(teacher_logits.shape[-1], vocab, teacher_vocab)]
    counted = _counted_tokens(labels, vocab, ignore_index, num_tokens)
    mean = 1 / max(1, counted.numel() if num_tokens is None else num_tokens)

    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    gradient = torch.zeros_like(student_logits, dtype=dtype) if _wants_gradient(student_logits) else None

    def chunk(rows: Tensor) -> TokenLosses:
        # Indexing with rows copies, so the caller's logits are not what the formulas overwrite.
        losses = token_losses_(
            student_logits[rows].to(dtype),
            None if teacher is None else teacher[rows].to(dtype),
            labels[rows].long(),
            temperature=temperature,
            kd_ratio=kd_ratio,
            beta=beta,
        )
        if gradient is not None:
            gradient[rows] = losses.gradient.mul_(mean)
        return losses

    cross_entropy, kl = _over_chunks(chunk, counted, chunk_size, dtype)
    loss = (cross_entropy * (1 - kd_ratio) + kl * (kd_ratio * temperature**2)) * mean
    return LossTerms(_hand_out(loss, (gradient,), student_logits), cross_entropy, kl, counted.numel())


class _Gradients:
    """Gradients of the hidden states and the head, filled chunk by chunk; None where nobody wants one."""

    def __init__(self, hidden: Tensor, head: Head, dtype: torch.dtype) -> None:
        self.head = head
        self.hidden = torch.zeros_like(hidden, dtype=dtype) if _wants_gradient(hidden) else None
        self.weight = torch.zeros_like(head.weight, dtype=dtype) if _wants_gradient(head.weight) else None
        self.bias = torch.zeros_like(head.bias, dtype=dtype) if _wants_gradient(head.bias) else None

    def add_(self, rows: Tensor, hidden: Tensor, logits_gradient: Tensor, mean: float) -> None:
        """Add a chunk whose loss is still a sum.

        The factor ``mean`` comes last: before the products it would push small gradients under float16's
        range.
        """
        if self.hidden is not None:
            product = torch.mm(logits_gradient.to(self.head.weight.dtype), self.head.weight)
            self.hidden[rows] = product.to(self.hidden.dtype).mul_(mean)
        if self.weight is not None:
            self.weight.addmm_(logits_gradient.T, hidden.to(self.weight.dtype), alpha=mean)
        if self.bias is not None:
            self.bias.add_(logits_gradient.sum(0), alpha=mean)

    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of hidden states, weight and bias."""
        return self.hidden, self.weight, self.bias


def _over_chunks(
    chunk: Callable[[Tensor], TokenLosses], counted: Tensor, chunk_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropy and divergence over the counted tokens.

    Losses are kept per token and summed once, so that the sums do not depend on the size of the chunks.
    """
    cross_entropy, kl = torch.zeros((2, counted.numel()), dtype=dtype, device=counted.device)
    with torch.no_grad(), torch.autocast(counted.device.type, enabled=False):
        for start in range(0, counted.numel(), chunk_size):
            part = slice(start, start + chunk_size)
            cross_entropy[part], kl[part], _ = chunk(counted[part])
    return cross_entropy.sum(), kl.sum()


def _logits(hidden: Tensor, head: Head, workspace: Tensor) -> Tensor:
    """Return the final logits of a chunk as a view of the workspace."""
    return transform_(head_logits(hidden, head.weight, head.bias, workspace), head.transform)


def _teacher_logits(teacher: Tensor | TopK, head: Head, rows: Tensor, workspace: Tensor) -> Tensor:
    if isinstance(teacher, TopK):
        return teacher.dense(rows, workspace, head.vocab_size)
    return _logits(teacher[rows], head, workspace)


def _wants_gradient(tensor: Tensor | None) -> TypeGuard[Tensor]:
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def _counted_tokens(labels: Tensor, vocab: int, ignore_index: int, num_tokens: int | None) -> Tensor:
    """Return the places of the labels that count, after checking them."""
    counted = (labels != ignore_index).nonzero().squeeze(-1)
    if num_tokens is not None and num_tokens < counted.numel():
        raise DataError(
            f"`num_tokens` is {num_tokens}; expected at least {counted.numel()}, the labels counted in this "
            "batch. Pass the total over all micro-batches of the optimizer step."
        )
    if counted.numel():
        low, high = (int(x) for x in torch.aminmax(labels[counted]))
        if low < 0 or high >= vocab:
            raise DataError(
                f"a label is {low if low < 0 else high}; expected 0..{vocab - 1} for a vocabulary of "
                f"{vocab}, or {ignore_index} to ignore the token. Use the student's own tokenizer."
            )
    return counted


def _check_rows(name: str, tensor: Tensor, labels: Tensor) -> None:
    if tensor.ndim != 2 or labels.ndim != 1 or tensor.shape[0] != labels.shape[0]:
        raise DataError(
            f"`{name}` has shape {tuple(tensor.shape)} and labels {tuple(labels.shape)}; expected one "
            "row per label. Flatten batch and sequence into one dimension."
        )


def _check_hidden(model: str, hidden: Tensor, head: Head, labels: Tensor) -> None:
    _check_rows(f"{model}_hidden", hidden, labels)
    if hidden.shape[1] != head.weight.shape[1]:
        raise ConfigError(
            f"`{model}_hidden` is {hidden.shape[1]} wide; expected {head.weight.shape[1]}, the width of its "
            "head. Pass the final hidden states and the head of the same model."
        )
    if hidden.dtype != head.weight.dtype:
        raise ConfigError(
            f"`{model}_hidden` is {hidden.dtype}; expected {head.weight.dtype}, the dtype of its head. "
            "Cast the hidden states."
        )


def _missing_teacher(kd_ratio: float) -> ConfigError:
    return ConfigError(
        f"`kd_ratio` is {kd_ratio} without a teacher; expected 0. Pass the teacher's outputs, or set `kd_ratio` to 0."
    )
