"""The two halves of a split KD step and nothing else: what every peer of `versus_peers.py` exchanges tensors between.

The arithmetic is that of `_step_worker.py`: the demo's models, batches, loss and optimiser. Nothing here sends anything.
Imported by the hand-written loop and, with another interpreter, by NVFlare's job.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from _step_worker import LOSS, OPTIMIZER, batches, build_teacher, next_tokens
from split_kd_app import task
from torch import Tensor
from torch.nn import functional

from flwr_splitkd.models import HeadTap, find_head, token_embedding
from flwr_splitkd.split import DeviceHalf, EdgeHalf, find_layout

__all__ = ["PlainDevice", "PlainEdge"]


class PlainDevice:
    """The student's first blocks, the teacher's token embedding, and the data.

    Parameters
    ----------
    cut
        Blocks that run here.
    steps, batch_size
        How many batches, and of how many sequences.
    """

    def __init__(self, cut: int, steps: int, batch_size: int) -> None:
        model = task.build_student()
        self._half = DeviceHalf(model, cut, find_layout(model)).train()
        self._optimizer = OPTIMIZER.build(self._half.parameters())
        self._table, self._scale = token_embedding(build_teacher())
        self._batches = iter(batches(steps, batch_size))
        self._smashed = torch.empty(0)

    def forward(self) -> dict[str, Tensor]:
        """Return the next batch's smashed data, what goes with it, its labels, and the teacher's embeddings."""
        batch = next(self._batches)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        self._smashed = self._half(inputs)
        with torch.no_grad():
            embeddings = functional.embedding(batch["input_ids"], self._table) * self._scale
        return {
            "smashed": self._smashed.detach(),
            "teacher_embeddings": embeddings,
            "labels": next_tokens(batch["labels"]),
            **self._half.edge_inputs(inputs),
        }

    def backward(self, gradient: Tensor) -> None:
        """Finish the backward pass and take the optimiser's step."""
        torch.autograd.backward(self._smashed, gradient)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class PlainEdge:
    """The student's other blocks, the teacher, the loss.

    Parameters
    ----------
    cut
        Blocks that run on the device.
    """

    def __init__(self, cut: int) -> None:
        self._student = task.build_student()
        self._teacher = build_teacher().eval().requires_grad_(False)
        self._head, self._teacher_head = find_head(self._student), find_head(self._teacher)
        self._half = EdgeHalf(self._student, cut, find_layout(self._student)).train()
        self._teacher_half = EdgeHalf(self._teacher, 0, find_layout(self._teacher))
        self._optimizer = OPTIMIZER.build(self._half.parameters())
        self.losses: list[float] = []

    def gradient(self, message: Mapping[str, Tensor]) -> Tensor:
        """Finish both forward passes, compute the loss, return the gradient at the cut."""
        beside = ("smashed", "teacher_embeddings", "labels")
        inputs = {name: tensor for name, tensor in message.items() if name not in beside}
        smashed = message["smashed"].detach().requires_grad_(True)
        with HeadTap(self._student) as tap:
            self._half(smashed, inputs)
        with torch.no_grad(), HeadTap(self._teacher) as teacher_tap:
            self._teacher_half(message["teacher_embeddings"], inputs)
        terms = LOSS.from_hidden(
            tap.hidden.flatten(0, 1),
            self._head,
            teacher_tap.hidden.flatten(0, 1),
            self._teacher_head,
            message["labels"].flatten(),
        )
        terms.loss.backward()  # type: ignore[no-untyped-call]
        self.losses.append(float(terms.loss.detach()))
        if smashed.grad is None:
            raise RuntimeError(
                "The smashed data got no gradient; expected one, since the student has blocks after the cut."
            )
        return smashed.grad

    def update(self) -> None:
        """Take the optimiser's step."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
