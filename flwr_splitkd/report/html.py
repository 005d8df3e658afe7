"""One self-contained page about a run, or about two: figures, and the numbers behind them.

Nothing in it is fetched, and nothing runs: no script, no font, no picture beside the drawings. What a device, an app or an
error wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files

from flwr_splitkd.report.costs import modelled
from flwr_splitkd.report.elements import headline, table
from flwr_splitkd.report.families import Family, family_of
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.svg import svg
from flwr_splitkd.report.words import differences, flatten, number

__all__ = ["page"]

_MODELLED = " What is called modelled comes from the cost model of a simulation, not from clocks and meters."
_APART = (
    "These runs are of different strategies. A loss, a perplexity, an epoch, a turn, a cut and a split point of the one have no "
    "counterpart in the other and are not compared: each run has figures and tables of its own. What both count alike stands "
    "side by side."
)
# A timeline grows with its devices, so that its rows stay apart.
_DEVICES_A_HEIGHT = 14


def page(runs: Sequence[RunData]) -> str:
    """The page about one run, or the comparison of two.

    Runs of different strategies have little in common: then each has its own figures, and the page says so.

    Parameters
    ----------
    runs
        One or two.
    """
    title = " against ".join(run.name for run in runs)
    families = list(dict.fromkeys(family_of(run) for run in runs))
    named = len(runs) > 1
    body = [
        f"<header><h1>{escape(title)}</h1>{_introduction(runs)}</header><main>",
        _comparison(runs) if named else _totals(runs[0]),
        _figures(families, runs),
        *(_evaluations(run, named=named) for run in runs if run.evaluations),
        *(family_of(run).tables(run, named=named) for run in runs),
        *(_settings(run, named=named) for run in runs if run.config),
        f"</main><footer>Written by flwr_splitkd {escape(version('flwr_splitkd'))} from metrics.jsonl and config.json. "
        f"MiB are 2<sup>20</sup> bytes; {'; '.join(family.units for family in families)}."
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
    leads = [family_of(run).lead(run) for run in runs]
    same = len(set(leads)) == 1
    texts = leads[:1] if same else [f"{run.name}: {lead}" for run, lead in zip(runs, leads, strict=True)]
    lines = [f"<p>{escape(text)}</p>" for text in texts]
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        lines += [f'<p class="note">{escape(name + note)}</p>' for note in run.notes]
    return "".join(lines)


def _totals(run: RunData) -> str:
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in family_of(run).totals(run).items()
    )
    return f'<h2>In short</h2><dl class="totals">{items}</dl>'


def _comparison(runs: Sequence[RunData]) -> str:
    one, other = (family_of(run).totals(run) for run in runs)
    if family_of(runs[0]) is family_of(runs[1]):
        names, note = [*one, *(name for name in other if name not in one)], ""
    else:
        names, note = [name for name in one if name in other], f'<p class="note">{_APART}</p>'
    rows = [[name, one.get(name, "–"), other.get(name, "–")] for name in names]
    heads = ["", *(run.name for run in runs)]
    changed = [list(row) for row in differences(runs[0].config, runs[1].config)]
    settings = table(heads, changed, "text") if changed else "<p>None: both runs have the same settings.</p>"
    return f"<h2>In short</h2>{note}{table(heads, rows, 'numbers')}<h2>Settings that differ</h2>{settings}"


def _figures(families: Sequence[Family], runs: Sequence[RunData]) -> str:
    """Runs of one family share drawings; those of another have their own, which their names tell apart."""
    made = []
    for number_of, family in enumerate(families):
        own = [run for run in runs if family_of(run) is family]
        prefix = f"family-{number_of}-" if number_of else ""
        made += _drawings(family, own, named=len(runs) > 1, alone=len(families) > 1, prefix=prefix)
    return f'<h2>Figures</h2><div class="figures">{"".join(made)}</div>' if made else ""


def _drawings(family: Family, runs: Sequence[RunData], *, named: bool, alone: bool, prefix: str) -> list[str]:
    figures = []
    for drawing in family.drawings(runs):
        slug = prefix + (drawing.slug or drawing.title.lower().replace(" ", "-"))
        for number_of, shown in enumerate(drawing.groups(runs)):
            height = max(1.0, min(drawing.rows(shown[0]), 50) / _DEVICES_A_HEIGHT)
            image = svg(drawing.draw, shown, prefix=f"{slug}{number_of}", height=height)
            name = headline(drawing.title, shown[0], named and (alone or not drawing.shared))
            words = escape(family.alternative(drawing.title, shown))
            figures.append(
                f'<figure><h3>{name}</h3><div role="img" aria-label="{words}">{image}</div>'
                f"<figcaption>{words}</figcaption></figure>"
            )
    return figures


def _evaluations(run: RunData, *, named: bool) -> str:
    keys = sorted({key for metrics in run.evaluations.values() for key in metrics})
    rows = [[str(r), *(number(metrics.get(key)) for key in keys)] for r, metrics in sorted(run.evaluations.items())]
    title = headline(family_of(run).evaluations, run, named)
    return f"<h2>{title}</h2>{table(['After round', *keys], rows, 'numbers')}"


def _settings(run: RunData, *, named: bool) -> str:
    rows = [list(item) for item in flatten(run.config)]
    title = headline("Settings and versions", run, named)
    return f"<details><summary>{title}</summary>{table(['Setting', 'Value'], rows, 'text')}</details>"
