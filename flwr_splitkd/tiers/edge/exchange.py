"""What the edge and one device say to each other in a turn: the plan, micro-batches, answers, the result.

Everything but computing: a turn and a cluster do that, each in its own order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flwr_splitkd.errors import PeerLostError, PeerTimeoutError, ProtocolError, SplitKDError, TensorError
from flwr_splitkd.telemetry.sensors import Energy
from flwr_splitkd.telemetry.spans import MOST_SPANS, LocatedSpan, SpanRecorder, locate_spans
from flwr_splitkd.tiers.edge.objective import Objective, StepLoss
from flwr_splitkd.tiers.edge.plan import TurnOutcome, TurnPlan, TurnSettings
from flwr_splitkd.tiers.edge.student import HANDOVERS, EdgeStudent
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.edge.teaching import Lesson, Teaching
from flwr_splitkd.tiers.energy import energy_from_wire
from flwr_splitkd.tiers.outbox import Outbox, Parcel
from flwr_splitkd.tiers.spans import spans_from_wire
from flwr_splitkd.tiers.units import decode_all, decode_one, encode_all, require_finite
from flwr_splitkd.wire.codec import codec_code
from flwr_splitkd.wire.feedback import ErrorFeedback
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Exchange", "Microbatch", "not_through"]

_log = logging.getLogger(__name__)

_IDLE_LOOK_S = 0.02
"""Seconds between two looks for other work while a device is waited for."""

_DEVICE_REMEDY = "The turn is undone; check this device's data and hardware, or lower the learning rate."
_EDGE_STAGES = ("decode", "teacher", "student", "encode", "optimizer")
_MODES = {"train": pb.MODE_TRAIN, "evaluate": pb.MODE_EVALUATE, "deliver": pb.MODE_DELIVER}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbatch:
    """A Forward, decoded.

    Parameters
    ----------
    step, index, count
        Which of the run's steps, which micro-batch of it, and of how many.
    step_num_tokens
        Labels that count, over all micro-batches of the device's step.
    smashed, labels, inputs
        Its tensors on the edge's compute device.
    taught
        What the teacher made of it; None where the teacher does not run.
    kept
        Whether that is in the teacher's cache.
    """

    step: int
    index: int
    count: int
    step_num_tokens: int
    smashed: Tensor
    labels: Tensor
    inputs: dict[str, Tensor]
    taught: Tensor | None
    kept: bool = False

    @property
    def num_samples(self) -> int:
        """Rows."""
        return int(self.smashed.shape[0])

    @property
    def last(self) -> bool:
        """Whether the step ends with it."""
        return self.index + 1 == self.count


def not_through(microbatch: Microbatch, peer: str, error: Exception) -> ProtocolError:
    """What to say of a micro-batch that does not go through the edge's half, in torch's own words."""
    tensors = {"smashed": microbatch.smashed, "labels": microbatch.labels, **microbatch.inputs}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return ProtocolError(
        f"The tensors {shapes} of {peer} in step {microbatch.step} do not go through the edge's half: "
        f"{type(error).__name__}: {error}. Check the batches of this device."
    )


class Exchange:
    """One device's turn as messages; counts what passes.

    Parameters
    ----------
    link, hello
        Of a device that is connected.
    student, objective, settings, plan
        What the turn is served with.
    seed
        Of the device's dropout and the order of its data; that of `settings` when not given.
    cache
        Of what the teacher made; None to keep none.
    meanwhile
        Does a piece of work while nothing has come from the device, and tells whether there was any.
    """

    def __init__(
        self,
        link: Link,
        hello: pb.Hello,
        *,
        student: EdgeStudent,
        objective: Objective,
        settings: TurnSettings,
        plan: TurnPlan,
        seed: int | None = None,
        cache: TeacherCache | None = None,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        self.link, self.plan, self._meanwhile = link, plan, meanwhile
        self.seed = settings.seed if seed is None else seed
        self._student, self._objective, self._settings = student, objective, settings
        self._training = plan.mode == "train"
        self._started_s, self._first_forward_s = time.monotonic(), 0.0
        self._tracing = settings.trace and self._training
        self.spans = SpanRecorder(tracing=self._tracing, first_step=plan.first_step)
        self._teaching: Teaching | None = None
        if self._training and objective.teacher:
            self._teaching = Teaching(
                objective.teacher,
                cache,
                device=hello.device_name,
                first_step=plan.first_step,
                most_microbatches=settings.step_microbatches,
                spans=self.spans,
            )
        self._cached = {item.unit: item.version for item in hello.cached_units}
        self._device = next(student.model.parameters()).device
        self._outbox = Outbox(link, self._device, ErrorFeedback() if settings.error_feedback else None)
        # Asked while the student is whole: its half knows nothing of the device's blocks.
        self._trainable = student.trainable_in(student.device_units(plan.cut))
        self._step, self._microbatch, self._step_microbatches = plan.first_step, 0, 0
        self._num_batches, self._num_tokens, self._num_correct = 0, 0, 0
        self._cross_entropy_sum, self._kl_sum = 0.0, 0.0
        self._handover_bytes, self._handover_downlink_bytes = 0, 0
        self._device_energy: Energy | None = None
        self.num_samples = 0
        self._downlink_codec = codec_code(plan.downlink_codec)

    @property
    def next_step(self) -> int:
        """The step that the device is in, or begins next."""
        return self._step

    @property
    def num_steps(self) -> int:
        """Steps that were served whole."""
        return self._step - self.plan.first_step

    def check_between_steps(self, message: WireMessage) -> None:
        """Raise a ProtocolError if the device owes micro-batches of the step that it is in."""
        if self._microbatch:
            raise ProtocolError(
                f"{self.link.peer} sent {message.kind} within step {self._step}, after micro-batch "
                f"{self._microbatch - 1} of {self._step_microbatches}; expected whole steps."
            )

    # ---- the plan, and what the device lacks

    def begin(self) -> None:
        """Admit the device's tensors, and send the plan with what its cache lacks."""
        self.link.admit()
        plan, settings, student = self.plan, self._settings, self._student
        units = student.device_units(plan.cut)
        begin = pb.Begin(
            mode=_MODES[plan.mode],
            task=self._objective.task,
            cut=plan.cut,
            local_epochs=plan.local_epochs,
            max_batches=settings.max_batches,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            first_step=plan.first_step,
            order_step=plan.data_step,
            done_steps=plan.done_steps,
            commit_every_steps=settings.commit_every_steps,
            run=plan.run,
            seed=self.seed,
            uplink_codec=codec_code(plan.uplink_codec),
            downlink_codec=self._downlink_codec,
            optimizer=student.optimizer.to_wire(),
            optimizer_handover=HANDOVERS[student.handover],
            clip_gradients=settings.max_grad_norm is not None,
            frozen=student.frozen_in(units),
            ignore_index=self._objective.loss.ignore_index,
            num_microbatches=settings.num_microbatches,
            pipeline_depth=plan.pipeline_depth,
            trace=self._tracing,
        )
        tensors: dict[str, EncodedTensor] = {}
        for unit in units:
            self._add_unit(
                begin, tensors, unit, student.version(unit), partial(student.travelling, unit, training=self._training)
            )
        teacher = self._objective.teacher
        if teacher and self._teaching:
            tensors.update(encode_all(self._teaching.into(begin)))
            for unit, version in teacher.versions.items():
                self._add_unit(begin, tensors, unit, version, partial(teacher.units.__getitem__, unit))
        self._handover_downlink_bytes = sum(len(tensor.payload) for tensor in tensors.values())
        self._handover_bytes += self._handover_downlink_bytes
        self.link.send(begin, tensors)

    def _add_unit(
        self,
        begin: pb.Begin,
        tensors: dict[str, EncodedTensor],
        unit: str,
        version: str,
        state: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        begin.units.add(unit=unit, version=version)
        if self._cached.get(unit) != version:
            tensors.update(encode_all(state(), f"{unit}|"))

    # ---- what the device sends

    def receive(self, expected: str) -> WireMessage:
        """Wait for the device's next message, as long as it may take; the teacher works on what comes for it in between.

        Raises
        ------
        SplitKDError
            If it does not come, or another one does.
        """
        if self._teaching is None:
            message = self._wait(expected)
        else:
            while (message := self._wait(f"{expected}|TeacherData")).kind == "TeacherData":
                self._time_arrival(message)
                self._teaching.teach(message, self._step)
        if message.kind == "Forward":
            self._time_arrival(message)
            self._first_forward_s = self._first_forward_s or time.monotonic() - self._started_s
        return message

    def _wait(self, expected: str) -> WireMessage:
        timeout_s, bound_s = self._settings.step_timeout_s, self._settings.turn_timeout_s
        if bound_s is not None:
            timeout_s = min(timeout_s, max(self._started_s + bound_s - time.monotonic(), 0.0))
        self._use_idle_time(timeout_s)
        try:
            with self.spans.span("wait", self._step, self._microbatch):
                return self.link.receive(expected, timeout_s)
        except PeerLostError as error:
            if bound_s is None or time.monotonic() < self._started_s + bound_s or not self.link.attached:
                raise
            raise PeerTimeoutError(
                f"{self.link.peer} has not ended its turn after {bound_s:g} s; expected it by then. Choose a lower cut or fewer "
                "batches for it, or raise `turn_timeout_s`."
            ) from error

    def _use_idle_time(self, timeout_s: float) -> None:
        """Work on something else for as long as nothing comes, at most for the time that the device has."""
        due_s = time.monotonic() + timeout_s
        while self._meanwhile is not None and not self.link.has_message and time.monotonic() < due_s:
            if not self._meanwhile():
                self.link.wait_message(_IDLE_LOOK_S)

    def _time_arrival(self, message: WireMessage) -> None:
        if message.tensors:
            body, start_s = message.body, message.arrived_s - message.receive_s
            self.spans.add("receive", body.step, body.microbatch, start_s, message.receive_s)

    def microbatch(self, message: WireMessage) -> Microbatch:
        """Decode a Forward.

        Raises
        ------
        SplitKDError
            If it is not the one that comes next, or its tensors are not as they must be.
        """
        forward: pb.Forward = message.body
        self._check_order(forward)
        lesson: Lesson | None = None
        if self._teaching:
            lesson = self._teaching.take(forward.step, forward.microbatch)
        with self.spans.span("decode", forward.step, forward.microbatch):
            smashed = self._smashed(message)
            labels = decode_one(message, "labels").to(self._device)
            inputs = self.inputs_beside(message)
        return Microbatch(
            step=forward.step,
            index=forward.microbatch,
            count=forward.num_microbatches,
            step_num_tokens=forward.step_num_tokens,
            smashed=smashed,
            labels=labels,
            inputs=dict(lesson.inputs) if lesson is not None and lesson.inputs else inputs,
            taught=lesson.outputs if lesson is not None else None,
            kept=lesson is not None and lesson.kept,
        )

    def inputs_beside(self, message: WireMessage) -> dict[str, Tensor]:
        """Decode what came beside the smashed data."""
        return {name: tensor.to(self._device) for name, tensor in decode_all(message.tensors, "inputs/").items()}

    def gradient_norms(self, step: int) -> dict[str, Tensor]:
        """Wait for the norms of the device's gradients; parameters without a gradient are left out.

        Raises
        ------
        SplitKDError
            If they do not come, do not fit, or are not finite.
        """
        body: pb.GradientNorms = self.receive("GradientNorms").body
        names = self._trainable
        if body.step != step or len(body.norms) != len(names):
            raise ProtocolError(
                f"{self.link.peer} sent {len(body.norms)} gradient norms for step {body.step}; expected {len(names)} for "
                f"step {step}."
            )
        dtype = next(self._student.model.parameters()).dtype
        norms = {name: torch.tensor(n, dtype=dtype) for name, n in zip(names, body.norms, strict=True) if not n < 0}
        for name, norm in norms.items():
            require_finite(norm, f"The gradient norm of step {step}, of {name!r},", _DEVICE_REMEDY)
        return norms

    def _smashed(self, message: WireMessage) -> Tensor:
        smashed = decode_one(message, "smashed")
        width = self._student.fingerprint.hidden_size
        dtype = next(self._student.model.parameters()).dtype
        if smashed.dtype != dtype or smashed.dim() < (2 if width else 1) or (width and smashed.shape[-1] != width):
            raise TensorError(
                f"Smashed data of {self.link.peer} are {smashed.dtype} of shape {tuple(smashed.shape)}; expected {dtype} "
                f"with {width} values in the last dimension."
            )
        require_finite(smashed, f"The smashed data of step {message.body.step}", _DEVICE_REMEDY)
        return smashed.to(self._device)

    def _check_order(self, forward: pb.Forward) -> None:
        """Each micro-batch of each step exactly once, in order."""
        got, expected = (forward.step, forward.microbatch), (self._step, self._microbatch)
        if got != expected:
            what = "duplicated" if got < expected else "lost or reordered"
            raise ProtocolError(
                f"{self.link.peer} sent step {got[0]}, micro-batch {got[1]}; expected step {expected[0]}, micro-batch "
                f"{expected[1]}: one was {what}. Nothing of it was applied."
            )
        if forward.microbatch == 0:
            self._step_microbatches = forward.num_microbatches
        if forward.num_microbatches != self._step_microbatches or not forward.num_microbatches:
            raise ProtocolError(
                f"{self.link.peer} announces {forward.num_microbatches} micro-batches in step {forward.step}; expected "
                f"{max(self._step_microbatches, 1)} as before."
            )

    def not_through(self, microbatch: Microbatch, error: Exception) -> ProtocolError:
        """What to say of a micro-batch that does not go through the edge's half."""
        return not_through(microbatch, self.link.peer, error)

    # ---- what it is answered

    def answer(self, microbatch: Microbatch, gradient: Tensor | None, update: pb.Update | None) -> None:
        """Send the gradient at the cut, of the device's own mean loss; none when evaluating."""
        answer = pb.Backward(step=microbatch.step, microbatch=microbatch.index, teacher_kept=microbatch.kept)
        if update is not None:
            answer.update.CopyFrom(update)
        timer = partial(self.spans.span, "encode", microbatch.step, microbatch.index)
        parcels: dict[str, Parcel] = {}
        if gradient is not None:
            parcels["gradient"] = Parcel(gradient, self._downlink_codec, f"gradient/{microbatch.index}")
        self._outbox.send(answer, parcels, timer)
        if microbatch.last:
            self._outbox.flush()
        self._num_batches += 1
        self.num_samples += microbatch.num_samples
        if microbatch.last:
            self._step, self._microbatch = self._step + 1, 0
        else:
            self._microbatch += 1

    def count(self, loss: StepLoss) -> None:
        """Add a micro-batch's losses."""
        self._num_tokens += loss.terms.num_tokens
        self._num_correct += loss.num_correct
        self._cross_entropy_sum += float(loss.terms.cross_entropy_sum)
        self._kl_sum += float(loss.terms.kl_sum)

    # ---- the end

    def end(self) -> None:
        """No answer follows: nothing is promised of the teacher any more."""
        if self._teaching:
            self._teaching.end()
        try:
            with self._outbox:
                pass
        except SplitKDError as error:
            _log.debug("%s was lost with an answer on its way: %s", self.link.peer, error)

    def take_half(self, done: WireMessage) -> dict[str, Tensor]:
        """Decode the device's half as it was trained, of a TurnDone or a Checkpoint.

        Raises
        ------
        ProtocolError
            If the device counts other steps than the edge.
        """
        if done.body.num_steps != self.num_steps:
            raise ProtocolError(
                f"{self.link.peer} reports {done.body.num_steps} steps; expected the {self.num_steps} that were served."
            )
        self._handover_bytes += done.num_bytes
        return decode_all(done.tensors)

    def check_times(self, done: WireMessage) -> None:
        """Check the device's own seconds, which the planner reckons with, and joules: none may be more than a turn can take.

        Raises
        ------
        ProtocolError
            If one is.
        """
        duration_s = time.monotonic() - self._started_s
        for name in ("setup_s", "compute_s", "receive_s", "exchange_s"):
            seconds = getattr(done.body.times, name)
            if not 0 <= seconds <= duration_s:
                raise ProtocolError(
                    f"{self.link.peer} reports a `{name}` of {seconds} s; expected 0 to {duration_s:.3f}, the turn's own."
                )
        self._device_energy = energy_from_wire(done.body.times, duration_s=duration_s, peer=self.link.peer)

    def result(self, commit_id: str, units: Iterable[str]) -> pb.TurnResult:
        """The turn's end in the device's ears; `units` are those whose newest version the device holds."""
        tokens = max(self._num_tokens, 1)
        cross_entropy, kl = self._cross_entropy_sum / tokens, self._kl_sum / tokens
        loss = self._objective.loss
        kd_ratio = loss.kd_ratio if self._objective.teacher and self._training else 0.0
        return pb.TurnResult(
            commit_id=commit_id,
            loss=(1 - kd_ratio) * cross_entropy + kd_ratio * loss.temperature**2 * kl,
            cross_entropy=cross_entropy,
            kl_divergence=kl,
            num_tokens=self._num_tokens,
            num_correct=self._num_correct,
            units=[pb.UnitVersion(unit=unit, version=self._student.version(unit)) for unit in units],
        )

    def tell(self, result: pb.TurnResult) -> None:
        """Send the result, if the device is still there."""
        try:
            self.link.send(result)
        except SplitKDError as error:
            # The turn is durable whether the device hears of it or not; its cache lags behind, which costs bytes.
            _log.warning("%s did not hear of its commit %s: %s", self.link.peer, result.commit_id, error)

    def outcome(
        self,
        done: pb.TurnDone,
        result: pb.TurnResult,
        *,
        commit_s: float,
        num_together: int,
        energy: Energy | None = None,
    ) -> TurnOutcome:
        """What came of the turn; `num_together` devices had theirs at the same time, and `energy` is the edge's for this one."""
        times: pb.DeviceTimes = done.times
        own, other = _measured(energy), _measured(self._device_energy)
        duration_s = time.monotonic() - self._started_s
        fixed_s = times.setup_s + commit_s
        edge_s = sum(self.spans.totals_s[stage] for stage in _EDGE_STAGES)
        known_s = times.compute_s + edge_s + self.link.receive_s + times.receive_s + fixed_s
        return TurnOutcome(
            cut=self.plan.cut,
            commit_id=result.commit_id,
            num_steps=done.num_steps,
            num_batches=self._num_batches,
            num_examples=done.num_examples,
            num_tokens=self._num_tokens,
            loss=result.loss,
            cross_entropy=result.cross_entropy,
            kl_divergence=result.kl_divergence,
            num_correct=self._num_correct,
            duration_s=duration_s,
            num_resumed=self.link.num_resumed,
            first_forward_s=self._first_forward_s,
            uplink_bytes=self.link.bytes_received,
            downlink_bytes=self.link.bytes_sent,
            handover_bytes=self._handover_bytes,
            handover_downlink_bytes=self._handover_downlink_bytes,
            device_s=times.compute_s,
            edge_s=edge_s,
            teacher_s=self.spans.totals_s["teacher"],
            teacher_rest_mass=self._objective.teacher.rest_mass if self._objective.teacher else None,
            pipeline_depth=self.plan.pipeline_depth,
            uplink_codec=self.plan.uplink_codec,
            downlink_codec=self.plan.downlink_codec,
            exchange_s=times.exchange_s,
            uplink_s=self.link.receive_s,
            downlink_s=times.receive_s,
            fixed_s=fixed_s,
            uplink_payload_bytes=self.link.payload_bytes_received,
            downlink_payload_bytes=self._handover_downlink_bytes + self._outbox.payload_bytes,
            measured_device_j=other.joules,
            measured_edge_j=own.joules,
            measured_device_parts=other.parts,
            measured_edge_parts=own.parts,
            spans=self._located_spans(times, duration_s) if self._tracing else (),
            cluster_wait_s=max(duration_s - known_s, 0.0) if num_together > 1 else 0.0,
        )

    def _located_spans(self, times: pb.DeviceTimes, duration_s: float) -> tuple[LocatedSpan, ...]:
        """The turn's spans of both sides, by the edge's clock, from the turn's begin on."""
        if num_dropped := times.spans.num_dropped + self.spans.num_dropped:
            _log.warning(
                "The trace of %s's turn lacks %d spans; a turn's holds the first %d of each side. Trace shorter turns.",
                self.link.peer,
                num_dropped,
                MOST_SPANS,
            )
        device = spans_from_wire(times.spans, first_step=self.plan.first_step, longest_s=duration_s)
        return locate_spans(self.spans.spans(), device, began_s=self._started_s)


def _measured(energy: Energy | None) -> Energy:
    """What was measured; no parts where no joules are known."""
    return energy if energy is not None and energy.joules is not None else Energy(joules=None)
