"""What a run says while it goes on, through Flower's logger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from logging import INFO, WARNING
from typing import Any

from flwr_splitkd.schedulers import DeviceView
from flwr_splitkd.strategies.planner import PlannedTurn
from flwr_splitkd.strategies.progress import Progress
from flwr_splitkd.strategies.result import SplitKDResult, TurnRecord, bottleneck, perplexity
from flwr_splitkd.strategies.turns import Call
from flwr_splitkd.telemetry.sensors import EnergyMeter
from flwr_splitkd.tiers.edge import EdgeSetup, TurnOutcome

__all__ = [
    "log",
    "log_changes",
    "log_end",
    "log_energy",
    "log_overdue",
    "log_plan",
    "log_resumed",
    "log_settings",
    "log_turn",
]

log = logging.getLogger("flwr").log
"""Flower's own logger, so that a run reads as one."""

_MIB = 1 << 20


def log_settings(setup: EdgeSetup) -> None:
    """Log how turns are served, as Flower's own strategies log theirs."""
    loss = setup.loss
    log(INFO, "\t├──> Loss: temperature %g, kd_ratio %g, beta %g", loss.temperature, loss.kd_ratio, loss.beta)
    log(
        INFO,
        "\t├──> Optimizer: %s, learning rate %g, hand-over %s",
        setup.optimizer.name,
        setup.optimizer.learning_rate,
        setup.optimizer_handover,
    )
    log(INFO, "\t├──> Codecs: uplink %s, downlink %s", setup.turn.uplink_codec, setup.turn.downlink_codec)


def log_energy(meter: EnergyMeter | None) -> None:
    """Log which joules of the edge are measured, and which are not although there are sensors; nothing where none are asked for."""
    if meter is None:
        return
    if meter.parts:
        log(INFO, "\t├──> Energy of the edge: %s", ", ".join(meter.parts))
    else:
        log(INFO, "\t├──> Energy of the edge is not measured: %s", meter.reason)
    for reason in meter.left_out if meter.parts else ():
        log(INFO, "\t├──> Not in it: %s", reason)


def log_turn(turn: TurnRecord) -> None:
    """Log one line for a turn."""
    who = f"round {turn.server_round} turn {turn.turn} of {turn.num_turns}: device {turn.device or turn.node_id}"
    outcome = turn.outcome
    if outcome is None:
        log(WARNING, "\t%s was left out: %s", who, turn.error)
        return
    if turn.mode == "deliver":
        mebibytes, seconds = outcome.handover_bytes / _MIB, outcome.duration_s
        log(INFO, "\t%s has the whole student, %.1f MiB down, %.1f s", who, mebibytes, seconds)
        return
    losses = f"loss {outcome.loss:.4f} (ce {outcome.cross_entropy:.4f}, kl {outcome.kl_divergence:.4f})"
    if turn.mode == "evaluate":
        losses = f"loss {outcome.loss:.4f}, perplexity {perplexity(outcome.cross_entropy):.2f}"
    log(
        INFO,
        "\t%s, cut %d, %d steps, %s, %.0f tokens/s, %.1f MiB up, %.1f MiB down, %.1f s%s%s",
        who,
        outcome.cut,
        outcome.num_steps,
        losses,
        outcome.num_tokens / max(outcome.duration_s, 1e-9),
        outcome.uplink_bytes / _MIB,
        outcome.downlink_bytes / _MIB,
        outcome.duration_s,
        _joules(outcome),
        f", connection resumed {outcome.num_resumed} x" if outcome.num_resumed else "",
    )


def _joules(outcome: TurnOutcome) -> str:
    """What was measured of both sides, from the comma on."""
    sides = (("device", outcome.measured_device_j), ("edge", outcome.measured_edge_j))
    return "".join(f", {joules:.1f} J on the {side}" for side, joules in sides if joules is not None)


def log_plan(device: DeviceView, planned: PlannedTurn) -> None:
    """Log what was decided for a turn, and why."""
    if planned.decision is not None:
        epochs = f"{planned.local_epochs} local epoch{'s' if planned.local_epochs > 1 else ''}"
        log(INFO, "\tdevice %s: %s, %s", device.name, epochs, planned.decision.reason)


def log_resumed(progress: Progress, commit_id: str) -> None:
    """Log where a resumed run goes on."""
    log(
        INFO,
        "\t└──> Resumed from commit %s: round %d, %d of %d turns of it done",
        commit_id,
        progress.next_round,
        0 if progress.round_done else len(progress.served),
        0 if progress.round_done else len(progress.order),
    )


def log_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log which settings differ from those that a resumed run had."""
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            log(WARNING, "\tResumed with another `%s`: %s, which was %s", name, now[name], before[name])


def log_overdue(call: Call) -> None:
    """Log that a device is overtaken."""
    log(WARNING, "\tnode %s has not connected yet; its turn comes later in the round if it does", call.node_id)


def log_end(result: SplitKDResult, duration_s: float) -> None:
    """Log the run's totals."""
    outcomes = [turn.outcome for turn in result.turns if turn.outcome]
    total_bytes = sum(outcome.uplink_bytes + outcome.downlink_bytes for outcome in outcomes)
    log(
        INFO,
        "Finished in %.1f s: %d of %d turns completed, %.1f MiB on the data plane; everything is in %s",
        duration_s,
        len(outcomes),
        len(result.turns),
        total_bytes / _MIB,
        result.run_folder,
    )
    if slowest := bottleneck(result.turns):
        log(INFO, "%s", slowest)
