"""What a turn is served with, what was decided for it, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.telemetry.spans import LocatedSpan
from flwr_splitkd.tiers.edge.clock import TurnClock
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, constant
from flwr_splitkd.wire.codec import CodecName, codec_code

__all__ = ["TurnMode", "TurnOutcome", "TurnPlan", "TurnSettings"]

TurnMode = Literal["train", "evaluate", "deliver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """What is the same for every turn of a run.

    Parameters
    ----------
    seed
        Of dropout and the order of the data.
    max_grad_norm
        Bound on the global L2 norm of the gradients of both halves; None to leave them as they are.
    gradient_accumulation_steps
        Batches of a device in one optimiser step.
    num_microbatches
        Micro-batches that each of these is divided into.
    pipeline_depth
        Micro-batches of a step that may be on their way or on the edge at a time, and whose activations the device holds; 1 is
        lock-step, 0 as many as pay by what earlier turns of the device took (2 in its first one).
    trace
        Whether turns report every stage of every step.
    max_batches
        At most so many batches of each local epoch; 0 for all.
    uplink_codec, downlink_codec
        For smashed data and teacher embeddings, and for gradients; "auto" for as little loss as each device's measured rates
        allow ("none" in its first turn).
    error_feedback
        Whether what the downlink codec leaves out of a micro-batch's gradient is added to the next step's; see `ErrorFeedback`.
    lr_schedule
        Factor on the base learning rate by step.
    commit_every_steps
        Optimiser steps after which a turn commits what it has; 0 for only at its end.
    batch_devices
        Whether the edge computes for devices of one cluster and one cut in one batch, where that gives the same.
    step_timeout_s
        Seconds that a device may take for one answer.
    turn_timeout_s
        Seconds that a whole turn may take; None for as long as its answers come.
    """

    seed: int = 0
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1
    num_microbatches: int = 1
    pipeline_depth: int = 0
    trace: bool = False
    max_batches: int = 0
    uplink_codec: CodecName | Literal["auto"] = "none"
    downlink_codec: CodecName | Literal["auto"] = "none"
    error_feedback: bool = False
    lr_schedule: LearningRateSchedule = constant
    commit_every_steps: int = 0
    batch_devices: bool = True
    step_timeout_s: float = 300.0
    turn_timeout_s: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If a setting is out of range.
        """
        minima = {
            "seed": 0,
            "gradient_accumulation_steps": 1,
            "num_microbatches": 1,
            "pipeline_depth": 0,
            "max_batches": 0,
            "commit_every_steps": 0,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least {minimum}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ConfigError(f"`max_grad_norm` is {self.max_grad_norm}; expected more than 0, or None not to clip.")
        for name in ("step_timeout_s", "turn_timeout_s"):
            if (seconds := getattr(self, name)) is not None and not seconds > 0:
                raise ConfigError(f"`{name}` is {seconds}; expected more than 0 seconds.")
        for codec in (self.uplink_codec, self.downlink_codec):
            if codec != "auto":
                codec_code(codec)

    @property
    def step_microbatches(self) -> int:
        """Most micro-batches in one optimiser step."""
        return self.gradient_accumulation_steps * self.num_microbatches


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPlan:
    """What was decided for one turn.

    Parameters
    ----------
    mode
        Whether the turn trains, evaluates, or delivers the whole student to the device.
    cut
        Blocks on the device.
    local_epochs
        Passes over the device's data.
    first_step
        Number of the first optimiser step to take, over the whole run.
    info
        What each commit of the turn shall remember beside how far it is.
    done_steps
        Steps of this turn that were committed before it was lost; they are not taken again.
    order_step
        Seeds the order of the data: `first_step` when the turn began; the same as that when not given.
    run
        Name of the run in the device's cache.
    uplink_codec, downlink_codec
        For smashed data and teacher embeddings, and for gradients, in this turn.
    pipeline_depth
        Micro-batches in flight, at least 1.
    """

    mode: TurnMode
    cut: int
    local_epochs: int
    first_step: int
    info: Mapping[str, Any]
    done_steps: int = 0
    order_step: int | None = None
    run: str = ""
    uplink_codec: CodecName = "none"
    downlink_codec: CodecName = "none"
    pipeline_depth: int = 1

    @property
    def data_step(self) -> int:
        """The step that seeds the order of the data."""
        return self.first_step if self.order_step is None else self.order_step


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOutcome:
    """A completed turn. Losses are means over its counted labels; bytes are those of the data plane.

    Where `duration_s` went: `device_s` and `edge_s` computing, `uplink_s` and `downlink_s` for `uplink_payload_bytes` and
    `downlink_payload_bytes` on their way, `fixed_s` for building the device's half and for commits; the rest is what messages
    take beside their payload. `device_s` and `downlink_s` are the device's own word.

    With more than one micro-batch in flight (`pipeline_depth`) stages overlap, and their sum may exceed the duration.

    `exchange_s` is the least time, by the device, from the departure of a micro-batch to the arrival of its answer.
    `teacher_s` is the part of `edge_s` in which the teacher computed; `teacher_rest_mass` is the mean probability that
    `teacher_top_k` did not keep exactly so far, None without it. `spans` are every stage of every step, when traced.
    `loss` is what was minimised; `kl_divergence` is without the factor temperature squared. `num_resumed` counts connections
    that were lost and taken up again. `first_forward_s` are the seconds from the turn's begin until the first smashed data had
    arrived: the device's part, the way of its layers and a forward pass; 0 if none came. `handover_downlink_bytes` are those of
    `handover_bytes` that the device got before. `cluster_wait_s` is what no stage explains in a cluster of several devices: for
    the most part, each waits for the others. `clock` is what became of the clock that was chosen, None where none was to be set.

    `measured_device_j` and `measured_edge_j` are the joules of the two machines in the turn as their own sensors have them, None
    where they have none; the parts are what is in them. The device's are its own word. Those of the edge in a cluster are an
    equal share of what it took for all devices that finished.
    """

    cut: int
    commit_id: str
    num_steps: int
    num_batches: int
    num_examples: int
    num_tokens: int
    loss: float
    cross_entropy: float
    kl_divergence: float
    num_correct: int
    duration_s: float
    num_resumed: int
    first_forward_s: float
    uplink_bytes: int
    downlink_bytes: int
    handover_bytes: int
    handover_downlink_bytes: int
    device_s: float
    edge_s: float
    uplink_s: float
    downlink_s: float
    fixed_s: float
    uplink_payload_bytes: int
    downlink_payload_bytes: int
    teacher_s: float = 0.0
    teacher_rest_mass: float | None = None
    pipeline_depth: int = 1
    uplink_codec: CodecName = "none"
    downlink_codec: CodecName = "none"
    exchange_s: float = 0.0
    cluster_wait_s: float = 0.0
    measured_device_j: float | None = None
    measured_edge_j: float | None = None
    measured_device_parts: tuple[str, ...] = ()
    measured_edge_parts: tuple[str, ...] = ()
    clock: TurnClock | None = None
    spans: tuple[LocatedSpan, ...] = field(default=(), repr=False)

    @property
    def handover_uplink_bytes(self) -> int:
        """Part of `handover_bytes` that the device sent, at the end and at checkpoints."""
        return self.handover_bytes - self.handover_downlink_bytes

    @property
    def measured_j(self) -> dict[str, float]:
        """Joules by the names that metrics have, in all and for each optimiser step, where they were measured."""
        named = {"measured_device_j": self.measured_device_j, "measured_edge_j": self.measured_edge_j}
        known = {name: joules for name, joules in named.items() if joules is not None}
        if not self.num_steps:
            return known
        return known | {f"{name}_per_step": joules / self.num_steps for name, joules in known.items()}

    @property
    def other_s(self) -> float:
        """What no stage explains: latency of messages, waiting for a processor, retransmission.

        Less than 0 by what stages overlap: the teacher works a step ahead while the device computes, and micro-batches are in
        flight.
        """
        known_s = self.device_s + self.edge_s + self.uplink_s + self.downlink_s + self.fixed_s + self.cluster_wait_s
        return self.duration_s - known_s
