"""One self-contained page about a run, or about two: figures, and the numbers behind them.

Nothing in it is fetched, and nothing runs: no script, no font, no picture beside the drawings. What a device, an app or an
error wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files

from flwr_splitkd.report.costs import decided, modelled
from flwr_splitkd.report.figures import DRAWINGS
from flwr_splitkd.report.lines import ModelledLine, PlanLine, TurnLine
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.svg import svg
from flwr_splitkd.report.words import alternative, differences, flatten, mebibytes, number, totals

__all__ = ["page"]

_TURN_COLUMNS = (
    *("Turn", "Round", "Device", "Mode", "Cut", "Steps", "Loss", "CE", "KL", "Perplexity"),
    *("Tokens/s", "Up, MiB", "Down, MiB", "Hand-over, MiB", "Seconds", "Waited, s"),
)
_MODELLED = " What is called modelled comes from the cost model of a simulation, not from clocks and meters."
# A timeline grows with its devices, so that its rows stay apart.
_DEVICES_A_HEIGHT = 14


def page(runs: Sequence[RunData]) -> str:
    """The page about one run, or the comparison of two.

    Parameters
    ----------
    runs
        One or two.
    """
    title = " against ".join(run.name for run in runs)
    body = [
        f"<header><h1>{escape(title)}</h1>{_introduction(runs)}</header><main>",
        _totals(runs[0]) if len(runs) == 1 else _comparison(runs),
        _figures(runs),
        *(_evaluations(run, named=len(runs) > 1) for run in runs if run.evaluations),
        *(_turns(run, named=len(runs) > 1) + _decisions(run, named=len(runs) > 1) for run in runs),
        *(_settings(run, named=len(runs) > 1) for run in runs if run.config),
        f"</main><footer>Written by flwr_splitkd {escape(version('flwr_splitkd'))} from metrics.jsonl and config.json. "
        "MiB are 2<sup>20</sup> bytes; CE is cross-entropy, KL the divergence from the teacher, both in nats per label."
        f"{_MODELLED if any(modelled(run) for run in runs) else ''}</footer>",
    ]
    style = files("flwr_splitkd.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon, or the browser would ask for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _introduction(runs: Sequence[RunData]) -> str:
    lines = ["<p>Split knowledge distillation, turn by turn.</p>"]
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        lines += [f'<p class="note">{escape(name + note)}</p>' for note in run.notes]
    return "".join(lines)


def _totals(run: RunData) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in totals(run).items())
    return f'<h2>In short</h2><dl class="totals">{items}</dl>'


def _comparison(runs: Sequence[RunData]) -> str:
    one, other = (totals(run) for run in runs)
    names = [*one, *(name for name in other if name not in one)]
    rows = [[name, one.get(name, "–"), other.get(name, "–")] for name in names]
    heads = ["", *(run.name for run in runs)]
    changed = [list(row) for row in differences(runs[0].config, runs[1].config)]
    settings = _table(heads, changed, "text") if changed else "<p>None: both runs have the same settings.</p>"
    return f"<h2>In short</h2>{_table(heads, rows, 'numbers')}<h2>Settings that differ</h2>{settings}"


def _figures(runs: Sequence[RunData]) -> str:
    figures = []
    for drawing in DRAWINGS:
        slug = drawing.title.lower().replace(" ", "-")
        for number_of, shown in enumerate(drawing.groups(runs)):
            devices = len({turn.device for turn in shown[0].turns}) if drawing.title == "Cuts" else 0
            height = max(1.0, min(devices, 50) / _DEVICES_A_HEIGHT)
            image = svg(drawing.draw, shown, prefix=f"{slug}{number_of}", height=height)
            name = _headline(drawing.title, shown[0], len(runs) > 1 and not drawing.shared)
            words = escape(alternative(drawing.title, shown))
            figures.append(
                f'<figure><h3>{name}</h3><div role="img" aria-label="{words}">{image}</div>'
                f"<figcaption>{words}</figcaption></figure>"
            )
    return f'<h2>Figures</h2><div class="figures">{"".join(figures)}</div>'


def _evaluations(run: RunData, *, named: bool) -> str:
    keys = sorted({key for metrics in run.evaluations.values() for key in metrics})
    rows = [[str(r), *(number(metrics.get(key)) for key in keys)] for r, metrics in sorted(run.evaluations.items())]
    return f"<h2>{_headline('On the server', run, named)}</h2>{_table(['After round', *keys], rows, 'numbers')}"


def _turns(run: RunData, *, named: bool) -> str:
    rows = "".join(_turn(turn) for turn in run.turns)
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in _TURN_COLUMNS)
    headline = _headline("Turns", run, named)
    return (
        f'<h2>{headline}</h2><div class="wide" tabindex="0" role="region" aria-label="{headline}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _turn(turn: TurnLine) -> str:
    cells = [str(turn.index), str(turn.server_round), turn.device, turn.mode]
    if not turn.completed:
        rest = len(_TURN_COLUMNS) - len(cells)
        return f'<tr class="failed">{_cells(cells)}<td class="left" colspan="{rest}">{escape(turn.error)}</td></tr>'
    cells += [number(turn.cut), number(turn.num_steps), number(turn.loss), number(turn.cross_entropy)]
    cells += [number(turn.kl_divergence), number(turn.perplexity)]
    cells.append(number(None if turn.tokens_per_s is None else round(turn.tokens_per_s)))
    cells += [mebibytes(turn.uplink_bytes), mebibytes(turn.downlink_bytes), mebibytes(turn.handover_bytes)]
    cells += [number(turn.duration_s), number(turn.wait_s)]
    return f"<tr>{_cells(cells)}</tr>"


def _decisions(run: RunData, *, named: bool) -> str:
    """What the planner decided, why, and how far off it was; nothing without one."""
    if not decided(run):
        return ""
    taken = "Modelled" if modelled(run) else "Measured"
    heads = ["Turn", "Device", "Cut", "Codec", "Clock, GHz", "Predicted, s", f"{taken}, s", "Predicted, J"]
    heads += ["Modelled, J"] * modelled(run) + ["Reason"]
    rows = [_decision(turn, with_joules=modelled(run)) for turn in run.training if turn.plan]
    headline = _headline("Decisions", run, named)
    return f"<details><summary>{headline}</summary>{_table(heads, rows, 'numbers decisions')}</details>"


def _decision(turn: TurnLine, *, with_joules: bool) -> list[str]:
    plan, costs = turn.plan or PlanLine(), turn.modelled or ModelledLine()
    taken = number(costs.total_s if with_joules else turn.duration_s) + " (late)" * costs.late
    clock = "–" if plan.frequency_hz is None else f"{plan.frequency_hz / 1e9:.2f}"
    cells = [str(turn.index), turn.device, number(turn.cut), plan.codec or "–", clock]
    cells += [number(plan.total_s), taken, number(plan.total_j)]
    return [*cells, *[number(costs.total_j)] * with_joules, plan.reason or "–"]


def _settings(run: RunData, *, named: bool) -> str:
    rows = [list(item) for item in flatten(run.config)]
    headline = _headline("Settings and versions", run, named)
    return f"<details><summary>{headline}</summary>{_table(['Setting', 'Value'], rows, 'text')}</details>"


def _headline(text: str, run: RunData, named: bool) -> str:
    return escape(f"{text}: {run.name}" if named else text)


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(row: Iterable[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)
