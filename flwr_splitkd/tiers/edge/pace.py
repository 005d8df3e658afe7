"""What a device's next turn is served with, by what its last one took: micro-batches in flight, and codecs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from flwr_splitkd.costs.workload import CODEC_BYTES
from flwr_splitkd.schedulers.codec import choose_codecs
from flwr_splitkd.schedulers.pipeline import FIRST_DEPTH, pipeline_depth
from flwr_splitkd.tiers.edge.plan import TurnOutcome, TurnSettings
from flwr_splitkd.wire.codec import CodecName

__all__ = ["Pace", "Paces"]

_LEAST_LOSS_FIRST: tuple[CodecName, ...] = ("none", "bfloat16", "int8")
"""What "auto" chooses from; not float16, which holds no value beyond 65,504."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is chosen anew for each turn of a device; all as of `TurnPlan`."""

    pipeline_depth: int
    uplink_codec: CodecName
    downlink_codec: CodecName


class Paces:
    """Remembers the pace of every device.

    Parameters
    ----------
    settings
        The run's; what they fix is not chosen.
    value_bytes
        Bytes of a value without a codec.
    """

    def __init__(self, settings: TurnSettings, value_bytes: int) -> None:
        self._settings = settings
        self._codec_bytes = {**CODEC_BYTES, "none": float(value_bytes)}
        first = Pace(
            settings.pipeline_depth or FIRST_DEPTH, *(choices[0] for choices in map(_choices, self._codec_settings))
        )
        self._first, self._by_device = first, dict[str, Pace]()

    @property
    def codecs(self) -> set[CodecName]:
        """Every codec that a turn may be served with."""
        return {codec for setting in self._codec_settings for codec in _choices(setting)}

    def of(self, device: str) -> Pace:
        """The pace of a device's next turn."""
        return self._by_device.get(device, self._first)

    def learn(self, device: str, outcome: TurnOutcome) -> None:
        """Choose the device's next pace by what its turn took."""
        settings, passed = self._settings, max(outcome.num_batches, 1)
        if not outcome.num_batches:
            return
        in_steps = [
            1 - outcome.handover_uplink_bytes / max(outcome.uplink_payload_bytes, 1),
            1 - outcome.handover_downlink_bytes / max(outcome.downlink_payload_bytes, 1),
        ]
        device_s, edge_s = outcome.device_s / passed, outcome.edge_s / passed
        uplink_s, downlink_s = outcome.uplink_s * in_steps[0] / passed, outcome.downlink_s * in_steps[1] / passed
        latency_s = max(outcome.exchange_s - uplink_s - edge_s - downlink_s, 0.0)
        num_microbatches = settings.step_microbatches
        depth = settings.pipeline_depth or num_microbatches
        uplink_codec, downlink_codec = choose_codecs(
            self._seconds(uplink_s, outcome.uplink_codec, _choices(settings.uplink_codec)),
            self._seconds(downlink_s, outcome.downlink_codec, _choices(settings.downlink_codec)),
            device_s=device_s,
            edge_s=edge_s,
            latency_s=latency_s,
            num_microbatches=num_microbatches,
            depth=depth,
        )
        depth = settings.pipeline_depth or pipeline_depth(
            device_s=device_s,
            uplink_s=self._seconds(uplink_s, outcome.uplink_codec, (uplink_codec,))[uplink_codec],
            edge_s=edge_s,
            downlink_s=self._seconds(downlink_s, outcome.downlink_codec, (downlink_codec,))[downlink_codec],
            latency_s=latency_s,
            num_microbatches=num_microbatches,
        )
        self._by_device[device] = Pace(depth, uplink_codec, downlink_codec)

    @property
    def _codec_settings(self) -> tuple[str, str]:
        return self._settings.uplink_codec, self._settings.downlink_codec

    def _seconds(self, seconds: float, measured_with: str, codecs: Sequence[CodecName]) -> dict[CodecName, float]:
        """Seconds of a micro-batch with each codec: those measured, by the bytes of a value."""
        per_byte_s = seconds / self._codec_bytes[measured_with]
        return {codec: per_byte_s * self._codec_bytes[codec] for codec in codecs}


def _choices(setting: str) -> tuple[CodecName, ...]:
    """Codecs that a setting stands for, the one that loses least first."""
    return _LEAST_LOSS_FIRST if setting == "auto" else tuple(name for name in get_args(CodecName) if name == setting)
