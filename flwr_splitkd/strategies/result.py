"""What a run gives back: Flower's Result, and a record of every turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Result

from flwr_splitkd.telemetry.bottleneck import Bottleneck, find_bottleneck
from flwr_splitkd.tiers.edge import TurnOutcome

__all__ = ["SplitKDResult", "TurnRecord", "bottleneck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One turn, completed or not.

    Parameters
    ----------
    server_round
        From 1.
    turn
        Position within the round, from 1, in the order in which turns were served.
    num_turns
        Devices that were called in this round.
    node_id, device
        Flower's identifier and the device's name; the name is empty for a device that never connected.
    mode
        ``"train"``, ``"evaluate"``, or ``"deliver"`` when the device got the whole student.
    local_epochs
        Passes over the device's data.
    outcome
        None for a turn that came to nothing.
    error
        Why it came to nothing; empty otherwise.
    fault
        The kind of that, one of `flwr_splitkd.faults.FAULTS`; empty otherwise.
    wait_s
        Seconds that the edge waited for this device with nothing else to do.
    costs
        What the planner decided and expected, and what it was or, in a modelled world, would have been; see
        docs/explanation/cost-model.md.
    started_s
        Seconds from the start of the run, or of its continuation, until this turn began; it ended ``outcome.duration_s`` later.
    """

    server_round: int
    turn: int
    num_turns: int
    node_id: int
    device: str
    mode: str
    local_epochs: int = 0
    outcome: TurnOutcome | None = None
    error: str = ""
    fault: str = ""
    wait_s: float = 0.0
    started_s: float = 0.0
    costs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a line of ``metrics.jsonl``."""
        line: dict[str, Any] = {
            "kind": "turn",
            "server_round": self.server_round,
            "turn": self.turn,
            "node_id": self.node_id,
            "device": self.device,
            "mode": self.mode,
        }
        if self.outcome is None:
            return {**line, "error": self.error}
        if self.mode == "deliver":
            outcome = self.outcome
            return {**line, "duration_s": outcome.duration_s, "handover_bytes": outcome.handover_bytes}
        measured = asdict(replace(self.outcome, spans=()))
        for name in (
            "spans",
            "clock",
            *_MEASURED,
        ):  # spans are lines of their own, the clock stands beside the planned one
            del measured[name]
        return {
            **line,
            "local_epochs": self.local_epochs,
            **measured,
            **_joules(self.outcome),
            "perplexity": perplexity(self.outcome.cross_entropy),
            "tokens_per_s": self.outcome.num_tokens / max(self.outcome.duration_s, 1e-9),
            "wait_s": self.wait_s,
            "started_s": self.started_s,
            **self.costs,
            **(self.outcome.clock.to_json() if self.outcome.clock else {}),
        }


_MEASURED = ("measured_device_j", "measured_edge_j", "measured_device_parts", "measured_edge_parts")


def _joules(outcome: TurnOutcome) -> dict[str, Any]:
    """What was measured and of which parts of the machines; a turn where nothing was has none of these keys."""
    parts = {"measured_device_parts": outcome.measured_device_parts, "measured_edge_parts": outcome.measured_edge_parts}
    return {**outcome.measured_j, **{name: list(value) for name, value in parts.items() if value}}


@dataclass
class SplitKDResult(Result):
    """Flower's `Result` with the turns behind the rounds.

    Attributes
    ----------
    turns
        Every turn in the order in which it was served.
    run_folder
        Where the run's metrics and commits lie.
    stopped
        Why the run ended before its last round; empty if it did not.
    """

    turns: list[TurnRecord] = field(default_factory=list)
    run_folder: Path | None = None
    stopped: str = ""


def bottleneck(turns: Iterable[TurnRecord]) -> Bottleneck | None:
    """The slowest stage of the completed turns that trained; None if there was none."""
    outcomes = [turn.outcome for turn in turns if turn.mode == "train" and turn.outcome is not None]
    stages_s = dict.fromkeys(("device", "edge", "uplink", "downlink", "hand-over", "latency"), 0.0)
    for outcome in outcomes:
        handed_up = outcome.handover_uplink_bytes / max(outcome.uplink_payload_bytes, 1)
        handed_down = outcome.handover_downlink_bytes / max(outcome.downlink_payload_bytes, 1)
        stages_s["device"] += outcome.device_s
        stages_s["edge"] += outcome.edge_s
        stages_s["uplink"] += outcome.uplink_s * (1 - handed_up)
        stages_s["downlink"] += outcome.downlink_s * (1 - handed_down)
        stages_s["hand-over"] += outcome.fixed_s + outcome.uplink_s * handed_up + outcome.downlink_s * handed_down
        stages_s["latency"] += max(outcome.other_s, 0.0)
    duration_s = sum(outcome.duration_s for outcome in outcomes)
    return find_bottleneck(stages_s, duration_s) if duration_s > 0 else None


def perplexity(cross_entropy: float) -> float:
    """``exp(cross_entropy)``, infinite where a float cannot hold it."""
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf
