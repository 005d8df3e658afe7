"""A device's optimiser steps: several micro-batches in flight, one gradient after another, then the step.

    forward 0 .. forward depth-1, (receive k, backward k, forward k+depth)* .. -> optimiser

While micro-batch k+1 is computed here, k is on its way and k-1 on the edge. Weights do not change within a step and
gradients add up in the same order whatever the depth, so it changes nothing but the time, and the memory: a device holds
the activations of as many micro-batches as are in flight.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flwr_splitkd.errors import DataError, ProtocolError
from flwr_splitkd.split import DeviceHalf, grad_norms, scale_gradients
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.telemetry.spans import SpanRecorder
from flwr_splitkd.tiers.device.batches import Batch, check_token_ids, count_labels, split_labels
from flwr_splitkd.tiers.device.passes import forward_pass, received_gradient
from flwr_splitkd.tiers.device.teacher import TeacherFeed
from flwr_splitkd.tiers.optimizer import set_learning_rate
from flwr_splitkd.tiers.outbox import Outbox, Parcel
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["NO_GRADIENT", "Step", "Steps"]

NO_GRADIENT = -1.0
"""In GradientNorms: this parameter took no part in the step."""


@dataclass(frozen=True, slots=True)
class Step:
    """The micro-batches of an optimiser step, labels apart, and how many labels of all of them count."""

    microbatches: Sequence[tuple[dict[str, Tensor], Tensor]]
    num_tokens: int

    @classmethod
    def of(cls, batches: Sequence[Batch], plan: pb.Begin) -> Step:
        """Divide batches into micro-batches as the plan says.

        Raises
        ------
        DataError
            If labels are missing or do not fit.
        """
        whole = [split_labels(batch, plan.task, plan.ignore_index) for batch in batches]
        pieces = [piece for inputs, labels in whole for piece in _divide(inputs, labels, plan.num_microbatches)]
        return cls(pieces, sum(count_labels(labels, plan.ignore_index) for _, labels in pieces))


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A micro-batch that the edge has not answered yet."""

    header: pb.Forward
    smashed: Tensor
    sent_s: float


class Steps:
    """Takes the optimiser steps of a turn.

    Parameters
    ----------
    link, outbox
        To the edge, which has sent the plan.
    plan
        The turn's.
    half
        The device's, with the weights that it trains.
    optimizer
        Of its trainable parameters; None if there are none, or nothing trains.
    teacher
        Sends what the teacher needs; None without one.
    compute_device
        Where the half is.
    timeout_s
        Seconds to wait for each answer of the edge.
    spans
        Told of each stage.
    """

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        plan: pb.Begin,
        half: DeviceHalf,
        optimizer: torch.optim.Optimizer | None,
        teacher: TeacherFeed | None,
        *,
        compute_device: torch.device,
        timeout_s: float,
        spans: SpanRecorder,
    ) -> None:
        self._link, self._outbox, self._plan = link, outbox, plan
        self._half, self._optimizer, self._teacher = half, optimizer, teacher
        self._device, self._timeout_s, self._spans = compute_device, timeout_s, spans
        self._training = plan.mode == pb.MODE_TRAIN
        self._trainable = [(n, p) for n, p in half.named_parameters() if p.requires_grad]
        self._taught = plan.first_step - 1, 0  # the last micro-batch whose teacher data are sent
        self.next_step = plan.first_step
        self.num_examples = 0
        self.waited_s = 0.0
        self._exchange_s = math.inf

    def ready(self, step: Step) -> Step:
        """The same step with its inputs checked and where the half is; its labels stay here, and are sent as they are.

        Raises
        ------
        DataError
            If the student has no entry for a token.
        """
        placed = []
        for inputs, labels in step.microbatches:
            check_token_ids(inputs, self._half.model)
            placed.append(({name: tensor.to(self._device) for name, tensor in inputs.items()}, labels))
        return Step(placed, step.num_tokens)

    def run(self, step: Step, seeds: DropoutSeeds, following: Callable[[], Step | None]) -> Step | None:
        """Take one step, which is `ready`; return the next one, too, which `following` gives while the edge is at work.

        Raises
        ------
        SplitKDError
            Why it came to nothing.
        """
        in_flight: deque[_InFlight] = deque()
        update: pb.Update | None = None
        for index, (inputs, labels) in enumerate(step.microbatches):
            if len(in_flight) == max(self._plan.pipeline_depth, 1):
                update = self._finish(in_flight.popleft())
            seeds.at(self.next_step, index)
            in_flight.append(self._begin(step, index, inputs, labels))
            self.num_examples += len(labels)
        coming = self._look_ahead(following)
        while in_flight:
            update = self._finish(in_flight.popleft())
        self._outbox.flush()
        if self._training:
            self._update(update)
        self.next_step += 1
        return coming

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return self.next_step - self._plan.first_step

    @property
    def exchange_s(self) -> float:
        """Least seconds from a micro-batch's departure to its answer; 0 before the first."""
        return self._exchange_s if math.isfinite(self._exchange_s) else 0.0

    def receive(self, expected: str) -> WireMessage:
        """Wait for the edge's next message, and count for how long."""
        started_s = time.monotonic()
        try:
            return self._link.receive(expected, self._timeout_s)
        finally:
            self.waited_s += time.monotonic() - started_s

    # ---- one micro-batch

    def _begin(self, step: Step, index: int, inputs: dict[str, Tensor], labels: Tensor) -> _InFlight:
        """Forward pass, and send its outcome."""
        header = pb.Forward(
            step=self.next_step,
            microbatch=index,
            num_microbatches=len(step.microbatches),
            step_num_tokens=step.num_tokens,
        )
        self._teach(self.next_step, index, inputs)
        with self._span("forward", index):
            smashed = forward_pass(self._half, inputs, training=self._training, model="student")
        parcels = {"smashed": Parcel(smashed, self._plan.uplink_codec), "labels": Parcel(labels)}
        if self._teacher is None or not self._teacher.has_sent_inputs(self.next_step, index):
            beside = self._half.edge_inputs(inputs)
            parcels.update((f"inputs/{name}", Parcel(tensor)) for name, tensor in beside.items())
        self._outbox.send(header, parcels, partial(self._span, "encode", index))
        return _InFlight(header, smashed, time.monotonic())

    def _finish(self, sent: _InFlight) -> pb.Update | None:
        """Receive the answer to a micro-batch and apply it."""
        header, index = sent.header, sent.header.microbatch
        with self._span("wait", index):
            answer = self.receive("Backward")
        self._check_answer(header, answer)
        self._exchange_s = min(self._exchange_s, answer.arrived_s - sent.sent_s)
        if answer.tensors:
            start_s = answer.arrived_s - answer.receive_s
            self._spans.add("receive", header.step, index, start_s, answer.receive_s)
        if self._teacher is not None:
            self._teacher.answered(header.step, index, kept=answer.body.teacher_kept)
        if self._training and sent.smashed.requires_grad:
            with self._span("decode", index):
                gradient = received_gradient(answer.tensors["gradient"], sent.smashed, header.step)
            with self._span("backward", index):
                torch.autograd.backward(sent.smashed, gradient)
        return answer.body.update if answer.body.HasField("update") else None

    def _check_answer(self, asked: pb.Forward, answer: WireMessage) -> None:
        """A gradient is applied once, to the micro-batch that it belongs to; a step's last answer ends the step."""
        got, expected = (answer.body.step, answer.body.microbatch), (asked.step, asked.microbatch)
        if got != expected:
            raise ProtocolError(
                f"The edge answered step and micro-batch {got}; expected {expected}. Nothing was applied."
            )
        if not self._training:
            return
        if "gradient" not in answer.tensors:
            raise ProtocolError(f"Backward has the tensors {sorted(answer.tensors)}; expected 'gradient' among them.")
        last = asked.microbatch + 1 == asked.num_microbatches and not self._plan.clip_gradients
        if answer.body.HasField("update") != last:
            raise ProtocolError(
                f"The edge's answer to micro-batch {asked.microbatch} of {asked.num_microbatches} in step {asked.step} "
                f"{'lacks' if last else 'has'} an update; expected one with a step's last answer alone."
            )

    # ---- the teacher, a step ahead

    def _look_ahead(self, following: Callable[[], Step | None]) -> Step | None:
        """Load the next step and send what the teacher needs of it, while the edge is at work on this one."""
        with self._span("load", 0):
            loaded = following()
            coming = self.ready(loaded) if loaded is not None else None
        if coming is not None:
            for index, (inputs, _) in enumerate(coming.microbatches):
                self._teach(self.next_step + 1, index, inputs)
        return coming

    def _teach(self, step: int, index: int, inputs: dict[str, Tensor]) -> None:
        """Send what the teacher needs of a micro-batch, once."""
        if self._teacher is None or (step, index) <= self._taught:
            return
        self._taught = step, index
        with self._spans.span("teacher", step, index):
            parcels = self._teacher(step, index, inputs, self._half.edge_inputs(inputs))
        self._outbox.send(
            pb.TeacherData(step=step, microbatch=index), parcels, partial(self._spans.span, "encode", step, index)
        )

    # ---- the step itself

    def _update(self, update: pb.Update | None) -> None:
        if self._plan.clip_gradients:
            norms = grad_norms(self._trainable)
            values = [float(norms[name]) if name in norms else NO_GRADIENT for name, _ in self._trainable]
            self._link.send(pb.GradientNorms(step=self.next_step, norms=values))
            with self._span("wait"):
                update = self.receive("Update").body
        if self._optimizer is None or update is None:
            return
        with self._span("optimizer"):
            if self._plan.clip_gradients:
                dtype = self._trainable[0][1].dtype
                scale_gradients(
                    (parameter for _, parameter in self._trainable), torch.tensor(update.clip_coefficient, dtype=dtype)
                )
            set_learning_rate(self._optimizer, update.learning_rate)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _span(self, stage: str, index: int = 0) -> AbstractContextManager[None]:
        return self._spans.span(stage, self.next_step, index)


def _divide(inputs: dict[str, Tensor], labels: Tensor, parts: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Cut a batch into at most `parts` micro-batches along its first dimension, as `torch.chunk` does."""
    if parts <= 1 or len(labels) <= 1:
        return [(inputs, labels)]
    for name, tensor in inputs.items():
        if tensor.dim() == 0 or len(tensor) != len(labels):
            raise DataError(
                f"`{name}` of a batch has shape {tuple(tensor.shape)} and there are labels of {len(labels)} samples; expected "
                "one entry for each sample, because batches are divided into micro-batches. Set `num_microbatches` to 1."
            )
    pieces = {name: tensor.chunk(parts) for name, tensor in inputs.items()}
    return [
        ({name: chunks[index] for name, chunks in pieces.items()}, part)
        for index, part in enumerate(labels.chunk(parts))
    ]
