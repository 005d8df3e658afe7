"""10, 100 and 1,000 virtual devices in one Flower simulation each: what a device costs the edge in memory and in seconds.

Every device takes one turn of one step on models as small as they get, one after another, so that what is measured is everything
but training. The reference is the same simulation with Flower's own train messages alone, to as many devices, which answer at once:
what that takes is Flower's own. Memory is the resident memory of the process that runs the ServerApp (in a simulation it holds
Flower's engine and Ray's driver too), looked at after each device; its slope is by least squares over the devices after the first
tenth, which warm the process up. A turn's overhead is what passes from one device's end to the next's, less what device and edge
computed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _report import Row, report
from _step_processes import quartile_distance
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from demo_command import raise_on_signals
from flower_run import Value, simulation

APP = Path(__file__).resolve().parent / "scale_app"
TIMEOUT_S = 3600.0
_MB = 1e6
# What comes before is imports, first allocations and the warm-up of actors.
_WARM_UP = 0.1
_PARTS = 5


class Line(NamedTuple):
    """A straight line by least squares."""

    slope: float
    standard_error: float
    parts: list[float]


def main() -> None:
    """Run the simulations, print the tables, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that Flower's processes end, whatever ends this
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        for count in arguments.devices:
            for kind in ("messages", "turns"):
                found.append(_run(Path(name), kind, count, cpus=arguments.cpus))
    rows = [row for count in arguments.devices for row in _rows(count, *_pair(found, count))]
    largest = max(arguments.devices)
    turns = _pair(found, largest)[1]
    notes = [
        f"All {largest} devices had their turn: {'yes' if len(turns['done']) == largest else 'NO'}; failures: "
        f"{sum(len(one['failures']) for one in found)}.",
        "Turns: value; Flower's messages alone: reference. Memory per device: slope over the devices of one run, spread: quartile "
        f"distance of the slopes of {_PARTS} parts of it. Overhead: median over the devices, spread: their quartile distance. "
        "Simulations of one size run one after the other, so that their ratio has the machine's changes in it.",
        f"{arguments.cpus} actors, one thread each, load {os.getloadavg()[0]:.1f} at the end; flwr {version('flwr')}, ray "
        f"{version('ray')}, torch {version('torch')}.",
    ]
    report(
        "scale",
        rows,
        tables=[_table(found), _drift(found)],
        notes=notes,
        json_path=arguments.json,
        more={"runs": found},
    )


def line(counts: Sequence[float], values: Sequence[float]) -> Line:
    """Fit a straight line; its slope's standard error is that of least squares, its parts are slopes of successive fifths.

    Parameters
    ----------
    counts, values
        At least three of each.
    """
    x, y = np.asarray(counts, dtype=np.float64), np.asarray(values, dtype=np.float64)
    slope, offset = _fit(x, y)
    residual = y - slope * x - offset
    error = float(np.sqrt(residual @ residual / max(len(x) - 2, 1) / ((x - x.mean()) ** 2).sum()))
    parts = [
        _fit(a, b)[0] for a, b in zip(np.array_split(x, _PARTS), np.array_split(y, _PARTS), strict=True) if len(a) > 1
    ]
    return Line(slope, error, parts)


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())


def overheads_s(done: Sequence[dict[str, float]]) -> list[float]:
    """Seconds from each device's end to the next's, less what was computed in between."""
    ends = [one["at_s"] for one in done]
    return [
        later - earlier - one["compute_s"] for earlier, later, one in zip(ends[:-1], ends[1:], done[1:], strict=True)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--json", type=Path, help="write the rows and every look at clock and memory to this file as well"
    )
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[10, 100, 1000], help="one simulation each (10 100 1000)"
    )
    parser.add_argument("--cpus", type=int, default=2, help="devices that Flower runs at the same time (2)")
    arguments = parser.parse_args()
    if min(arguments.devices) < 5:
        parser.error(f"--devices is {min(arguments.devices)}; expected at least 5, for a slope.")
    return arguments


def _run(folder: Path, kind: str, count: int, *, cpus: int) -> dict[str, Any]:
    """One simulation; nothing is left of it but what the ServerApp noted."""
    own = folder / f"{kind}-{count}"
    settings: dict[str, Value] = {
        "kind": kind,
        "devices": count,
        "run-dir": str(own / "runs"),
        "result": str(own / "result.json"),
    }
    environment = {"OMP_NUM_THREADS": "1", "FLWR_SPLITKD_CACHE": str(own / "cache")}
    with simulation(own / "logs", supernodes=count, client_cpus=1, cpus=cpus, environment=environment) as federation:
        outcome = federation.run(APP, settings, timeout_s=TIMEOUT_S)
    if not outcome.completed:
        raise SystemExit(outcome.tail())
    result = json.loads((own / "result.json").read_text(encoding="utf-8"))
    print(f"{kind}, {count} devices: {len(result['done'])} in {result['total_s']:.0f} s", file=sys.stderr, flush=True)
    return {"kind": kind, "devices": count, "simulation_s": outcome.seconds, **result}


def _pair(found: Sequence[dict[str, Any]], count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flower's messages and our turns of one size."""
    messages, turns = (
        next(one for one in found if (one["kind"], one["devices"]) == (kind, count)) for kind in ("messages", "turns")
    )
    return messages, turns


def _memory_line(one: dict[str, Any]) -> Line:
    first = int(_WARM_UP * len(one["done"]))
    values = [item["bytes"] for item in one["done"][first:]]
    return line(range(first, first + len(values)), values)


def _rows(count: int, messages: dict[str, Any], turns: dict[str, Any]) -> list[Row]:
    ours, flowers = _memory_line(turns), _memory_line(messages)
    ours_s, flowers_s = overheads_s(turns["done"]), overheads_s(messages["done"])
    middle_s = statistics.median(flowers_s)
    return [
        Row(
            name=f"{count} devices: memory a device",
            value=ours.slope / 1e3,
            unit="kB",
            reference=flowers.slope / 1e3,
            spread=quartile_distance(ours.parts) / 1e3,
            n=len(turns["done"]),
        ),
        Row(
            name=f"{count} devices: overhead a device",
            value=1e3 * statistics.median(ours_s),
            unit="ms",
            reference=1e3 * middle_s,
            ratio=statistics.median(ours_s) / middle_s,
            spread=1e3 * quartile_distance(ours_s),
            n=len(ours_s),
        ),
    ]


def _table(found: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="the process of the ServerApp")
    headings = (
        "devices",
        "",
        "MB at first",
        "MB at last",
        "most",
        "kB a device",
        "+-",
        "s in all",
        "ms a device",
        "of it within the turn",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in found:
        held = [item["bytes"] for item in one["done"]]
        slope = _memory_line(one)
        inside = [item["duration_s"] - item["compute_s"] for item in one["done"]]
        table.add_row(
            str(one["devices"]),
            one["kind"],
            f"{one['begin_bytes'] / _MB:.0f}",
            f"{held[-1] / _MB:.0f}",
            f"{max(held) / _MB:.0f}",
            f"{slope.slope / 1e3:.1f}",
            f"{slope.standard_error / 1e3:.1f}",
            f"{one['total_s']:.0f}",
            f"{1e3 * statistics.median(overheads_s(one['done'])):.0f}",
            f"{1e3 * statistics.median(inside):.0f}" if one["kind"] == "turns" else "",
        )
    return table


def _drift(found: Sequence[dict[str, Any]]) -> Table:
    """Whether later devices cost more than earlier ones."""
    table = Table(title="slopes over sizes and within runs")
    for heading in ("", "turns", "messages"):
        table.add_column(heading, justify="right" if heading else "left")
    kinds = {kind: [one for one in found if one["kind"] == kind] for kind in ("turns", "messages")}
    if len(kinds["turns"]) > 1:
        sizes = [one["devices"] for one in kinds["turns"]]
        cells = [
            _fit(np.array(sizes, float), np.array([one["done"][-1]["bytes"] for one in runs], float))[0]
            for runs in kinds.values()
        ]
        table.add_row("memory at the end over devices, kB a device", *(f"{cell / 1e3:.1f}" for cell in cells))
        cells = [
            _fit(np.array(sizes, float), np.array([one["total_s"] for one in runs], float))[0]
            for runs in kinds.values()
        ]
        table.add_row("seconds in all over devices, ms a device", *(f"{1e3 * cell:.0f}" for cell in cells))
    cells_text = []
    for runs in kinds.values():
        seconds = overheads_s(runs[-1]["done"])
        fitted = line(range(len(seconds)), seconds)
        cells_text.append(f"{1e6 * fitted.slope:.1f} +- {1e6 * fitted.standard_error:.1f}")
    table.add_row(f"overhead within the run of {found[-1]['devices']}, microseconds more a device", *cells_text)
    return table


if __name__ == "__main__":
    main()
