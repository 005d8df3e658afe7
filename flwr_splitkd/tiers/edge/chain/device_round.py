"""One device's part in a round, on the edge: from its layers to its layers.

RoundPlan -> ServerHalf -> (receive -> forward -> cloud -> backward -> send -> step)* -> RoundOver.

Each device has a thread that runs this; it waits here for messages and for the cloud. All computing is on the one thread of
the `FairExecutor`, where the device gets its share of the edge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ProtocolError, SplitKDError, TensorError
from flwr_splitkd.split import Layout
from flwr_splitkd.store.tensor_file import digest
from flwr_splitkd.tiers.edge.chain.cloud_link import CloudAnswer, CloudLink
from flwr_splitkd.tiers.edge.chain.half import ServerHalf, held_units
from flwr_splitkd.tiers.edge.chain.iterations import Iterations
from flwr_splitkd.tiers.edge.chain.meter import Meter
from flwr_splitkd.tiers.edge.chain.plan import ChainSettings, DeviceOutcome, DevicePlan
from flwr_splitkd.tiers.fair import FairExecutor
from flwr_splitkd.tiers.seeds import device_seed
from flwr_splitkd.tiers.units import FROZEN, decode_all, decode_one, encode_all, require_finite, versioned_units
from flwr_splitkd.wire.codec import codec_code, encode
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["KeptUnits", "Stage", "serve_device"]

Result = TypeVar("Result")

KeptUnits = dict[str, tuple[str, dict[str, Tensor]]]
"""Version and tensors of each unit that the edge keeps of a device between two rounds."""

_REMEDY = "The iteration is undone; check this device's data and hardware, or lower the learning rate."


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all devices of a round share on the edge.

    Parameters
    ----------
    skeleton
        Builds the encoder without memory.
    layout
        Of the encoder.
    width
        Of its output.
    settings
        Of the run.
    compute
        The thread that computes.
    compute_device
        Where it does.
    cloud
        The stream to the cloud.
    iterations
        Of this round; None when evaluating.
    """

    skeleton: Callable[[], nn.Module]
    layout: Layout
    width: int
    settings: ChainSettings
    compute: FairExecutor
    compute_device: torch.device
    cloud: CloudLink
    iterations: Iterations | None = None


def serve_device(
    link: Link, hello: pb.Hello, stage: Stage, plan: DevicePlan, kept: KeptUnits, meter: Meter | None = None
) -> DeviceOutcome:
    """Serve one device's part in a round.

    Parameters
    ----------
    meter
        Told what the device's iterations take, as they go on.
    kept
        What the edge has of the device's layers; replaced by the half as trained, and emptied if the device is lost: it will
        come back with its backup.

    Raises
    ------
    SplitKDError
        Why it came to nothing; the device has been told.
    """
    one = _DeviceRound(link, hello, stage, plan, meter or Meter())
    try:
        return one.run(kept)
    except BaseException as error:
        kept.clear()
        link.fail(error)
        raise
    finally:
        if stage.iterations is not None:
            stage.iterations.leave(plan.position)
        one.close()


class _DeviceRound:
    def __init__(self, link: Link, hello: pb.Hello, stage: Stage, plan: DevicePlan, meter: Meter) -> None:
        self._link, self._stage, self._plan, self._settings = link, stage, plan, stage.settings
        self._meter = meter
        self._versions = {item.unit: item.version for item in hello.cached_units}
        self._half: ServerHalf | None = None
        self._first_step = self._step = hello.next_step
        self._started_s = time.monotonic()
        self._loss_sum, self._reference_sum, self._num_tokens = 0.0, 0.0, 0
        self._references = self._num_examples = 0
        self._uplink_handover = self._downlink_handover = 0
        self._cloud_s = 0.0
        # Who evaluates takes no step: moments would be two thirds of what travels.
        self._moments_travel = stage.settings.moments_travel and plan.training

    def run(self, kept: KeptUnits) -> DeviceOutcome:
        self._link.admit()
        self._meter.start()
        self._half = self._take_half(kept)
        message = self._serve_steps(self._half)
        if message.kind == "RoundDone":
            self._meter.note(message.body.times, num_steps=self._taken, num_forwards=self._taken)
        if self._stage.iterations is not None:  # the others need not wait while the layers travel
            self._stage.iterations.leave(self._plan.position)
        units = self._compute(self._half.units) if self._plan.training else {}
        trained: KeptUnits = {unit: (digest(tensors), tensors) for unit, tensors in units.items()}
        self._say_over({unit: item for unit, item in trained.items() if not unit.endswith(FROZEN)})
        # A device that is lost before it has its layers has lost the round, and what travels to it belongs to the round.
        self._link.wait_heard(self._settings.step_timeout_s)
        kept.clear()
        kept.update(trained)
        return self._outcome(message)

    def close(self) -> None:
        if self._half is not None:
            half, self._half = self._half, None
            try:
                self._compute(half.close)
            except SplitKDError:  # the edge is being shut down, and its thread with it
                half.close()

    def _compute(self, job: Callable[[], Result]) -> Result:
        return self._stage.compute.run(self._plan.position, job)

    # ---- the half, from what is kept and what the device sends

    def _take_half(self, kept: KeptUnits) -> ServerHalf:
        """Ask for the layers that the edge lacks (SCCT's incremental transmission, section III.A) and build the half."""
        stage, plan, settings = self._stage, self._plan, self._settings
        # With the others' passes in one queue, since a builder that seeds torch's generator would reseed their dropout.
        skeleton = self._compute(stage.skeleton)
        names = versioned_units(skeleton, stage.layout)
        needed = held_units(names, stage.layout, plan.split_point, device=False)
        wanted = [unit for unit in needed if unit not in kept or kept[unit][0] != self._versions.get(unit)]
        seed = device_seed(settings.seed, plan.position)
        self._link.send(
            pb.RoundPlan(
                mode=pb.MODE_TRAIN if plan.training else pb.MODE_EVALUATE,
                server_round=plan.server_round,
                split_point=plan.split_point,
                num_epochs=settings.num_epochs,
                num_iterations=settings.num_iterations,
                first_step=self._first_step,
                seed=seed,
                uplink_codec=codec_code(settings.uplink_codec),
                downlink_codec=codec_code(settings.downlink_codec),
                optimizer=settings.optimizer.to_wire(),
                optimizer_handover=_HANDOVERS[self._moments_travel],
                clip_gradients=settings.max_grad_norm is not None,
                wanted_units=wanted,
                reference_loss=plan.training and stage.cloud.opened.reference_loss,
                max_new_tokens=settings.max_new_tokens,
            )
        )
        message = self._receive("ServerHalf")
        self._uplink_handover = message.num_bytes
        received: dict[str, dict[str, Tensor]] = {unit: {} for unit in wanted}
        for name, tensor in decode_all(message.tensors).items():
            unit, _, rest = name.partition("|")
            if unit not in received:
                raise ProtocolError(f"{self._link.peer} sent a tensor {name[:80]!r}; expected only units {wanted[:8]}.")
            received[unit][rest] = tensor
        units = {unit: received[unit] if unit in received else kept[unit][1] for unit in needed}
        kept.clear()  # the half takes the tensors over
        return self._guarded(
            partial(
                ServerHalf,
                skeleton,
                stage.layout,
                plan.split_point,
                units,
                optimizer=settings.optimizer,
                moments_travel=self._moments_travel,
                seed=seed,
                compute_device=stage.compute_device,
            )
        )

    # ---- iterations

    def _serve_steps(self, half: ServerHalf) -> WireMessage:
        """Serve batches until the device has no more, or the round is over; what it said last."""
        while True:
            message = self._receive("Forward|RoundDone|Leave")
            if message.kind != "Forward":
                return message
            self._check_order(message.body)
            self._meter.came(message)
            if self._plan.training and message.body.HasField("times"):
                times = message.body.times
                self._meter.note(times, num_steps=self._taken, num_forwards=self._taken + 1)
            going_on = self._train(message, half) if self._plan.training else self._evaluate(message, half)
            if not going_on:
                return message
            self._step += 1

    @property
    def _taken(self) -> int:
        return int(self._step - self._first_step)

    def _train(self, message: WireMessage, half: ServerHalf) -> bool:
        stage, step, position = self._stage, self._step, self._plan.position
        inputs, labels = decode_all(message.tensors, "inputs/"), self._labels(message)
        hidden = self._forward(message, half, inputs)
        reference = {
            name.removeprefix("reference/"): tensor
            for name, tensor in message.tensors.items()
            if name.startswith("reference/")
        }
        ask = partial(stage.cloud.differentiate, position, step, hidden, _mask(inputs, hidden), labels, reference)
        if stage.iterations is None:
            raise ValueError("A round that trains has iterations.")
        answer = stage.iterations.take_part(position, step, ask)
        if answer is None:
            return False
        self._sum(answer)
        self._go_back(half, answer)
        self._num_examples += len(labels)
        return True

    def _evaluate(self, message: WireMessage, half: ServerHalf) -> bool:
        inputs, labels = decode_all(message.tensors, "inputs/"), self._labels(message)
        hidden = self._forward(message, half, inputs)
        answered = labels if bool((labels >= 0).any()) else None  # a question whose answer nobody knows has no loss
        answer = self._stage.cloud.evaluate(
            self._plan.position, self._step, hidden, _mask(inputs, hidden), answered, self._settings.max_new_tokens
        )
        self._cloud_s += answer.compute_s
        self._loss_sum += answer.loss
        self._num_tokens += answer.num_tokens
        self._num_examples += len(labels)
        tensors = {} if answer.tokens is None else {"tokens": encode(answer.tokens)}
        self._link.send(pb.Answer(step=self._step, loss_sum=answer.loss, num_tokens=answer.num_tokens), tensors)
        return True

    def _forward(self, message: WireMessage, half: ServerHalf, inputs: Mapping[str, Tensor]) -> Tensor:
        smashed = decode_one(message, "smashed")
        width = self._stage.width
        if smashed.dtype != half.dtype or smashed.dim() != 3 or smashed.shape[-1] != width:
            raise TensorError(
                f"Smashed data of {self._link.peer} are {smashed.dtype} of shape {tuple(smashed.shape)}; expected {half.dtype} "
                f"of shape [batch, positions, {width}]."
            )
        require_finite(smashed, f"The smashed data of step {self._step} of {self._link.peer}", _REMEDY)
        shapes = {name: tuple(tensor.shape) for name, tensor in message.tensors.items()}
        job = partial(half.forward, self._step, smashed, inputs, training=self._plan.training)
        return self._timed(job, f"The tensors were {shapes}.")

    def _labels(self, message: WireMessage) -> Tensor:
        labels = decode_one(message, "labels")
        if labels.dtype != torch.int64 or labels.dim() != 2:
            raise TensorError(
                f"Labels of {self._link.peer} are {labels.dtype} of shape {tuple(labels.shape)}; expected torch.int64 of shape "
                "[batch, tokens]."
            )
        return labels

    def _go_back(self, half: ServerHalf, answer: CloudAnswer) -> None:
        """Backward pass, gradient to the device, and the optimiser step of both halves."""
        settings, step = self._settings, self._step
        if answer.gradient is None:
            raise ProtocolError("The cloud's answer lacks a gradient.")
        gradient = self._timed(partial(half.backward, answer.gradient))
        update = pb.Update(
            step=step,
            learning_rate=settings.optimizer.learning_rate * settings.lr_schedule(step),
            clip_coefficient=1.0,
        )
        backward = pb.Backward(step=step)
        if settings.max_grad_norm is None:
            backward.update.CopyFrom(update)
        encoded = encode(gradient, codec_code(settings.downlink_codec))
        self._meter.sent(len(encoded.payload))
        self._link.send(backward, {"gradient": encoded})
        if settings.max_grad_norm is not None:
            norms: pb.GradientNorms = self._receive("GradientNorms").body
            if norms.step != step or len(norms.norms) != len(half.device_trainable):
                raise ProtocolError(
                    f"{self._link.peer} sent {len(norms.norms)} gradient norms for step {norms.step}; expected "
                    f"{len(half.device_trainable)} for step {step}."
                )
            update.clip_coefficient = self._timed(partial(half.clip, list(norms.norms), settings.max_grad_norm))
            self._link.send(update)
        self._timed(partial(half.step, update.learning_rate))

    def _guarded(self, job: Callable[[], Result], about: str = "") -> Result:
        """Compute what a device has sent: whatever torch says to it is this device's failure, and not the run's."""
        try:
            return self._compute(job)
        except SplitKDError:
            raise
        except Exception as error:
            raise ProtocolError(
                f"What {self._link.peer} sent for step {self._step} cannot be computed by the edge's half: "
                f"{type(error).__name__}: {error}. {about} Check the batches of this device, and the edge's memory."
            ) from error

    def _timed(self, job: Callable[[], Result], about: str = "") -> Result:
        def finished() -> Result:
            result = job()
            if (
                self._stage.compute_device.type == "cuda"
            ):  # which has only been told so far: these seconds are this device's
                torch.cuda.synchronize(self._stage.compute_device)
            return result

        return self._guarded(self._meter.timed(finished), about)

    def _sum(self, answer: CloudAnswer) -> None:
        self._cloud_s += answer.compute_s
        self._loss_sum += answer.loss * answer.num_tokens
        self._num_tokens += answer.num_tokens
        if answer.reference_loss is not None:
            self._reference_sum += answer.reference_loss * answer.num_tokens
            self._references += answer.num_tokens

    def _check_order(self, forward: pb.Forward) -> None:
        if (forward.step, forward.microbatch) != (self._step, 0):
            raise ProtocolError(
                f"{self._link.peer} sent step {forward.step}; expected {self._step}: one was duplicated, lost or reordered. "
                "Nothing of it was applied."
            )

    # ---- the end

    def _round_over(self, units: KeptUnits) -> pb.RoundOver:
        over = pb.RoundOver(
            units=[pb.UnitVersion(unit=unit, version=version) for unit, (version, _) in units.items()],
            loss=self._loss_sum / max(self._num_tokens, 1),
            num_tokens=self._num_tokens,
            num_missed=self._num_missed,
        )
        if self._references:
            over.reference_loss = self._reference_sum / self._references
        return over

    @property
    def _num_missed(self) -> int:
        total = self._settings.num_epochs * self._settings.num_iterations
        return max(total - self._taken, 0) if self._plan.training else 0

    def _say_over(self, units: KeptUnits) -> None:
        tensors: dict[str, EncodedTensor] = {}
        for unit, (_, state) in units.items():
            tensors.update(encode_all(state, f"{unit}|"))
        self._downlink_handover = sum(len(tensor.payload) for tensor in tensors.values())
        self._link.send(self._round_over(units), tensors)

    def _outcome(self, message: WireMessage) -> DeviceOutcome:
        reading = self._meter.reading
        tokens = max(self._num_tokens, 1)
        return DeviceOutcome(
            split_point=self._plan.split_point,
            num_steps=self._taken,
            num_examples=self._num_examples,
            num_tokens=self._num_tokens,
            num_missed=self._num_missed,
            loss=self._loss_sum / tokens,
            reference_loss=self._reference_sum / self._references if self._references else None,
            left=message.body.reason[:200] or "no reason given" if message.kind == "Leave" else "",
            duration_s=time.monotonic() - self._started_s,
            edge_s=self._meter.edge_s,
            device_s=reading.device_s,
            num_resumed=self._link.num_resumed,
            uplink_bytes=self._link.bytes_received,
            downlink_bytes=self._link.bytes_sent,
            uplink_handover_bytes=self._uplink_handover,
            downlink_handover_bytes=self._downlink_handover,
            cloud_s=self._cloud_s,
            edge_wait_s=self._meter.edge_wait_s,
            uplink_s=reading.uplink_s,
            downlink_s=reading.downlink_s,
            uplink_payload_bytes=reading.uplink_bytes,
            downlink_payload_bytes=reading.downlink_bytes,
        )

    def _receive(self, expected: str) -> WireMessage:
        return self._link.receive(expected, self._settings.step_timeout_s)


_HANDOVERS = {True: pb.OPTIMIZER_HANDOVER_FULL, False: pb.OPTIMIZER_HANDOVER_RESET}


def _mask(inputs: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    """Which positions of the encoder's output count."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return torch.ones(hidden.shape[:2], dtype=torch.int64)
    return mask.to(torch.int64)
