"""Devices of one cluster train at the same time, from the same student, each at its own cut; then their copies are averaged.

Clustered collaborative training of Li et al., "Split Knowledge Distillation for Large Models in IoT", section III; with one
cluster of all devices it is SplitFed (Thapa et al., AAAI 2022, version 1). What is defined here, the paper leaves open:

- A copy of a layer, wherever it is, follows the mean loss over the labels of the devices that go through it. So the edge's copy
  of layer l takes one step from all devices whose cut is at most l, and a device's copy from the device alone. Device i's share
  ``n_i / W_l`` of a step of the edge's copy is by its counted labels; ``W_l`` sums these over the devices with ``c_i <= l``.
- At the end a layer is the mean of its copies, weighted by samples; the edge's copy stands for the devices that go through it.
- A device that is lost is left out of that mean, and the others go on.

With one device all of this is the sequential turn, bit for bit. See docs/explanation/clusters.md.

Runs on the caller's thread, which alone computes; the transport's threads receive from all devices meanwhile. Devices are
waited for in a fixed order (cut, then position), so that a cluster gives the same whoever was faster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, CutError, NonFiniteError, SplitKDError, StoreError
from flwr_splitkd.split import (
    EdgeHalf,
    clip_coefficient,
    grad_norms,
    is_token_model,
    scale_gradients,
    seed_dropout,
)
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.telemetry.sensors import Energy, EnergyMeter
from flwr_splitkd.tiers.edge.averaging import Copies
from flwr_splitkd.tiers.edge.batching import Answered, Batching, Item, differentiate
from flwr_splitkd.tiers.edge.exchange import Exchange, Microbatch
from flwr_splitkd.tiers.edge.objective import Objective
from flwr_splitkd.tiers.edge.optimizer import EdgeOptimizer
from flwr_splitkd.tiers.edge.plan import TurnOutcome, TurnPlan, TurnSettings
from flwr_splitkd.tiers.edge.student import EdgeStudent
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.units import FROZEN, Moments, require_finite
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Member", "member_seed", "run_cluster"]

_log = logging.getLogger(__name__)

_FATAL = (ConfigError, CutError, StoreError)
"""Not one device's fault: the others would meet the same."""
_REMEDY = "The cluster is undone; lower the learning rate, clip gradients, or check the labels."
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """A connected device with its plan. What `plan.info` says of the device goes into the commit's ``cluster``."""

    link: Link
    hello: pb.Hello
    plan: TurnPlan


def member_seed(seed: int, position: int) -> int:
    """Seed of a device's dropout and data order: the run's for the first of a cluster, another for each of the others."""
    return seed + _SEED_STRIDE * position


def run_cluster(
    members: Sequence[Member],
    *,
    student: EdgeStudent,
    objective: Objective,
    settings: TurnSettings,
    info: Mapping[str, Any],
    batching: Batching | None = None,
    cache: TeacherCache | None = None,
    meter: EnergyMeter | None = None,
) -> list[TurnOutcome | SplitKDError]:
    """Serve the turns of a cluster to one commit; if all devices are lost the student is as of the last one.

    Parameters
    ----------
    members
        Each with a plan to train that begins with the student's next step.
    student, objective, settings
        As for a turn.
    info
        What the commit shall remember; the ``info`` of those who have finished is added as ``cluster``.
    batching
        What is known of which micro-batches go through together; made from `settings` when not given.
    cache
        Of what the teacher made; None to keep none.
    meter
        Measures the joules of this machine; None not to.

    Returns
    -------
    list
        Of each member what came of it, or why nothing; the device has been told.

    Raises
    ------
    ConfigError, CutError, StoreError
        If it is no device's fault; everything is undone.
    """
    cluster = _Cluster(members, student, objective, settings, info, batching, cache, meter)
    try:
        return cluster.run()
    except BaseException as error:
        for member in members:
            member.link.fail(error)
        student.roll_back()
        if isinstance(error, SplitKDError) and not isinstance(error, _FATAL):
            return [seat.error or error for seat in cluster.seats]
        raise
    finally:
        for seat in cluster.seats:
            seat.exchange.end()


@dataclass(slots=True, eq=False)
class _Seat:
    """A member in its cluster: *training*, then *done* (it has handed its half in) or *lost*."""

    exchange: Exchange
    cut: int
    info: Mapping[str, Any]
    microbatch: Microbatch | None = None
    labels: int = 0
    done: pb.TurnDone | None = None
    error: SplitKDError | None = None
    trained: set[str] = field(default_factory=set)

    @property
    def training(self) -> bool:
        return self.done is None and self.error is None


class _Cluster:
    """The state of one cluster: its devices, the edge's half and optimiser, and the sum of the copies handed in."""

    def __init__(
        self,
        members: Sequence[Member],
        student: EdgeStudent,
        objective: Objective,
        settings: TurnSettings,
        info: Mapping[str, Any],
        batching: Batching | None,
        cache: TeacherCache | None,
        meter: EnergyMeter | None,
    ) -> None:
        self._meter, self._began = meter, meter.begin() if meter else None
        self._student, self._objective, self._settings, self._info = student, objective, settings, info
        self._batching = batching or Batching(enabled=settings.batch_devices)
        self.seats = [
            _Seat(
                Exchange(
                    member.link,
                    member.hello,
                    student=student,
                    objective=objective,
                    settings=settings,
                    plan=member.plan,
                    seed=member_seed(settings.seed, position),
                    cache=cache,
                ),
                member.plan.cut,
                member.plan.info,
            )
            for position, member in enumerate(members)
        ]
        self._order = sorted(self.seats, key=lambda seat: seat.cut)  # stable: then by position
        self._first_step = self._step = members[0].plan.first_step
        self._copies = Copies()
        self._half = _SwitchedHalf(student, settings.seed)

    def run(self) -> list[TurnOutcome | SplitKDError]:
        lowest = self._order[0].cut
        for seat in self._order:
            with self._answerable(seat):
                seat.exchange.begin()
        with self._half:
            half, _ = self._half.at(lowest)
            optimizer = EdgeOptimizer(half, self._student, training=True)
            while self._run_step(optimizer):
                self._step += 1
        moments = optimizer.moments()
        finished = [seat for seat in self.seats if seat.done is not None]
        if not finished:
            self._student.roll_back()
            return [_error(seat) for seat in self.seats]
        started_s = time.monotonic()
        commit_id = self._commit(finished, moments)
        commit_s = time.monotonic() - started_s
        energy = self._energy(len(finished))
        return [self._end(seat, commit_id, commit_s, energy) for seat in self.seats]

    # ---- one step of all devices

    def _run_step(self, optimizer: EdgeOptimizer) -> bool:
        """Take one optimiser step with whoever still has data; whether anybody had."""
        shares = _Shares()
        index = 0
        while self._run_wave(index, shares):
            index += 1
        stepped = [seat for seat in self._order if seat.training and seat.microbatch is not None]
        if stepped:
            self._apply(stepped, shares, optimizer)
        else:
            optimizer.zero_grad()  # whoever was in this step is lost
        for seat in self._order:
            seat.microbatch = None
        return bool(stepped)

    def _run_wave(self, index: int, shares: _Shares) -> bool:
        """Serve one micro-batch of every device that has one more in this step; whether any had."""
        served = False
        for cut in dict.fromkeys(seat.cut for seat in self._order):
            came = [seat for seat in self._order if seat.cut == cut and self._next(seat, index)]
            if came:
                served = True
                self._serve(cut, came, shares)
        return served

    def _next(self, seat: _Seat, index: int) -> bool:
        """Receive a device's micro-batch `index` of the step; whether there is one."""
        if not seat.training or (index and (seat.microbatch is None or seat.microbatch.last)):
            return False
        came = False
        with self._answerable(seat):
            message = seat.exchange.receive("Forward" if index else "Forward|TurnDone")
            if message.kind == "TurnDone":
                self._take_in(seat, message)
            else:
                microbatch = seat.exchange.microbatch(message)
                if self._step == self._first_step and not index:
                    self._check_cut(seat.cut, microbatch)
                seat.microbatch, seat.labels = microbatch, microbatch.step_num_tokens
                came = True
        return came

    def _check_cut(self, cut: int, microbatch: Microbatch) -> None:
        """A cut of a module from outside transformers is tried on the whole model, once."""
        if not is_token_model(self._student.model):
            self._half.close()
            self._student.check_cut(cut, microbatch.inputs)

    def _serve(self, cut: int, came: Sequence[_Seat], shares: _Shares) -> None:
        half, seeds = self._half.at(cut)
        shares.enter([(seat, seat.labels) for seat in came])
        items = {id(item): (seat, item) for seat in came if (item := self._item(seat, seeds, shares))}
        for group in self._batching.groups(self._objective, half, [item for _, item in items.values()]):
            started_s = time.monotonic()
            answers = differentiate(self._objective, half, group)
            seconds = time.monotonic() - started_s
            rows = sum(item.microbatch.num_samples for item in group)
            for item, answered in zip(group, answers, strict=True):
                seat, _ = items[id(item)]
                share_s = seconds * item.microbatch.num_samples / max(rows, 1)
                seat.exchange.spans.add("student", self._step, item.microbatch.index, started_s, share_s)
                with self._answerable(seat):
                    self._answer(seat, answered)

    def _item(self, seat: _Seat, seeds: DropoutSeeds, shares: _Shares) -> Item | None:
        microbatch = seat.microbatch
        if microbatch is None:
            return None
        at = partial(seeds.at, microbatch.step, microbatch.index, seed=seat.exchange.seed)
        return Item(microbatch=microbatch, peer=seat.exchange.link.peer, weight=shares.factor(seat), at=at)

    def _answer(self, seat: _Seat, answered: Answered) -> None:
        if answered.error is not None:
            raise answered.error
        microbatch = seat.microbatch
        if microbatch is None or answered.loss is None or answered.gradient is None:
            raise ValueError("An answer without a micro-batch.")
        seat.exchange.count(answered.loss)
        update = microbatch.last and self._settings.max_grad_norm is None
        seat.exchange.answer(microbatch, answered.gradient, self._update() if update else None)

    def _apply(self, stepped: list[_Seat], shares: _Shares, optimizer: EdgeOptimizer) -> None:
        """Step the edge's copies, each by the mean over those that went through it; with the devices when clipping."""
        for name, parameter in optimizer.trainable:
            factor = shares.correction(self._block(name))
            if parameter.grad is not None and factor != 1:
                parameter.grad.mul_(factor)
        if self._settings.max_grad_norm is not None:
            self._clip(stepped, shares, optimizer)
        optimizer.step(self._learning_rate())

    def _clip(self, stepped: list[_Seat], shares: _Shares, optimizer: EdgeOptimizer) -> None:
        """One factor for all copies of the step, from the norm over all parameters, see `mean_norms`."""
        norms: list[tuple[float, Mapping[str, Tensor]]] = []
        for seat in stepped:
            with self._answerable(seat):
                norms.append((max(seat.labels, 0), seat.exchange.gradient_norms(self._step)))
        own = grad_norms(optimizer.trainable)
        for name, norm in own.items():
            norms.append((shares.through(self._block(name)), {name: norm}))
        means = mean_norms(norms, shares.total_labels)
        factor, total = clip_coefficient(means, self._student.parameter_order, float(self._settings.max_grad_norm or 0))
        require_finite(total, f"The gradient norm of step {self._step}", _REMEDY)
        update = self._update()
        update.clip_coefficient = float(factor)
        for seat in stepped:
            with self._answerable(seat):
                if seat.training:
                    seat.exchange.link.send(update)
        scale_gradients((parameter for _, parameter in optimizer.trainable), factor)

    def _update(self) -> pb.Update:
        return pb.Update(step=self._step, learning_rate=self._learning_rate(), clip_coefficient=1.0)

    def _learning_rate(self) -> float:
        return self._student.optimizer.learning_rate * self._settings.lr_schedule(self._step)

    # ---- the end

    def _take_in(self, seat: _Seat, message: WireMessage) -> None:
        """A device is through with its data: add its copies, if they are sound, to those of the others."""
        self._half.close()  # names and shapes are compared with the whole student's
        seat.exchange.check_times(message)
        weights, moments = self._student.check_part(seat.cut, seat.exchange.take_half(message))
        self._copies.add(seat.exchange.num_samples, weights, moments)
        seat.done, seat.trained = message.body, set(weights)

    def _commit(self, finished: Sequence[_Seat], moments: Moments) -> str:
        """Average what several hold, and make the student durable."""
        highest = max(seat.cut for seat in finished)
        state = self._student.model.state_dict()
        averaged: set[str] = set().union(*(seat.trained for seat in finished))
        for name in averaged:
            block = self._block(name)
            stands_for = sum(seat.exchange.num_samples for seat in finished if seat.cut <= block < highest)
            if stands_for:
                require_finite(state[name], f"The edge's {name!r} at the cluster's end", _REMEDY)
                own = {name: moments[name]} if name in moments and self._student.handover == "full" else {}
                self._copies.add(stands_for, {name: state[name]}, own)
        return self._student.commit_copies(
            self._copies.weights(),
            self._copies.moments(),
            moments,  # of what several hold, the mean takes their place
            {
                **self._info,
                "next_step": self._step,
                "finished": True,
                "cluster": [dict(seat.info) for seat in finished],
            },
        ).commit_id

    def _energy(self, num_finished: int) -> Energy | None:
        """An equal share of what this machine has taken, for each device that has finished: they sum up to all of it."""
        energy = self._meter.joules(self._began) if self._meter and self._began else None
        if energy is None or energy.joules is None:
            return energy
        return replace(energy, joules=energy.joules / num_finished)

    def _end(self, seat: _Seat, commit_id: str, commit_s: float, energy: Energy | None) -> TurnOutcome | SplitKDError:
        if seat.done is None:
            return _error(seat)
        result = seat.exchange.result(commit_id, self._still_held(seat))
        seat.exchange.tell(result)
        return seat.exchange.outcome(seat.done, result, commit_s=commit_s, num_together=len(self.seats), energy=energy)

    def _still_held(self, seat: _Seat) -> Iterator[str]:
        """Units of which the device's copy is the committed one: it did not train, or nobody else has a copy."""
        for unit in self._student.device_units(seat.cut):
            names = self._student.names_in(unit)
            if unit.endswith(FROZEN) or (
                seat.exchange.num_samples and all(self._copies.num_copies(n) == 1 for n in names)
            ):
                yield unit

    def _block(self, name: str) -> int:
        """Number of the block that a tensor belongs to: those whose cut is at most that go through it on the edge."""
        layout = self._student.layout
        kind, _, index = layout.unit_of(name).partition(".")
        return int(index) if index else -1 if kind == "stem" else layout.num_blocks

    @contextmanager
    def _answerable(self, seat: _Seat) -> Iterator[None]:
        """Let a device's own fault end its turn alone."""
        try:
            yield
        except _FATAL:
            raise
        except SplitKDError as error:
            seat.error = error
            seat.exchange.link.fail(error)
            _log.warning("%s is left out of its cluster: %s", seat.exchange.link.peer, error)


def _error(seat: _Seat) -> SplitKDError:
    return seat.error or NonFiniteError("The cluster came to nothing.")


class _Shares:
    """How much each device's mean loss counts in a step of the edge's copies.

    Gradients are summed with the factors ``n_i / D`` as devices come, D being the labels of those who came first; so with equal
    cuts, when they come together, the sum is the mean already. `correction` makes it the mean for every layer: ``D / W_l``.
    """

    def __init__(self) -> None:
        self._labels: dict[int, tuple[_Seat, int]] = {}
        self._divisor = 0

    @property
    def total(self) -> int:
        """Devices that have come."""
        return len(self._labels)

    @property
    def total_labels(self) -> float:
        return sum(labels for _, labels in self._labels.values())

    def enter(self, came: Sequence[tuple[_Seat, int]]) -> None:
        if not self._divisor:
            self._divisor = sum(labels for _, labels in came)
        self._labels.update((id(seat), (seat, labels)) for seat, labels in came)

    def factor(self, seat: _Seat) -> float:
        labels = self._labels[id(seat)][1]
        # One device that alone has come counts with 1 exactly, also if none of its labels does.
        return labels / self._divisor if self._divisor else 1.0

    def through(self, block: int) -> float:
        """Labels of the devices that go through the edge's copy of a block."""
        return sum(labels for seat, labels in self._labels.values() if seat.cut <= block)

    def correction(self, block: int) -> float:
        labels = self.through(block)
        return self._divisor / labels if labels else 1.0


def mean_norms(norms: Sequence[tuple[float, Mapping[str, Tensor]]], total: float) -> dict[str, Tensor]:
    """Norm of each parameter's gradient over its copies: ``sqrt(sum_i n_i x_i^2 / n)``; of a single copy, its own.

    It is never less than the norm of the copies' mean gradient (Jensen), and equal to it where all agree.

    Parameters
    ----------
    norms
        Labels ``n_i`` that a copy's gradient is the mean over, and its parameters' norms.
    total
        Labels of the step, ``n``.
    """
    copies: dict[str, list[tuple[float, Tensor]]] = {}
    for labels, one in norms:
        for name, norm in one.items():
            copies.setdefault(name, []).append((labels, norm))
    means: dict[str, Tensor] = {}
    for name, every in copies.items():
        labels, norm = every[0]
        if len(every) == 1 and labels in (total, 0):
            means[name] = norm
            continue
        square = sum(count * float(value) ** 2 for count, value in every) / total if total else 0.0
        means[name] = torch.tensor(square**0.5, dtype=norm.dtype, device=norm.device)
    return means


class _SwitchedHalf:
    """The edge's half at one cut after another, with seeded dropout; nothing is done while the cut stays the same."""

    def __init__(self, student: EdgeStudent, seed: int) -> None:
        self._student, self._seed = student, seed
        self._open: tuple[EdgeHalf, DropoutSeeds] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _SwitchedHalf:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def at(self, cut: int) -> tuple[EdgeHalf, DropoutSeeds]:
        if self._open is None or self._open[0].cut != cut:
            self.close()
            half = self._stack.enter_context(self._student.half(cut))
            half.train()
            seeds = self._stack.enter_context(seed_dropout(half.model, self._student.layout, self._seed))
            self._open = half, seeds
        return self._open

    def close(self) -> None:
        """Make the model whole."""
        self._open = None
        self._stack.close()
