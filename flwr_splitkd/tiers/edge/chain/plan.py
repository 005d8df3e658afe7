"""What a round of the chain is served with, and what came of it for a device."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, OptimizerSettings, constant
from flwr_splitkd.wire.codec import CodecName, codec_code

__all__ = ["ChainSettings", "DeviceOutcome", "DevicePlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings:
    """What is the same for every round and device.

    Parameters
    ----------
    seed
        Of dropout and the order of the data.
    num_epochs, num_iterations
        Epochs in a round, and iterations in an epoch (T and J of the paper).
    optimizer, lr_schedule
        Of both halves of every encoder, and the factor on the rate by the device's step.
    moments_travel
        Whether optimiser moments change hands with their layers; else they start from zero in every round.
    max_grad_norm
        Bound on the global L2 norm of each encoder's gradient, both halves together; None to leave it.
    uplink_codec, downlink_codec
        For smashed data, and for gradients, between device and edge.
    quorum, straggler_timeout_s
        As in `Iterations`.
    step_timeout_s
        Seconds that a device may take for one answer.
    max_new_tokens
        Tokens that the cloud generates for an answer, at most.
    """

    seed: int = 0
    num_epochs: int = 1
    num_iterations: int = 10
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    lr_schedule: LearningRateSchedule = constant
    moments_travel: bool = True
    max_grad_norm: float | None = None
    uplink_codec: CodecName = "none"
    downlink_codec: CodecName = "none"
    quorum: float = 1.0
    straggler_timeout_s: float = 1.0
    step_timeout_s: float = 300.0
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If a setting is out of range.
        """
        for name, minimum in {"seed": 0, "num_epochs": 1, "num_iterations": 1, "max_new_tokens": 0}.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least {minimum}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ConfigError(f"`max_grad_norm` is {self.max_grad_norm}; expected more than 0, or None not to clip.")
        if not 0 < self.quorum <= 1:
            raise ConfigError(f"`quorum` is {self.quorum}; expected above 0, and at most 1 to wait for every device.")
        if not self.straggler_timeout_s >= 0:
            raise ConfigError(f"`straggler_timeout_s` is {self.straggler_timeout_s}; expected 0 or more seconds.")
        if not self.step_timeout_s > 0:
            raise ConfigError(f"`step_timeout_s` is {self.step_timeout_s}; expected more than 0 seconds.")
        codec_code(self.uplink_codec)
        codec_code(self.downlink_codec)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """What was decided for one device in one round.

    Parameters
    ----------
    position
        Of the device among all of the run, from 0: orders sums and seeds dropout.
    server_round
        From 1.
    split_point
        Blocks of the encoder on the device, 1 to all.
    training
        Whether the round trains, or evaluates.
    """

    position: int
    server_round: int
    split_point: int
    training: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOutcome:
    """A device's part in a round. Losses are means over its counted labels; bytes are those of its stream.

    `num_missed` iterations were closed without it. `left` says why it left on purpose, and is empty otherwise.
    `uplink_handover_bytes` are those of the layers that the edge lacked, `downlink_handover_bytes` of the half that went back.
    `cloud_s` are the seconds that the cloud computed for it, `edge_wait_s` those in which the edge's work for it waited for other
    devices'. The payload of its iterations, without layers, came in `uplink_s` and `downlink_s`: each message from its
    headers to its end.
    """

    split_point: int
    num_steps: int
    num_examples: int
    num_tokens: int
    num_missed: int
    loss: float
    reference_loss: float | None
    left: str
    duration_s: float
    edge_s: float
    device_s: float
    num_resumed: int
    uplink_bytes: int
    downlink_bytes: int
    uplink_handover_bytes: int
    downlink_handover_bytes: int
    cloud_s: float = 0.0
    edge_wait_s: float = 0.0
    uplink_s: float = 0.0
    downlink_s: float = 0.0
    uplink_payload_bytes: int = 0
    downlink_payload_bytes: int = 0
