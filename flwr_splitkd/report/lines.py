"""A turn as a line of ``metrics.jsonl`` has it, whichever release wrote it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["ModelledLine", "PlanLine", "TurnLine", "finite_numbers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """What was decided for a turn, and what it was expected to take; None where the line has no number.

    Attributes
    ----------
    codec, reason, binding
        As in `Decision`.
    frequency_hz
        The server's clock.
    device_s, uplink_s, server_s, downlink_s, other_s, total_s, total_j
        Predicted before the turn.
    error
        Relative error of the prediction by stage, where the turn was measured.
    """

    codec: str = ""
    reason: str = ""
    binding: str = ""
    frequency_hz: float | None = None
    device_s: float | None = None
    uplink_s: float | None = None
    server_s: float | None = None
    downlink_s: float | None = None
    other_s: float | None = None
    total_s: float | None = None
    total_j: float | None = None
    error: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> PlanLine | None:
        """The plan of a turn; None if nothing was decided for it."""
        names = {f"predicted_{name}": name for name in (*_STAGES, "other_s")}
        names |= {"planned_frequency_hz": "frequency_hz", "predicted_s": "total_s", "predicted_j": "total_j"}
        texts = {name: record[name] for name in ("codec", "reason", "binding") if isinstance(record.get(name), str)}
        if not texts and not names.keys() & record.keys():
            return None
        error = record.get("prediction_error")
        error = finite_numbers(error, error) if isinstance(error, Mapping) else {}
        numbers = finite_numbers(record, names)
        return cls(**texts, **{names[name]: value for name, value in numbers.items()}, error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledLine:
    """What a turn took in a modelled world, see `ModelledTurn`; None where the line has no number.

    Attributes
    ----------
    device_s, uplink_s, server_s, downlink_s
        Its stages.
    total_s, total_j, device_j
        The whole turn with the wait for a link; joules of both sides, and of the device.
    clock_s
        The world's time at its end.
    uplink_bps, downlink_bps
        Rates of the link.
    battery_j
        What is left in the device's battery.
    late
        Whether it took longer than the planner's bound.
    """

    device_s: float | None = None
    uplink_s: float | None = None
    server_s: float | None = None
    downlink_s: float | None = None
    total_s: float | None = None
    total_j: float | None = None
    device_j: float | None = None
    clock_s: float | None = None
    uplink_bps: float | None = None
    downlink_bps: float | None = None
    battery_j: float | None = None
    late: bool = False

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> ModelledLine | None:
        """The modelled costs of a turn; None if it has none."""
        own = (f.name for f in fields(cls) if f.name not in ("late", "total_s", "total_j"))
        names = {f"modelled_{name}": name for name in own} | {"modelled_s": "total_s", "modelled_j": "total_j"}
        numbers = finite_numbers(record, names)
        if not numbers:
            return None
        late = record.get("modelled_late") is True
        return cls(**{names[name]: value for name, value in numbers.items()}, late=late)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLine:
    """One turn as ``metrics.jsonl`` has it.

    Attributes
    ----------
    index
        Position in the run, from 1, failed turns included.
    step
        Optimiser steps of the run up to the end of this turn.
    error
        Why the turn came to nothing; empty otherwise.
    plan
        What was decided for it; None without a planner.
    modelled
        What it took in a modelled world; None without one.

    The others are as in `TurnRecord` and `TurnOutcome`; None where the line has none.
    """

    index: int
    step: int
    server_round: int
    turn: int
    device: str
    mode: str = "train"
    error: str = ""
    cut: int | None = None
    num_steps: int | None = None
    num_examples: int | None = None
    num_tokens: int | None = None
    num_correct: int | None = None
    loss: float | None = None
    cross_entropy: float | None = None
    kl_divergence: float | None = None
    perplexity: float | None = None
    duration_s: float | None = None
    wait_s: float | None = None
    tokens_per_s: float | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    handover_bytes: int | None = None
    device_s: float | None = None
    edge_s: float | None = None
    uplink_s: float | None = None
    downlink_s: float | None = None
    fixed_s: float | None = None
    measured_device_j: float | None = None
    measured_edge_j: float | None = None
    plan: PlanLine | None = None
    modelled: ModelledLine | None = None

    @property
    def completed(self) -> bool:
        """Whether the turn counts."""
        return not self.error


_STAGES = ("device_s", "uplink_s", "server_s", "downlink_s")


def finite_numbers(record: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of these names that are finite numbers."""
    return {
        name: value
        for name in names
        if isinstance(value := record.get(name), int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
