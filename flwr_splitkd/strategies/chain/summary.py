"""The tables that a run of SCCT ends with."""

from __future__ import annotations

import io
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord, SCCTResult

__all__ = ["summarize_chain"]

_WIDTH = 110
_MIB = 1 << 20


def summarize_chain(result: SCCTResult, baselines: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Tables of a run as plain text: one line a device and round, one an epoch, one an evaluation, its files.

    Parameters
    ----------
    result
        Of the run.
    baselines
        Metrics to compare the evaluation with, by the baseline's name.
    """
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None)
    if result.devices:
        console.print(_devices([record for record in result.devices if record.mode == "train"]))
    if result.epochs:
        console.print(_epochs(result.epochs))
    for title, rounds in (
        ("Evaluation on the devices", result.evaluate_metrics_clientapp),
        ("Evaluation on the server", result.evaluate_metrics_serverapp),
    ):
        if rounds:
            by_round = {f"round {number}": dict(metrics) for number, metrics in sorted(rounds.items())}
            console.print(_evaluations(title, by_round, baselines or {}))
    if result.stopped:
        console.print(f"Stopped early: {result.stopped}.")
    if result.run_folder is not None:
        out.write(f"Outputs: {result.run_folder}\n")
    return out.getvalue()


def _devices(records: list[DeviceRecord]) -> Table:
    table = Table(title="Devices", title_justify="left")
    for heading in (
        *("round", "device", "split point", "steps", "missed", "loss"),
        *("MiB up", "layers up", "MiB down", "layers down", "edge s", "s"),
    ):
        table.add_column(heading, justify="right")
    for record in records:
        head = (f"{record.server_round}", record.device or str(record.node_id))
        outcome = record.outcome
        if outcome is None:
            table.add_row(*head, "-", "-", "-", "left out")
            continue
        table.add_row(
            *head,
            f"{outcome.split_point}",
            f"{outcome.num_steps}" + (" (left)" if outcome.left else ""),
            f"{outcome.num_missed}",
            f"{outcome.loss:.4f}",
            f"{outcome.uplink_bytes / _MIB:.2f}",
            f"{outcome.uplink_handover_bytes / _MIB:.2f}",
            f"{outcome.downlink_bytes / _MIB:.2f}",
            f"{outcome.downlink_handover_bytes / _MIB:.2f}",
            f"{outcome.edge_s:.1f}",
            f"{outcome.duration_s:.1f}",
        )
    return table


def _epochs(records: list[EpochRecord]) -> Table:
    table = Table(title="Epochs, all devices together", title_justify="left")
    for heading in ("round", "epoch", "iterations", "loss", "without encoder", "missed", "s an iteration"):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            f"{record.server_round}",
            f"{record.epoch}",
            f"{record.num_iterations}",
            f"{record.loss:.4f}",
            "-" if record.reference_loss is None else f"{record.reference_loss:.4f}",
            f"{record.num_missed}",
            f"{record.seconds / max(record.num_iterations, 1):.2f}",
        )
    return table


def _evaluations(
    title: str, rounds: Mapping[str, Mapping[str, object]], baselines: Mapping[str, Mapping[str, float]]
) -> Table:
    keys = sorted({key for metrics in rounds.values() for key in metrics})
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="left")
    for key in keys:
        table.add_column(key, justify="right")
    # A device's metrics are called after where they come from, a baseline's are not.
    plain = {name: {f"eval-{key}": value for key, value in metrics.items()} for name, metrics in baselines.items()}
    for name, metrics in {**rounds, **plain}.items():
        cells = (metrics.get(key) for key in keys)
        table.add_row(name, *(f"{cell:.4f}" if isinstance(cell, int | float) else "-" for cell in cells))
    return table
