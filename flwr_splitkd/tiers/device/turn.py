"""One turn on the device, from the edge's plan to its commit.

(rehearse ->) Begin -> build the half -> steps (see `steps`) -> hand the trained units back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models import inner_model, materialize
from flwr_splitkd.split import (
    DeviceHalf,
    Layout,
    export_optimizer_state,
    import_optimizer_state,
    seed_dropout,
)
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.telemetry.sensors import EnergyMeter
from flwr_splitkd.telemetry.spans import SpanRecorder
from flwr_splitkd.tiers.device.batches import DeviceData
from flwr_splitkd.tiers.device.delivery import receive_student
from flwr_splitkd.tiers.device.rehearsal import rehearse
from flwr_splitkd.tiers.device.steps import Step, Steps
from flwr_splitkd.tiers.device.teacher import TeacherFeed, build_teacher
from flwr_splitkd.tiers.device.units import Units, collect_units, keep_unit
from flwr_splitkd.tiers.energy import energy_to_wire
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.tiers.outbox import Outbox
from flwr_splitkd.tiers.spans import spans_to_wire
from flwr_splitkd.tiers.units import (
    FROZEN,
    TEACHER_UNIT,
    Moments,
    encode_all,
    pack,
    trained_names,
    unpack,
)
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["OWN_MOMENTS", "TurnReport", "run_turn"]

_log = logging.getLogger(__name__)

OWN_MOMENTS = "moments."
"""Cache prefix of the moments that stay with the device under ``optimizer_handover = device``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReport:
    """What the device tells Flower about its turn.

    Parameters
    ----------
    result
        The edge's word on the turn: losses and the commit.
    num_examples
        Samples that went through, every local epoch counted.
    num_steps
        Optimiser steps.
    task
        A ``pb.Task``.
    """

    result: pb.TurnResult
    num_examples: int
    num_steps: int
    task: int


def run_turn(
    link: Link,
    *,
    model: nn.Module,
    layout: Layout,
    data: DeviceData,
    cache: DeviceCache,
    compute_device: torch.device,
    begin_timeout_s: float,
    step_timeout_s: float,
    teacher: Callable[[], nn.Module] | None = None,
    student_folder: Path | None = None,
    meter: EnergyMeter | None = None,
) -> TurnReport:
    """Serve one turn.

    Parameters
    ----------
    link
        Open, past the handshake.
    model
        The student's skeleton, a `PeftModel` if it has adapters: parameters may be on the meta device. It is cut, and of no
        other use afterwards.
    layout
        Of the model itself, adapters included.
    cache
        Where units are looked up and kept.
    compute_device
        Where the half runs.
    begin_timeout_s
        Seconds to wait for the turn to begin, while other devices have theirs.
    step_timeout_s
        Seconds to wait for each answer of the edge.
    teacher
        Builds the teacher, for when its first blocks run here.
    student_folder
        Where the whole student goes, for when the edge delivers it.
    meter
        Measures the joules of this machine from the turn's begin to its end, for the edge; None not to.

    Raises
    ------
    SplitKDError
        Why the turn came to nothing.
    """
    begin, held = link.receive("Begin", begin_timeout_s), None
    if begin.body.mode == pb.MODE_REHEARSE:
        begin, held = rehearse(
            link,
            begin,
            model=model,
            layout=layout,
            data=data,
            cache=cache,
            compute_device=compute_device,
            timeout_s=begin_timeout_s,
            teacher=teacher,
        )
        link.count_anew()
        link.timed(begin)  # the plan is the turn's
    if begin.body.mode == pb.MODE_DELIVER:
        if student_folder is None:
            raise ConfigError("The edge delivers the whole student and `student_folder` is None; expected a folder.")
        result = receive_student(link, begin, whole=model, cache=cache, folder=student_folder, timeout_s=step_timeout_s)
        return TurnReport(result=result, num_examples=0, num_steps=0, task=begin.body.task)
    turn = _Turn(
        link,
        begin,
        model=inner_model(model),
        layout=layout,
        cache=cache,
        compute_device=compute_device,
        step_timeout_s=step_timeout_s,
        teacher=teacher,
        held=held,
        meter=meter,
    )
    del begin, held  # its payloads are as large as the half and its moments
    return turn.run(data)


class _Turn:
    """The state of one turn: the half, its optimiser and where in the run it stands."""

    def __init__(
        self,
        link: Link,
        begin: WireMessage,
        *,
        model: nn.Module,
        layout: Layout,
        cache: DeviceCache,
        compute_device: torch.device,
        step_timeout_s: float,
        teacher: Callable[[], nn.Module] | None,
        held: Units | None,
        meter: EnergyMeter | None,
    ) -> None:
        started_s = time.monotonic()
        self._meter, self._began = meter, meter.begin() if meter else None
        self._link, self._layout, self._cache = link, layout, cache
        self._plan: pb.Begin = begin.body
        # Moments that stay with the device are of no use to another run.
        self._own_version = f"own-{self._plan.run}"
        self._device, self._timeout_s = compute_device, step_timeout_s
        self._training = self._plan.mode == pb.MODE_TRAIN
        # To evaluate, units come without their moments: then only what has none is worth keeping.
        units = collect_units(begin, cache, keep=lambda unit: self._training or unit.endswith(FROZEN), held=held)
        of_teacher = {unit: units.pop(unit) for unit in list(units) if unit.partition(".")[0] == TEACHER_UNIT}
        built = build_teacher(self._plan, of_teacher, teacher, layout.data_input, compute_device)
        self._teacher = TeacherFeed(built, begin) if built is not None else None
        weights, moments = unpack({name: tensor for unit in units.values() for name, tensor in unit.items()})
        self._half = self._build_half(model, weights)
        self._trainable = [(n, p) for n, p in self._half.named_parameters() if p.requires_grad]
        self._optimizer = self._build_optimizer(moments)
        self._spans = SpanRecorder(tracing=self._plan.trace, first_step=self._plan.first_step)
        self._setup_s = time.monotonic() - started_s

    def run(self, data: DeviceData) -> TurnReport:
        started_s, plan = time.monotonic(), self._plan
        with (
            Outbox(self._link, self._device) as outbox,
            seed_dropout(self._half.model, self._layout, plan.seed) as seeds,
        ):
            steps = Steps(
                self._link,
                outbox,
                plan,
                self._half,
                self._optimizer,
                self._teacher,
                compute_device=self._device,
                timeout_s=self._timeout_s,
                spans=self._spans,
            )
            left = self._steps_of(data)
            first = next(left, None)
            step = steps.ready(first) if first is not None else None
            while step is not None:
                step = steps.run(step, seeds, lambda: next(left, None))
                if self._is_checkpoint(steps.num_steps):
                    self._hand_in(steps)
        compute_s = time.monotonic() - started_s - steps.waited_s
        trained = self._trained_units() if self._training else {}
        tensors = encode_all({name: tensor for unit in trained.values() for name, tensor in unit.items()})
        energy = self._meter.joules(self._began) if self._meter and self._began else None
        if energy is not None and energy.joules is None:
            _log.debug("The joules of this turn are not known: %s", energy.reason)
        times = pb.DeviceTimes(
            setup_s=self._setup_s,
            compute_s=compute_s,
            receive_s=self._link.receive_s,
            exchange_s=steps.exchange_s,
            spans=spans_to_wire(self._spans) if plan.trace else None,
            energy=energy_to_wire(energy),
        )
        self._link.send(pb.TurnDone(num_steps=steps.num_steps, num_examples=steps.num_examples, times=times), tensors)
        del tensors  # as large as the half and its moments
        result: pb.TurnResult = steps.receive("TurnResult").body
        self._remember(result)
        return TurnReport(
            result=result, num_examples=steps.num_examples, num_steps=steps.num_steps, task=self._plan.task
        )

    def _steps_of(self, data: DeviceData) -> Iterator[Step]:
        """The turn's steps, without those that were committed before the rest of the turn was lost."""
        left_out = self._plan.done_steps
        for epoch in range(self._plan.local_epochs):
            for batches in data.epoch(self._plan, epoch, self._layout.data_input):
                if left_out:
                    left_out -= 1
                else:
                    yield Step.of(batches, self._plan)

    def _is_checkpoint(self, num_steps: int) -> bool:
        every = self._plan.commit_every_steps
        return self._training and every > 0 and num_steps % every == 0

    def _hand_in(self, steps: Steps) -> None:
        """Have what was trained so far committed."""
        flat = {name: tensor for unit in self._trained_units().values() for name, tensor in unit.items()}
        self._link.send(pb.Checkpoint(num_steps=steps.num_steps), encode_all(flat))
        self._remember(steps.receive("Committed").body)

    # ---- units into the half, and back

    def _build_half(self, model: nn.Module, weights: dict[str, Tensor]) -> DeviceHalf:
        frozen = set(self._plan.frozen)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in frozen:
                parameter.requires_grad_(False)
        half = DeviceHalf(model, self._plan.cut, self._layout)
        materialize(half, weights, device=self._device)
        return half.train(self._training)

    def _build_optimizer(self, moments: Moments) -> torch.optim.Optimizer | None:
        if not self._training or not self._trainable:
            return None
        optimizer = OptimizerSettings.from_wire(self._plan.optimizer).build(p for _, p in self._trainable)
        if self._plan.optimizer_handover == pb.OPTIMIZER_HANDOVER_DEVICE:
            moments = self._own_moments()
        held = {name for name, _ in self._trainable}
        taken = {n: m for n, m in moments.items() if n in held}
        import_optimizer_state(optimizer, self._trainable, taken, copy=False)  # received for this turn alone
        return optimizer

    def _trained_units(self) -> dict[str, dict[str, Tensor]]:
        """What changed, by unit: trained weights and buffers, with their moments if these travel."""
        moments: Moments = {}
        if self._optimizer is not None and self._plan.optimizer_handover == pb.OPTIMIZER_HANDOVER_FULL:
            moments = export_optimizer_state(self._optimizer, self._trainable)
        changed = trained_names(self._half.model)
        weights: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._half.model.state_dict().items():
            if name in changed:
                weights.setdefault(self._layout.unit_of(name), {})[name] = tensor.detach()
        return {unit: pack(tensors, moments) for unit, tensors in weights.items()}

    # ---- what the disk cache keeps for the next turn

    def _remember(self, result: pb.TurnResult | pb.Committed) -> None:
        if not self._training:
            return
        self._keep_own_moments()
        trained = self._trained_units()
        for item in result.units:
            if item.unit in trained:
                keep_unit(self._cache, item.unit, item.version, trained[item.unit])

    def _keep_own_moments(self) -> None:
        if self._plan.optimizer_handover != pb.OPTIMIZER_HANDOVER_DEVICE or self._optimizer is None:
            return
        for name, entries in export_optimizer_state(self._optimizer, self._trainable).items():
            keep_unit(self._cache, OWN_MOMENTS + name, self._own_version, entries)

    def _own_moments(self) -> Moments:
        """What this device kept in this run; a damaged file is as if it had kept nothing."""
        kept = self._cache.versions()
        moments: Moments = {}
        for name, _ in self._trainable:
            if kept.get(OWN_MOMENTS + name) != self._own_version:
                continue
            try:
                moments[name] = self._cache.get(OWN_MOMENTS + name, self._own_version)
            except StoreError as error:
                _log.warning("The moments of %s start from zero: %s", name, error)
        return moments
