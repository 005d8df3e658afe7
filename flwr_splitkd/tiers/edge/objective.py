"""From the two models' outputs to the loss, for each kind of task."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flwr_splitkd.distill import DistillationLoss, Head, LossTerms, TopK, match_vocabulary
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import HeadTap, find_head
from flwr_splitkd.split import EdgeHalf
from flwr_splitkd.tiers.edge.compute import EdgeCompute
from flwr_splitkd.tiers.edge.outputs import class_logits
from flwr_splitkd.tiers.edge.teacher import EdgeTeacher
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["TASKS", "Objective", "StepLoss", "TaskName"]

TaskName = Literal["causal-lm", "masked-lm", "classification"]

TASKS: dict[str, pb.Task] = {
    "causal-lm": pb.TASK_CAUSAL_LM,
    "masked-lm": pb.TASK_MASKED_LM,
    "classification": pb.TASK_CLASSIFICATION,
}


class StepLoss(NamedTuple):
    """A micro-batch's loss and what is summed over a turn."""

    terms: LossTerms
    num_correct: int


class Objective:
    """The distillation loss of one student and one teacher.

    Parameters
    ----------
    student
        The whole student.
    teacher
        None when the loss has no distillation term.
    loss
        Settings of the loss.
    task
        How labels relate to outputs.
    compute
        How the student's forward pass computes; the loss is in the weights' own type.

    Raises
    ------
    ConfigError
        If the loss needs a teacher and there is none, the vocabularies do not fit, or the task is unknown.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: EdgeTeacher | None,
        loss: DistillationLoss,
        task: TaskName,
        compute: EdgeCompute | None = None,
    ) -> None:
        if task not in TASKS:
            raise ConfigError(f"`task` is {task!r}; expected one of {', '.join(TASKS)}.")
        if loss.kd_ratio > 0 and teacher is None:
            raise ConfigError(
                f"`kd_ratio` is {loss.kd_ratio} and there is no teacher; expected one. "
                "Pass `teacher`, or kd_ratio=0 to train on the labels alone."
            )
        self.task = TASKS[task]
        self.loss = loss
        self.teacher = teacher if loss.kd_ratio > 0 else None
        self._student, self.compute = student, compute or EdgeCompute()
        self._head: Head | None = None if task == "classification" else find_head(student)
        if self._head is not None and self.teacher is not None and self.teacher.head is not None:
            # Asked again in each step, but a run that cannot work should end before the first device is called.
            vocab = match_vocabulary(self.teacher.head.vocab_size, self._head.vocab_size, loss.teacher_vocab)
            self.teacher.compare(vocab)

    def __call__(
        self,
        half: EdgeHalf,
        smashed: Float[Tensor, "batch ..."],
        inputs: dict[str, Tensor],
        labels: Int[Tensor, "batch ..."],
        taught: Float[Tensor, "batch ..."] | None,
        num_tokens: int,
    ) -> StepLoss:
        """Finish the student's forward pass and compute the loss, divided by `num_tokens`.

        `taught` is what the teacher made of the same batch, see `EdgeTeacher.outputs`; None for the labels alone.
        """
        return self.loss_of(self.outputs(half, smashed, inputs), taught, labels, num_tokens)

    def outputs(
        self, half: EdgeHalf, smashed: Float[Tensor, "batch ..."], inputs: dict[str, Tensor]
    ) -> Float[Tensor, "batch ..."]:
        """Finish the student's forward pass: final hidden states ``[batch, positions, hidden]``, or a classifier's logits."""
        with self.compute.casting(smashed.device):
            if self._head is None:
                return self.compute.in_type_of(class_logits(half(smashed, inputs), "student"), smashed)
            with HeadTap(self._student) as tap:
                half(smashed, inputs)
        return self.compute.in_type_of(tap.hidden, smashed)

    def precision(self, outputs: Tensor) -> float:
        """Relative distance of two neighbouring values of the type in which such outputs were computed."""
        return torch.finfo(torch.bfloat16 if self.compute.autocast else outputs.dtype).eps

    def loss_of(
        self,
        outputs: Float[Tensor, "batch ..."],
        taught: Float[Tensor, "batch ..."] | None,
        labels: Int[Tensor, "batch ..."],
        num_tokens: int,
    ) -> StepLoss:
        """Compute the loss of what both models gave, divided by `num_tokens`."""
        loss = self.loss if taught is not None else _labels_only(self.loss)
        if self._head is None:
            terms = loss.from_logits(outputs, taught, labels.flatten(), num_tokens=num_tokens)
            return StepLoss(terms, int((outputs.detach().argmax(-1) == labels.flatten()).sum()))
        teacher_hidden: Tensor | TopK | None = None
        teacher_head: Head | None = None
        if self.teacher and taught is not None:
            rows = taught.flatten(0, -2)
            teacher_hidden = TopK.unpack(rows) if self.teacher.top_k else rows
            teacher_head = self.teacher.head
        loss = self.loss if teacher_hidden is not None else _labels_only(self.loss)
        terms = loss.from_hidden(
            outputs.flatten(0, -2), self._head, teacher_hidden, teacher_head, labels.flatten(), num_tokens=num_tokens
        )
        return StepLoss(terms, 0)


def _labels_only(loss: DistillationLoss) -> DistillationLoss:
    """The same loss without its distillation term, for evaluation."""
    return DistillationLoss(kd_ratio=0.0, ignore_index=loss.ignore_index, chunk_size=loss.chunk_size)
