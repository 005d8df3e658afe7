"""The page's tables of turns, and of what was decided for them."""

from __future__ import annotations

from flwr_splitkd.report.costs import decided, modelled
from flwr_splitkd.report.elements import failed_row, headline, records, row, table
from flwr_splitkd.report.lines import ModelledLine, PlanLine, TurnLine
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.words import mebibytes, number

__all__ = ["turn_tables"]

_COLUMNS = (
    *("Turn", "Round", "Device", "Mode", "Cut", "Steps", "Loss", "CE", "KL", "Perplexity"),
    *("Tokens/s", "Up, MiB", "Down, MiB", "Hand-over, MiB", "Seconds", "Waited, s"),
)
_JOULES = ("Device, J", "Edge, J")


def turn_tables(run: RunData, *, named: bool) -> str:
    """Both tables; the second only if something was decided. Joules have columns only if some were measured."""
    with_joules = any(turn.measured_device_j is not None or turn.measured_edge_j is not None for turn in run.turns)
    heads = _COLUMNS + _JOULES * with_joules
    turns = records(headline("Turns", run, named), heads, (_turn(turn, with_joules=with_joules) for turn in run.turns))
    return turns + _decisions(run, named=named)


def _turn(turn: TurnLine, *, with_joules: bool) -> str:
    cells = [str(turn.index), str(turn.server_round), turn.device, turn.mode]
    if not turn.completed:
        return failed_row(cells, turn.error, len(_COLUMNS + _JOULES * with_joules))
    cells += [number(turn.cut), number(turn.num_steps), number(turn.loss), number(turn.cross_entropy)]
    cells += [number(turn.kl_divergence), number(turn.perplexity)]
    cells.append(number(None if turn.tokens_per_s is None else round(turn.tokens_per_s)))
    cells += [mebibytes(turn.uplink_bytes), mebibytes(turn.downlink_bytes), mebibytes(turn.handover_bytes)]
    cells += [number(turn.duration_s), number(turn.wait_s)]
    cells += [number(turn.measured_device_j), number(turn.measured_edge_j)] * with_joules
    return row(cells)


def _decisions(run: RunData, *, named: bool) -> str:
    """What the planner decided, why, and how far off it was; nothing without one."""
    if not decided(run):
        return ""
    taken = "Modelled" if modelled(run) else "Measured"
    heads = ["Turn", "Device", "Cut", "Codec", "Clock, GHz", "Predicted, s", f"{taken}, s", "Predicted, J"]
    heads += ["Modelled, J"] * modelled(run) + ["Reason"]
    rows = [_decision(turn, with_joules=modelled(run)) for turn in run.training if turn.plan]
    title = headline("Decisions", run, named)
    return f"<details><summary>{title}</summary>{table(heads, rows, 'numbers decisions')}</details>"


def _decision(turn: TurnLine, *, with_joules: bool) -> list[str]:
    plan, costs = turn.plan or PlanLine(), turn.modelled or ModelledLine()
    taken = number(costs.total_s if with_joules else turn.duration_s) + " (late)" * costs.late
    clock = "–" if plan.frequency_hz is None else f"{plan.frequency_hz / 1e9:.2f}"
    cells = [str(turn.index), turn.device, number(turn.cut), plan.codec or "–", clock]
    cells += [number(plan.total_s), taken, number(plan.total_j)]
    return [*cells, *[number(costs.total_j)] * with_joules, plan.reason or "–"]
