"""Benchmarks' JSON files as one page: ``python benchmarks/_page.py runs/bench docs/benchmarks.md``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HEAD = """# Benchmarks: what came out

Made by `benchmarks/_page.py`, as `make bench` calls it, from the figures of each script, each with its commit;
[benchmarks/README.md](../benchmarks/README.md) says what each measures, against what, and which bound. Ratios compare two
measurements of one run, alternating; a median of n, with its spread (the distance between the quartiles, or lowest and highest).
"""


def page(results: list[dict[str, Any]], scripts: list[str]) -> str:
    """Markdown of all results, and the names of those that have none."""
    parts = [HEAD]
    for result in sorted(results, key=lambda one: str(one["benchmark"])):
        conditions = ", ".join(f"{name} {value}" for name, value in result.get("conditions", {}).items())
        how = f"`{_command(result['command'])}` at {result['commit'][:12]}"
        parts.append(f"## {result['benchmark']}\n\n{how}" + (f"; {conditions}" if conditions else ""))
        parts.append(_table(result["rows"]))
        parts.extend(result.get("notes", []))
    measured = {Path(part).stem for result in results for part in result["command"].split() if part.endswith(".py")}
    if missing := [name for name in scripts if name not in measured]:
        parts.append("## Not run\n\n" + ", ".join(f"`{name}.py`" for name in missing))
    return "\n\n".join(parts) + "\n"


def _command(said: str) -> str:
    """Without where its figures went, and without the folders of one machine."""
    words = shlex.split(said)
    if "--json" in words:
        place = words.index("--json")
        del words[place : place + 2]
    return " ".join(Path(word).name if word.startswith("/") else word for word in words)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | value | unit | reference | ratio | spread | n |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        spread = _number(row.get("spread"))
        if row.get("low") is not None:
            spread = f"{_number(row['low'])} to {_number(row.get('high'))}"
        numbers = [_number(row["value"]), row["unit"], _number(row.get("reference")), _number(row.get("ratio")), spread]
        lines.append("| " + " | ".join([row["name"].replace("|", "/"), *numbers, str(row.get("n", 1))]) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def main() -> None:
    """Read the folder, write the page."""
    folder, path = (Path(argument) for argument in sys.argv[1:])
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    scripts = sorted(file.stem for file in HERE.glob("[a-z]*.py"))
    path.write_text(page([one for one in results if "benchmark" in one], scripts), encoding="utf-8")


if __name__ == "__main__":
    main()
