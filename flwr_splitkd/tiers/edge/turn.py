"""One turn on the edge, from the plan to the commit.

Begin -> ((teacher) -> receive -> forward -> loss -> backward -> send)* -> step ... -> take the device's half in -> commit. With
`commit_every_steps`, the device's half is taken in and committed in between too.
Runs on the caller's thread: torch never runs on gRPC's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.split import EdgeHalf, clip_coefficient, grad_norms, scale_gradients, seed_dropout
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.telemetry.sensors import EnergyMeter
from flwr_splitkd.tiers.edge.exchange import Exchange, Microbatch
from flwr_splitkd.tiers.edge.objective import Objective, StepLoss
from flwr_splitkd.tiers.edge.optimizer import EdgeOptimizer
from flwr_splitkd.tiers.edge.plan import TurnOutcome, TurnPlan, TurnSettings
from flwr_splitkd.tiers.edge.student import EdgeStudent
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.units import Moments, require_finite
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["run_turn"]

_STEPS = "Forward|TurnDone"
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
    meanwhile: Callable[[], bool] | None = None,
    meter: EnergyMeter | None = None,
) -> TurnOutcome:
    """Serve one turn. If it fails for any reason, the student is as of the last commit: before the turn, or in its midst.

    Parameters as of `Exchange`; `meter` measures the joules of this machine in the turn.

    Raises
    ------
    SplitKDError
        Why the turn failed; the device has been told.
    """
    turn = _Turn(link, hello, student, objective, settings, plan, cache, meanwhile, meter)
    try:
        return turn.run()
    except BaseException as error:
        link.fail(error)
        if plan.mode == "train":
            student.roll_back()
        raise


class _Turn:
    """The state of one turn: what passes between the two sides, and the edge's optimiser."""

    def __init__(
        self,
        link: Link,
        hello: pb.Hello,
        student: EdgeStudent,
        objective: Objective,
        settings: TurnSettings,
        plan: TurnPlan,
        cache: TeacherCache | None,
        meanwhile: Callable[[], bool] | None,
        meter: EnergyMeter | None,
    ) -> None:
        self._meter, self._began = meter, meter.begin() if meter else None
        self._student, self._objective = student, objective
        self._settings, self._plan = settings, plan
        self._training = plan.mode == "train"
        self._exchange = Exchange(
            link,
            hello,
            student=student,
            objective=objective,
            settings=settings,
            plan=plan,
            cache=cache,
            meanwhile=meanwhile,
        )
        self._commit_s = 0.0

    def run(self) -> TurnOutcome:
        exchange = self._exchange
        exchange.begin()
        moments: Moments = {}
        try:
            if self._plan.mode == "deliver":
                done = exchange.receive("TurnDone")
            else:
                done, moments = self._run_half()
        finally:
            exchange.end()
        exchange.check_times(done)
        commit_id = self._commit(done, moments, finished=True) if self._training else self._student.last_commit
        result = exchange.result(commit_id, self._student.device_units(self._plan.cut))
        exchange.tell(result)
        energy = self._meter.joules(self._began) if self._meter and self._began else None
        return exchange.outcome(done.body, result, commit_s=self._commit_s, num_together=1, energy=energy)

    def _run_half(self) -> tuple[WireMessage, Moments]:
        exchange = self._exchange
        message = exchange.receive(_STEPS)
        if message.kind == "Forward":
            self._student.check_cut(self._plan.cut, exchange.inputs_beside(message))
        optimizer: EdgeOptimizer | None = None
        while True:
            with self._student.half(self._plan.cut) as half:
                half.train(self._training)
                optimizer = optimizer or EdgeOptimizer(half, self._student, training=self._training)
                message = self._run_steps(message, half, optimizer)
            moments = optimizer.moments()
            if message.kind != "Checkpoint":
                return message, moments
            commit_id = self._commit(message, moments, finished=False)
            units = exchange.result(commit_id, self._student.device_units(self._plan.cut)).units
            exchange.link.send(pb.Committed(commit_id=commit_id, units=units))
            message = exchange.receive(_STEPS)

    # ---- steps

    def _run_steps(self, message: WireMessage, half: EdgeHalf, optimizer: EdgeOptimizer) -> WireMessage:
        """Serve micro-batches until the device sends something else, which is returned."""
        expected = "Forward|Checkpoint|TurnDone" if self._training and self._settings.commit_every_steps else _STEPS
        with seed_dropout(half.model, self._student.layout, self._settings.seed) as seeds:
            while message.kind == "Forward":
                self._serve(self._exchange.microbatch(message), half, seeds, optimizer)
                message = self._exchange.receive(expected)
        self._exchange.check_between_steps(message)
        return message

    def _serve(self, microbatch: Microbatch, half: EdgeHalf, seeds: DropoutSeeds, optimizer: EdgeOptimizer) -> None:
        """Answer one micro-batch; after a step's last one, take the optimiser step."""
        step = microbatch.step
        seeds.at(step, microbatch.index)
        gradient = self._differentiate(microbatch, half)
        clipping = self._settings.max_grad_norm is not None
        update = self._training and microbatch.last and not clipping
        self._exchange.answer(microbatch, gradient, self._update(step) if update else None)
        if microbatch.last and self._training:
            if clipping:
                self._clip(step, optimizer)
            with self._exchange.spans.span("optimizer", step):
                optimizer.step(self._learning_rate(step))

    def _differentiate(self, microbatch: Microbatch, half: EdgeHalf) -> Tensor | None:
        """Forward pass, loss and backward pass of one micro-batch; the gradient at the cut when training."""
        smashed = microbatch.smashed
        with self._exchange.spans.span("student", microbatch.step, microbatch.index):
            with torch.set_grad_enabled(self._training):
                smashed.requires_grad_(self._training)
                loss = self._loss(microbatch, half)
            require_finite(loss.terms.loss.detach(), f"The loss of step {microbatch.step}", _LOSS_REMEDY)
            self._exchange.count(loss)
            if not self._training:
                return None
            torch.autograd.backward(loss.terms.loss)
            return smashed.grad if smashed.grad is not None else torch.zeros_like(smashed)

    def _loss(self, microbatch: Microbatch, half: EdgeHalf) -> StepLoss:
        smashed, inputs, labels = microbatch.smashed, microbatch.inputs, microbatch.labels
        try:
            return self._objective(half, smashed, inputs, labels, microbatch.taught, microbatch.step_num_tokens)
        except SplitKDError:
            raise
        except Exception as error:  # torch's own words for shapes and kinds that do not go together
            raise self._exchange.not_through(microbatch, error) from error

    # ---- the optimiser step across both halves

    def _clip(self, step: int, optimizer: EdgeOptimizer) -> None:
        norms = self._exchange.gradient_norms(step)
        norms.update(grad_norms(optimizer.trainable))
        factor, total = clip_coefficient(norms, self._student.parameter_order, float(self._settings.max_grad_norm or 0))
        require_finite(total, f"The gradient norm of step {step}", _LOSS_REMEDY)
        update = self._update(step)
        update.clip_coefficient = float(factor)
        self._exchange.link.send(update)
        scale_gradients((parameter for _, parameter in optimizer.trainable), factor)

    def _update(self, step: int) -> pb.Update:
        return pb.Update(step=step, learning_rate=self._learning_rate(step), clip_coefficient=1.0)

    def _learning_rate(self, step: int) -> float:
        return self._student.optimizer.learning_rate * self._settings.lr_schedule(step)

    # ---- the end

    def _commit(self, done: WireMessage, moments: Moments, *, finished: bool) -> str:
        """Take the device's half in and make the student durable; `done` is a TurnDone or a Checkpoint."""
        half = self._exchange.take_half(done)
        started_s = time.monotonic()
        info = {
            **self._plan.info,
            "next_step": self._exchange.next_step,
            "order_step": self._plan.data_step,
            "done_steps": self._plan.done_steps + self._exchange.num_steps,
            "finished": finished,
        }
        commit_id = self._student.commit(self._plan.cut, half, moments, info).commit_id
        self._commit_s += time.monotonic() - started_s
        return commit_id
