"""What every benchmark prints and, with ``--json PATH``, writes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "commit", "conditions", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure beside its reference from the same run.

    Parameters
    ----------
    name
        What was measured, and under which conditions.
    value, reference
        In ``unit``; the reference is None where a figure stands alone.
    unit
        SI, or a plain word.
    ratio
        ``value / reference``, or None.
    spread
        Distance of the middle half of the repeats (quartile 3 - quartile 1) of ``ratio``, or of ``value``
        where there is no ratio; None if measured once.
    n
        Number of repeats.
    low, high
        The smallest and the largest ``value`` of the repeats, quoted instead of `spread` where they are few; else None.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    spread: float | None = None
    n: int = 1
    low: float | None = None
    high: float | None = None


def commit() -> str:
    """Return the commit that is checked out, with "-dirty" appended if files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        head = _git("rev-parse", "HEAD", cwd=here)
        return f"{head}-dirty" if _git("status", "--porcelain", cwd=here) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def report(
    benchmark: str,
    rows: Sequence[Row],
    *,
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
    json_path: Path | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the rows as a table, then other tables and notes; write the rows and ``more`` to ``json_path``."""
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    revision = commit()
    table = Table(title=f"{benchmark} at {revision[:12]}{'-dirty' if revision.endswith('-dirty') else ''}")
    spreads = ("low", "high") if any(row.low is not None for row in rows) else ("spread",)
    for column in ("name", "value", "unit", "reference", "ratio", *spreads, "n"):
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for row in rows:
        numbers = [_number(x) for x in (row.reference, row.ratio, *(getattr(row, name) for name in spreads))]
        table.add_row(row.name, _number(row.value), row.unit, *numbers, str(row.n))
    console = Console(width=None if sys.stdout.isatty() else 140)
    for one in (table, *tables):
        console.print(one)
    for note in notes:
        console.print(note, highlight=False)
    if json_path is not None:
        measured = [
            {name: value for name, value in asdict(row).items() if value is not None or name not in ("low", "high")}
            for row in rows
        ]
        content = {
            "benchmark": benchmark,
            "command": command,
            "commit": revision,
            "rows": measured,
            "conditions": conditions(),
            "notes": list(notes),
            **(more or {}),
        }
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def conditions() -> dict[str, str]:
    """Return the machine, the versions and the load: what a figure depends on beside the commit."""
    found = {
        "machine": f"{platform.machine()} with {len(os.sched_getaffinity(0))} cores",
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }
    for name in ("torch", "flwr", "transformers", "grpcio"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
