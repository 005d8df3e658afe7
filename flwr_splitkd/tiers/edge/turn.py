"""One turn on the edge, from the plan to the commit.

Begin -> ((teacher) -> receive -> forward -> loss -> backward -> send)* -> step ... -> take the device's half in -> commit. With
`commit_every_steps`, the device's half is taken in and committed in between too.
Runs on the caller's thread: torch never runs on gRPC's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError, TensorError
from flwr_splitkd.split import (
    EdgeHalf,
    clip_coefficient,
    export_optimizer_state,
    grad_norms,
    import_optimizer_state,
    scale_gradients,
    seed_dropout,
)
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.telemetry.spans import LocatedSpan, SpanRecorder, locate_spans
from flwr_splitkd.tiers.edge.objective import Objective, StepLoss
from flwr_splitkd.tiers.edge.plan import TurnOutcome, TurnPlan, TurnSettings
from flwr_splitkd.tiers.edge.student import HANDOVERS, EdgeStudent
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.edge.teaching import Lesson, Teaching
from flwr_splitkd.tiers.optimizer import set_learning_rate
from flwr_splitkd.tiers.outbox import Outbox, Parcel
from flwr_splitkd.tiers.spans import spans_from_wire
from flwr_splitkd.tiers.units import Moments, decode_all, decode_one, encode_all, require_finite
from flwr_splitkd.wire.codec import codec_code
from flwr_splitkd.wire.feedback import ErrorFeedback
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["run_turn"]

_log = logging.getLogger(__name__)

_STEPS = "Forward|TurnDone"
_MODES = {"train": pb.MODE_TRAIN, "evaluate": pb.MODE_EVALUATE, "deliver": pb.MODE_DELIVER}
_EDGE_STAGES = ("decode", "teacher", "student", "encode", "optimizer")
_DEVICE_REMEDY = "The turn is undone; check this device's data and hardware, or lower the learning rate."
_LOSS_REMEDY = "The turn is undone; lower the learning rate, clip gradients, or check the labels."


def run_turn(
    link: Link,
    hello: pb.Hello,
    *,
    student: EdgeStudent,
    objective: Objective,
    settings: TurnSettings,
    plan: TurnPlan,
    cache: TeacherCache | None = None,
) -> TurnOutcome:
    """Serve one turn. If it fails for any reason, the student is as of the last commit: before the turn, or in its midst.

    Raises
    ------
    SplitKDError
        Why the turn failed; the device has been told.
    """
    turn = _Turn(link, hello, student, objective, settings, plan, cache)
    try:
        return turn.run()
    except BaseException as error:
        link.fail(error)
        if plan.mode == "train":
            student.roll_back()
        raise


class _Turn:
    """The state of one turn: which Forward comes next, the edge's optimiser, and sums for the outcome."""

    def __init__(
        self,
        link: Link,
        hello: pb.Hello,
        student: EdgeStudent,
        objective: Objective,
        settings: TurnSettings,
        plan: TurnPlan,
        cache: TeacherCache | None,
    ) -> None:
        self._started_s, self._first_forward_s = time.monotonic(), 0.0
        self._link, self._student, self._objective = link, student, objective
        self._settings, self._plan = settings, plan
        self._training = plan.mode == "train"
        self._tracing = settings.trace and self._training
        self._spans = SpanRecorder(tracing=self._tracing, first_step=plan.first_step)
        self._teaching: Teaching | None = None
        if self._training and objective.teacher:
            self._teaching = Teaching(
                objective.teacher,
                cache,
                device=hello.device_name,
                first_step=plan.first_step,
                most_microbatches=settings.step_microbatches,
                spans=self._spans,
            )
        self._cached = {item.unit: item.version for item in hello.cached_units}
        self._device = next(student.model.parameters()).device
        self._outbox = Outbox(link, self._device, ErrorFeedback() if settings.error_feedback else None)
        # Asked while the student is whole: its half knows nothing of the device's blocks.
        self._device_trainable = student.trainable_in(student.device_units(plan.cut))
        self._step, self._microbatch, self._step_microbatches = plan.first_step, 0, 0
        self._num_batches, self._num_tokens, self._num_correct = 0, 0, 0
        self._cross_entropy_sum, self._kl_sum = 0.0, 0.0
        self._handover_bytes, self._handover_downlink_bytes = 0, 0
        self._commit_s = 0.0
        self._uplink_codec, self._downlink_codec = (
            codec_code(plan.codec or codec) for codec in (settings.uplink_codec, settings.downlink_codec)
        )

    def run(self) -> TurnOutcome:
        self._link.admit()
        self._send_begin()
        moments: Moments = {}
        try:
            if self._plan.mode == "deliver":
                done = self._receive("TurnDone")
            else:
                with self._outbox:
                    done, moments = self._run_half()
        finally:
            if self._teaching:
                self._teaching.end()
        _check_times(done, self._link.peer, time.monotonic() - self._started_s)
        commit_id = self._commit(done, moments, finished=True) if self._training else self._student.last_commit
        result = self._result(commit_id)
        self._tell(result)
        times: pb.DeviceTimes = done.body.times
        return TurnOutcome(
            cut=self._plan.cut,
            commit_id=commit_id,
            num_steps=done.body.num_steps,
            num_batches=self._num_batches,
            num_examples=done.body.num_examples,
            num_tokens=self._num_tokens,
            loss=result.loss,
            cross_entropy=result.cross_entropy,
            kl_divergence=result.kl_divergence,
            num_correct=self._num_correct,
            duration_s=time.monotonic() - self._started_s,
            num_resumed=self._link.num_resumed,
            first_forward_s=self._first_forward_s,
            uplink_bytes=self._link.bytes_received,
            downlink_bytes=self._link.bytes_sent,
            handover_bytes=self._handover_bytes,
            handover_downlink_bytes=self._handover_downlink_bytes,
            device_s=times.compute_s,
            edge_s=sum(self._spans.totals_s[stage] for stage in _EDGE_STAGES),
            teacher_s=self._spans.totals_s["teacher"],
            teacher_rest_mass=self._objective.teacher.rest_mass if self._objective.teacher else None,
            pipeline_depth=self._plan.pipeline_depth,
            exchange_s=times.exchange_s,
            uplink_s=self._link.receive_s,
            downlink_s=times.receive_s,
            fixed_s=times.setup_s + self._commit_s,
            uplink_payload_bytes=self._link.payload_bytes_received,
            downlink_payload_bytes=self._handover_downlink_bytes + self._outbox.payload_bytes,
            spans=self._located_spans(times, time.monotonic() - self._started_s) if self._tracing else (),
        )

    def _receive(self, expected: str) -> WireMessage:
        """Wait for the device's next message; the teacher works on what comes for it in between."""
        if self._teaching is None:
            return self._wait(expected)
        while (message := self._wait(f"{expected}|TeacherData")).kind == "TeacherData":
            self._time_arrival(message)
            self._teaching.teach(message, self._step)
        return message

    def _wait(self, expected: str) -> WireMessage:
        """Wait for the device's next message, as long as it may take."""
        timeout_s, bound_s = self._settings.step_timeout_s, self._settings.turn_timeout_s
        started_s = time.monotonic()
        if bound_s is not None:
            timeout_s = min(timeout_s, max(self._started_s + bound_s - started_s, 0.0))
        try:
            with self._spans.span("wait", self._step, self._microbatch):
                return self._link.receive(expected, timeout_s)
        except PeerLostError as error:
            if bound_s is None or time.monotonic() < self._started_s + bound_s or not self._link.attached:
                raise
            raise PeerLostError(
                f"{self._link.peer} has not ended its turn after {bound_s:g} s; expected it by then. Choose a lower cut or fewer "
                "batches for it, or raise `turn_timeout_s`."
            ) from error

    def _run_half(self) -> tuple[WireMessage, Moments]:
        message = self._receive(_STEPS)
        if message.kind == "Forward":
            self._first_forward_s = time.monotonic() - self._started_s
            self._student.check_cut(self._plan.cut, self._inputs(message, "inputs/"))
        optimizer: _Optimizer | None = None
        while True:
            with self._student.half(self._plan.cut) as half:
                half.train(self._training)
                optimizer = optimizer or _Optimizer(half, self._student, training=self._training)
                message = self._run_steps(message, half, optimizer)
            moments = optimizer.moments()
            if message.kind != "Checkpoint":
                return message, moments
            commit_id = self._commit(message, moments, finished=False)
            self._link.send(pb.Committed(commit_id=commit_id, units=self._versions()))
            message = self._receive(_STEPS)

    def _tell(self, result: pb.TurnResult) -> None:
        try:
            self._link.send(result)
        except SplitKDError as error:
            # The turn is durable whether the device hears of it or not; its cache lags behind, which costs bytes.
            _log.warning("%s did not hear of its commit %s: %s", self._link.peer, result.commit_id, error)

    # ---- the plan, and what the device lacks

    def _send_begin(self) -> None:
        plan, settings, student = self._plan, self._settings, self._student
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
            seed=settings.seed,
            uplink_codec=self._uplink_codec,
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
        self._link.send(begin, tensors)

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

    # ---- steps

    def _run_steps(self, message: WireMessage, half: EdgeHalf, optimizer: _Optimizer) -> WireMessage:
        """Serve micro-batches until the device sends something else, which is returned."""
        expected = "Forward|Checkpoint|TurnDone" if self._training and self._settings.commit_every_steps else _STEPS
        with seed_dropout(half.model, self._student.layout, self._settings.seed) as seeds:
            while message.kind == "Forward":
                self._time_arrival(message)
                self._serve(message, half, seeds, optimizer)
                message = self._receive(expected)
        if self._microbatch:
            raise ProtocolError(
                f"{self._link.peer} sent {message.kind} within step {self._step}, after micro-batch "
                f"{self._microbatch - 1} of {self._step_microbatches}; expected whole steps."
            )
        return message

    def _serve(self, message: WireMessage, half: EdgeHalf, seeds: DropoutSeeds, optimizer: _Optimizer) -> None:
        """Answer one Forward; after a step's last one, take the optimiser step."""
        forward: pb.Forward = message.body
        self._check_order(forward)
        seeds.at(forward.step, forward.microbatch)
        lesson = self._teaching.take(forward.step, forward.microbatch) if self._teaching else None
        gradient = self._differentiate(message, half, lesson)
        last = forward.microbatch + 1 == forward.num_microbatches
        clipping = self._settings.max_grad_norm is not None
        answer = pb.Backward(
            step=forward.step, microbatch=forward.microbatch, teacher_kept=lesson is not None and lesson.kept
        )
        if last and self._training and not clipping:
            answer.update.CopyFrom(self._update(forward.step))
        parcels = (
            {}
            if gradient is None
            else {"gradient": Parcel(gradient, self._downlink_codec, f"gradient/{forward.microbatch}")}
        )
        self._outbox.send(answer, parcels, partial(self._spans.span, "encode", forward.step, forward.microbatch))
        self._microbatch += 1
        self._num_batches += 1
        if not last:
            return
        self._outbox.flush()
        if self._training:
            if clipping:
                self._clip(forward.step, half, optimizer.trainable)
            with self._spans.span("optimizer", forward.step):
                optimizer.step(self._learning_rate(forward.step))
        self._step, self._microbatch = self._step + 1, 0

    def _differentiate(self, message: WireMessage, half: EdgeHalf, lesson: Lesson | None) -> Tensor | None:
        """Forward pass, loss and backward pass of one micro-batch; the gradient at the cut when training."""
        forward: pb.Forward = message.body
        with self._spans.span("decode", forward.step, forward.microbatch):
            smashed = self._smashed(message)
            labels = decode_one(message, "labels").to(self._device)
            inputs = self._inputs(message, "inputs/")
        if lesson is not None and lesson.inputs:
            inputs = dict(lesson.inputs)
        with self._spans.span("student", forward.step, forward.microbatch):
            with torch.set_grad_enabled(self._training):
                smashed.requires_grad_(self._training)
                loss = self._loss(message, half, smashed, inputs, labels, lesson)
            require_finite(loss.terms.loss.detach(), f"The loss of step {forward.step}", _LOSS_REMEDY)
            self._sum(loss)
            if not self._training:
                return None
            torch.autograd.backward(loss.terms.loss)
            return smashed.grad if smashed.grad is not None else torch.zeros_like(smashed)

    def _loss(
        self,
        message: WireMessage,
        half: EdgeHalf,
        smashed: Tensor,
        inputs: dict[str, Tensor],
        labels: Tensor,
        lesson: Lesson | None,
    ) -> StepLoss:
        taught = lesson.outputs if lesson else None
        try:
            return self._objective(half, smashed, inputs, labels, taught, message.body.step_num_tokens)
        except SplitKDError:
            raise
        except Exception as error:  # torch's own words for shapes and kinds that do not go together
            shapes = {name: tensor.shape for name, tensor in message.tensors.items()}
            raise ProtocolError(
                f"The tensors {shapes} of {self._link.peer} in step {message.body.step} do not go through the edge's "
                f"half: {type(error).__name__}: {error}. Check the batches of this device."
            ) from error

    def _inputs(self, message: WireMessage, prefix: str) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in decode_all(message.tensors, prefix).items()}

    def _smashed(self, message: WireMessage) -> Tensor:
        smashed = decode_one(message, "smashed")
        width = self._student.fingerprint.hidden_size
        dtype = next(self._student.model.parameters()).dtype
        if smashed.dtype != dtype or (width and (smashed.dim() < 2 or smashed.shape[-1] != width)):
            raise TensorError(
                f"Smashed data of {self._link.peer} are {smashed.dtype} of shape {tuple(smashed.shape)}; expected {dtype} "
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
                f"{self._link.peer} sent step {got[0]}, micro-batch {got[1]}; expected step {expected[0]}, micro-batch "
                f"{expected[1]}: one was {what}. Nothing of it was applied."
            )
        if forward.microbatch == 0:
            self._step_microbatches = forward.num_microbatches
        if forward.num_microbatches != self._step_microbatches or not forward.num_microbatches:
            raise ProtocolError(
                f"{self._link.peer} announces {forward.num_microbatches} micro-batches in step {forward.step}; expected "
                f"{max(self._step_microbatches, 1)} as before."
            )

    # ---- the optimiser step across both halves

    def _clip(self, step: int, half: EdgeHalf, trainable: list[tuple[str, nn.Parameter]]) -> None:
        body: pb.GradientNorms = self._receive("GradientNorms").body
        names = self._device_trainable
        if body.step != step or len(body.norms) != len(names):
            raise ProtocolError(
                f"{self._link.peer} sent {len(body.norms)} gradient norms for step {body.step}; expected {len(names)} for "
                f"step {step}."
            )
        dtype = next(half.model.parameters()).dtype
        norms = {name: torch.tensor(n, dtype=dtype) for name, n in zip(names, body.norms, strict=True) if not n < 0}
        norms.update(grad_norms(trainable))
        factor, total = clip_coefficient(norms, self._student.parameter_order, float(self._settings.max_grad_norm or 0))
        require_finite(total, f"The gradient norm of step {step}", _LOSS_REMEDY)
        update = self._update(step)
        update.clip_coefficient = float(factor)
        self._link.send(update)
        scale_gradients((parameter for _, parameter in trainable), factor)

    def _update(self, step: int) -> pb.Update:
        return pb.Update(step=step, learning_rate=self._learning_rate(step), clip_coefficient=1.0)

    def _learning_rate(self, step: int) -> float:
        return self._student.optimizer.learning_rate * self._settings.lr_schedule(step)

    # ---- the end

    def _commit(self, done: WireMessage, moments: Moments, *, finished: bool) -> str:
        """Take the device's half in and make the student durable; `done` is a TurnDone or a Checkpoint."""
        num_steps = self._step - self._plan.first_step
        if done.body.num_steps != num_steps:
            raise ProtocolError(
                f"{self._link.peer} reports {done.body.num_steps} steps; expected the {num_steps} that were served."
            )
        started_s = time.monotonic()
        self._handover_bytes += done.num_bytes
        info = {
            **self._plan.info,
            "next_step": self._step,
            "order_step": self._plan.data_step,
            "done_steps": self._plan.done_steps + num_steps,
            "finished": finished,
        }
        commit_id = self._student.commit(self._plan.cut, decode_all(done.tensors), moments, info).commit_id
        self._commit_s += time.monotonic() - started_s
        return commit_id

    def _result(self, commit_id: str) -> pb.TurnResult:
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
            units=self._versions(),
        )

    def _versions(self) -> list[pb.UnitVersion]:
        units = self._student.device_units(self._plan.cut)
        return [pb.UnitVersion(unit=unit, version=self._student.version(unit)) for unit in units]

    def _time_arrival(self, message: WireMessage) -> None:
        if message.tensors:
            body = message.body
            start_s = message.arrived_s - message.receive_s
            self._spans.add("receive", body.step, body.microbatch, start_s, message.receive_s)

    def _located_spans(self, times: pb.DeviceTimes, duration_s: float) -> tuple[LocatedSpan, ...]:
        """The turn's spans of both sides, by the edge's clock, from the turn's begin on."""
        device = spans_from_wire(times.spans, first_step=self._plan.first_step, longest_s=duration_s)
        return locate_spans(self._spans.spans(), device, began_s=self._started_s)

    def _sum(self, loss: StepLoss) -> None:
        self._num_tokens += loss.terms.num_tokens
        self._num_correct += loss.num_correct
        self._cross_entropy_sum += float(loss.terms.cross_entropy_sum)
        self._kl_sum += float(loss.terms.kl_sum)


class _Optimizer:
    """The optimiser of the edge's half, for as long as the turn lasts; none when nothing trains there."""

    def __init__(self, half: EdgeHalf, student: EdgeStudent, *, training: bool) -> None:
        self.trainable = [(n, p) for n, p in half.named_parameters() if p.requires_grad] if training else []
        self._optimizer = student.optimizer.build(p for _, p in self.trainable) if self.trainable else None
        if self._optimizer:
            import_optimizer_state(self._optimizer, self.trainable, student.moments_of_half(half))

    def step(self, learning_rate: float) -> None:
        if self._optimizer:
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def moments(self) -> Moments:
        return export_optimizer_state(self._optimizer, self.trainable) if self._optimizer else {}


def _check_times(done: WireMessage, peer: str, duration_s: float) -> None:
    """The device's word on its own seconds, which the planner reckons with: none may be more than the whole turn took."""
    for name in ("setup_s", "compute_s", "receive_s", "exchange_s"):
        seconds = getattr(done.body.times, name)
        if not 0 <= seconds <= duration_s:
            raise ProtocolError(
                f"{peer} reports a `{name}` of {seconds} s; expected 0 to {duration_s:.3f}, the turn's own."
            )
