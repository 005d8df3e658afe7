"""One turn on the device, from the edge's plan to its commit.

Begin -> build the half -> (forward -> send -> receive -> backward)* -> step ... -> hand the trained units back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, DataError, ProtocolError, SplitKDError, StoreError, TensorError
from flwr_splitkd.models import inner_model, materialize
from flwr_splitkd.split import (
    DeviceHalf,
    Layout,
    export_optimizer_state,
    grad_norms,
    import_optimizer_state,
    scale_gradients,
    seed_dropout,
)
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device.batches import Batch, DeviceData, count_labels, split_labels
from flwr_splitkd.tiers.device.delivery import receive_student
from flwr_splitkd.tiers.device.teacher import build_teacher
from flwr_splitkd.tiers.device.units import collect_units, keep_unit
from flwr_splitkd.tiers.optimizer import OptimizerSettings, set_learning_rate
from flwr_splitkd.tiers.units import (
    FROZEN,
    TEACHER_UNIT,
    Moments,
    encode_all,
    pack,
    require_finite,
    trained_names,
    unpack,
)
from flwr_splitkd.wire.codec import decode, encode
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["OWN_MOMENTS", "TurnReport", "run_turn"]

_log = logging.getLogger(__name__)

NO_GRADIENT = -1.0
"""In GradientNorms: this parameter took no part in the step."""

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

    Raises
    ------
    SplitKDError
        Why the turn came to nothing.
    """
    begin = link.receive("Begin", begin_timeout_s)
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
    )
    del begin  # its payloads are as large as the half and its moments
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
    ) -> None:
        started_s = time.monotonic()
        self._link, self._layout, self._cache = link, layout, cache
        self._plan: pb.Begin = begin.body
        # Moments that stay with the device are of no use to another run.
        self._own_version = f"own-{self._plan.run}"
        self._device, self._timeout_s = compute_device, step_timeout_s
        self._training = self._plan.mode == pb.MODE_TRAIN
        # To evaluate, units come without their moments: then only what has none is worth keeping.
        units = collect_units(begin, cache, keep=lambda unit: self._training or unit.endswith(FROZEN))
        of_teacher = {unit: units.pop(unit) for unit in list(units) if unit.partition(".")[0] == TEACHER_UNIT}
        self._teacher = build_teacher(self._plan, of_teacher, teacher, layout.data_input, compute_device)
        weights, moments = unpack({name: tensor for unit in units.values() for name, tensor in unit.items()})
        self._half = self._build_half(model, weights)
        self._trainable = [(n, p) for n, p in self._half.named_parameters() if p.requires_grad]
        self._optimizer = self._build_optimizer(moments)
        self._step = self._plan.first_step
        self._num_examples = 0
        self._waited_s, self._setup_s = 0.0, time.monotonic() - started_s

    def run(self, data: DeviceData) -> TurnReport:
        started_s, waited_s = time.monotonic(), self._waited_s
        left_out = self._plan.done_steps  # a part of this turn that was committed before the rest was lost
        with seed_dropout(self._half.model, self._layout, self._plan.seed) as seeds:
            for epoch in range(self._plan.local_epochs):
                for microbatches in data.epoch(self._plan, epoch, self._layout.data_input):
                    if left_out:
                        left_out -= 1
                        continue
                    self._run_step(microbatches, seeds)
                    if self._is_checkpoint():
                        self._hand_in()
        compute_s = time.monotonic() - started_s - (self._waited_s - waited_s)
        num_steps = self._step - self._plan.first_step
        trained = self._trained_units() if self._training else {}
        flat = {name: tensor for unit in trained.values() for name, tensor in unit.items()}
        times = pb.DeviceTimes(
            setup_s=self._setup_s,
            compute_s=compute_s,
            receive_s=self._link.receive_s,
        )
        self._link.send(
            pb.TurnDone(num_steps=num_steps, num_examples=self._num_examples, times=times), encode_all(flat)
        )
        result: pb.TurnResult = self._receive("TurnResult").body
        self._remember(result)
        return TurnReport(result=result, num_examples=self._num_examples, num_steps=num_steps, task=self._plan.task)

    def _receive(self, expected: str) -> WireMessage:
        """Wait for the edge's answer, and count for how long."""
        started_s = time.monotonic()
        try:
            return self._link.receive(expected, self._timeout_s)
        finally:
            self._waited_s += time.monotonic() - started_s

    def _is_checkpoint(self) -> bool:
        every, num_steps = self._plan.commit_every_steps, self._step - self._plan.first_step
        return self._training and every > 0 and num_steps % every == 0

    def _hand_in(self) -> None:
        """Have what was trained so far committed."""
        flat = {name: tensor for unit in self._trained_units().values() for name, tensor in unit.items()}
        self._link.send(pb.Checkpoint(num_steps=self._step - self._plan.first_step), encode_all(flat))
        self._remember(self._receive("Committed").body)

    # ---- one optimiser step

    def _run_step(self, microbatches: Sequence[Batch], seeds: DropoutSeeds) -> None:
        task, ignore_index = self._plan.task, self._plan.ignore_index
        pairs = [split_labels(batch, task, ignore_index) for batch in microbatches]
        num_tokens = sum(count_labels(labels, ignore_index) for _, labels in pairs)
        update: pb.Update | None = None
        for index, (inputs, labels) in enumerate(pairs):
            seeds.at(self._step, index)
            header = pb.Forward(
                step=self._step, microbatch=index, num_microbatches=len(pairs), step_num_tokens=num_tokens
            )
            update = self._run_microbatch(header, inputs, labels)
            self._num_examples += len(labels)
        if self._training:
            self._update(update)
        self._step += 1

    def _run_microbatch(self, header: pb.Forward, inputs: dict[str, Tensor], labels: Tensor) -> pb.Update | None:
        self._check_token_ids(inputs)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.set_grad_enabled(self._training):
            smashed = self._forward(inputs)
        self._link.send(header, self._uplink(smashed, inputs, labels))
        answer = self._receive("Backward")
        self._check_answer(header, answer)
        if self._training and smashed.requires_grad:
            gradient = decode(answer.tensors["gradient"]).to(self._device)
            if gradient.shape != smashed.shape:
                raise TensorError(
                    f"The gradient of step {header.step} has shape {tuple(gradient.shape)}; expected {tuple(smashed.shape)}."
                )
            require_finite(gradient, f"The gradient of step {header.step}", "Lower the learning rate.")
            torch.autograd.backward(smashed, gradient)
        return answer.body.update if answer.body.HasField("update") else None

    def _forward(self, inputs: dict[str, Tensor]) -> Tensor:
        try:
            return self._half(inputs)
        except SplitKDError:
            raise
        except Exception as error:  # torch's own words for shapes and kinds that do not go together
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            raise DataError(
                f"A batch of the shapes {shapes} does not go through the student: {type(error).__name__}: {error}. Check the "
                "data set of this device."
            ) from error

    def _check_token_ids(self, inputs: dict[str, Tensor]) -> None:
        """A token id beyond the table would end in torch's own words, which name neither the id nor the bound."""
        ids, table = inputs.get("input_ids"), self._half.input_embedding()
        if ids is None or table is None or not ids.numel():
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= table.shape[0]:
            raise DataError(
                f"`input_ids` has {low if low < 0 else high}; expected 0..{table.shape[0] - 1}, the student's vocabulary. "
                "Tokenize with the tokenizer that belongs to the student."
            )

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

    def _uplink(self, smashed: Tensor, inputs: dict[str, Tensor], labels: Tensor) -> dict[str, EncodedTensor]:
        codec = self._plan.uplink_codec
        tensors = {"smashed": encode(smashed, codec), "labels": encode(labels)}
        tensors.update(encode_all(self._half.edge_inputs(inputs), "inputs/"))
        if self._teacher is not None:
            outputs, beside = self._teacher(inputs)
            tensors["teacher_embeddings"] = encode(outputs, codec)
            tensors.update(encode_all(beside, "teacher_inputs/"))
        return tensors

    def _update(self, update: pb.Update | None) -> None:
        if self._plan.clip_gradients:
            norms = grad_norms(self._trainable)
            values = [float(norms[name]) if name in norms else NO_GRADIENT for name, _ in self._trainable]
            self._link.send(pb.GradientNorms(step=self._step, norms=values))
            update = self._receive("Update").body
        if self._optimizer is None or update is None:
            return
        if self._plan.clip_gradients:
            dtype = self._trainable[0][1].dtype
            scale_gradients(
                (parameter for _, parameter in self._trainable), torch.tensor(update.clip_coefficient, dtype=dtype)
            )
        set_learning_rate(self._optimizer, update.learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

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
        import_optimizer_state(optimizer, self._trainable, {n: m for n, m in moments.items() if n in held})
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
