"""What the parts of the page are made of: tables and headlines, with everything that others wrote escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from flwr_splitkd.report.load import RunData

__all__ = ["failed_row", "headline", "records", "row", "table"]


def headline(text: str, run: RunData, named: bool) -> str:
    """A headline, with the run's name where there are several."""
    return escape(f"{text}: {run.name}" if named else text)


def table(heads: Iterable[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """A table; `kind` are classes of the style sheet."""
    body = "".join(row(cells) for cells in rows)
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{_heads(heads)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def records(title: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """A headline (escaped) and a table of finished rows, which the headline names."""
    return (
        f'<h2>{title}</h2><div class="wide" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{_heads(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(cells: Iterable[str]) -> str:
    """A row of texts."""
    return f"<tr>{_cells(cells)}</tr>"


def failed_row(cells: Sequence[str], error: str, columns: int) -> str:
    """A row that ends with why the rest is missing."""
    rest = columns - len(cells)
    return f'<tr class="failed">{_cells(cells)}<td class="left" colspan="{rest}">{escape(error)}</td></tr>'


def _heads(heads: Iterable[str]) -> str:
    return "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)
