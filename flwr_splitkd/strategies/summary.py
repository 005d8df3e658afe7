"""The table that a run ends with."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from flwr_splitkd.strategies.result import SplitKDResult, TurnRecord, bottleneck

__all__ = ["summarize"]

_WIDTH = 110
_MIB = 1 << 20
_MODELLED_S = "modelled_s"


def summarize(result: SplitKDResult) -> str:
    """Tables of a run as plain text: turns, their measured joules and modelled costs if there are any, evaluations, files."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None)
    console.print(_turns(result.turns))
    if any(turn.outcome is not None and turn.outcome.measured_j for turn in result.turns):
        _write_joules(console, result.turns)
    if any(_MODELLED_S in turn.costs for turn in result.turns):
        console.print(_modelled_costs(result.turns))
    if result.evaluate_metrics_serverapp:
        console.print(_evaluations(result))
    if slowest := bottleneck(result.turns):
        out.write(f"{slowest}\n")
    if result.stopped:
        console.print(f"Stopped early: {result.stopped}.")
    if result.run_folder is not None:
        out.write(f"Outputs: {result.run_folder}\n")
    return out.getvalue()


def _turns(turns: list[TurnRecord]) -> Table:
    table = Table(title="Turns", title_justify="left")
    for heading in (
        "round",
        "turn",
        "device",
        "cut",
        "steps",
        "loss",
        "CE",
        "KL",
        "tokens/s",
        "MiB up",
        "MiB down",
        "s",
    ):
        table.add_column(heading, justify="right")
    for turn in turns:
        head = (f"{turn.server_round}", f"{turn.turn}", turn.device or str(turn.node_id))
        outcome = turn.outcome
        if outcome is None:
            table.add_row(*head, "-", "-", "left out")
            continue
        cells = ("whole", "deliver", "-", "-", "-", "-")
        if turn.mode != "deliver":
            cells = (
                f"{outcome.cut}",
                f"{outcome.num_steps}" if turn.mode == "train" else "eval",
                f"{outcome.loss:.4f}",
                f"{outcome.cross_entropy:.4f}",
                f"{outcome.kl_divergence:.4f}",
                f"{outcome.num_tokens / max(outcome.duration_s, 1e-9):.0f}",
            )
        table.add_row(
            *head,
            *cells,
            f"{outcome.uplink_bytes / _MIB:.2f}",
            f"{outcome.downlink_bytes / _MIB:.2f}",
            f"{outcome.duration_s:.1f}",
        )
    return table


def _write_joules(console: Console, turns: list[TurnRecord]) -> None:
    """What the machines' sensors measured, and of which parts of them."""
    table = Table(title="Measured energy", title_justify="left")
    for heading in ("round", "turn", "device", "steps", "device J", "J/step", "edge J", "J/step"):
        table.add_column(heading, justify="right")
    parts: dict[str, set[str]] = {"device": set(), "edge": set()}
    for turn in turns:
        outcome = turn.outcome
        if outcome is None or not outcome.measured_j:
            continue
        cells: list[str] = []
        for side in parts:
            name, joules = f"measured_{side}_j", outcome.measured_j
            cells += [_number(joules.get(name), 1), _number(joules.get(f"{name}_per_step"), 3)]
            parts[side] |= set(getattr(outcome, f"measured_{side}_parts"))
        head = (f"{turn.server_round}", f"{turn.turn}", turn.device or str(turn.node_id))
        table.add_row(*head, f"{outcome.num_steps}", *cells)
    console.print(table)
    for side, names in parts.items():
        if names:
            console.print(f"In the joules of the {side}: {', '.join(sorted(names))}.", soft_wrap=True, markup=False)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _modelled_costs(turns: list[TurnRecord]) -> Table:
    """What turns took by the cost model; those that came to nothing took nothing."""
    table = Table(title="Modelled costs", title_justify="left")
    for heading in ("round", "turn", "device", "cut", "GHz", "s", "J", "device J", "late"):
        table.add_column(heading, justify="right")
    for turn in turns:
        costs, outcome = turn.costs, turn.outcome
        if outcome is None or _MODELLED_S not in costs:
            continue
        table.add_row(
            f"{turn.server_round}",
            f"{turn.turn}",
            turn.device or str(turn.node_id),
            f"{outcome.cut}",
            f"{costs['planned_frequency_hz'] / 1e9:.2f}",
            f"{costs['modelled_s']:.1f}",
            f"{costs['modelled_j']:.1f}",
            f"{costs['modelled_device_j']:.1f}",
            "late" if costs["modelled_late"] else "",
        )
    return table


def _evaluations(result: SplitKDResult) -> Table:
    rounds = result.evaluate_metrics_serverapp
    keys = sorted({key for metrics in rounds.values() for key in metrics})
    table = Table(title="Evaluation of the whole student on the server", title_justify="left")
    table.add_column("after round", justify="right")
    for key in keys:
        table.add_column(key, justify="right")
    for server_round, metrics in sorted(rounds.items()):
        cells = (metrics.get(key) for key in keys)
        table.add_row(f"{server_round}", *(f"{cell:.4f}" if isinstance(cell, int | float) else "-" for cell in cells))
    return table
