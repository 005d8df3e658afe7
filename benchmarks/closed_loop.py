"""What the planner predicts, against what turns take: a fleet that claims three times the speed, corrected turn by turn.

A deployment on loopback: a SuperLink, two SuperNodes and models of the demo's sizes with random weights. First this machine is
profiled; then a fleet file claims three times its speed, and a link of 10 Gbit/s. In the first run every turn is decided by
`OptimalCut`; in the second one every turn takes another cut than the one before, so that it has to be predicted from those at
other cuts. Predictions are those that were made before each turn, as they stand in ``metrics.jsonl`` beside what was measured.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _planned_runs import (
    BATCH_SIZE,
    DEMO_APP,
    PLANNED_APP,
    SEQUENCE_LENGTH,
    STAGES,
    environment,
    faster,
    load,
    make_models,
    measure_machine,
    median_errors,
    relative_errors,
    turns_of,
    write_fleet,
)
from _report import Row, report

from demo_command import raise_on_signals
from flower_run import Federation, Value, deployment

# Median relative error of the turns that are judged, for the total and for each stage.
BOUND = 0.25
FIRST_JUDGED, LAST_JUDGED = 4, 10
CLAIM = 3.0
LINK = "wired-10g"
NUM_DEVICES = 2
CUTS = "2,6,4"
TIMEOUT_S = 1200.0


def main() -> None:
    """Run both parts, print what was predicted and measured, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that Flower's processes end, whatever ends this
    loads = [load()]
    with tempfile.TemporaryDirectory(prefix="closed-loop-") as name:
        folder = Path(name)
        models = make_models(folder)
        device, server = measure_machine(models["student"], repeats=3 if arguments.quick else 9)
        settings: dict[str, Value] = {
            **models,
            "fleet": write_fleet(folder / "fleet.json", *faster(device, server, CLAIM), LINK),
            "selection": "by-name",
            "num-server-rounds": arguments.rounds,
            "max-batches": arguments.batches,
            "batch-size": BATCH_SIZE,
            "sequence-length": SEQUENCE_LENGTH,
        }
        with deployment(folder / "logs", supernodes=NUM_DEVICES, environment=environment(folder)) as federation:
            optimal = _run(federation, DEMO_APP, {**settings, "cut-policy": "optimal"}, folder / "optimal")
            loads.append(load())
            cycle = _run(federation, PLANNED_APP, {**settings, "cut-policy": "cycle", "cuts": CUTS}, folder / "cycle")
            loads.append(load())
    parts = {"optimal": optimal, "cycle": cycle}
    rows = [row for name, turns in parts.items() for row in _rows(name, turns)]
    durations = [turn["duration_s"] for turns in parts.values() for turn in turns]
    notes = [
        f"{NUM_DEVICES} SuperNodes, {arguments.batches} batches of {BATCH_SIZE} x {SEQUENCE_LENGTH} tokens a turn, turns of "
        f"{min(durations):.1f} to {max(durations):.1f} s, one torch thread in each process; torch {torch.__version__}, flwr "
        f"{version('flwr')}.",
        f"The fleet claims {CLAIM:g} x the speed that was measured ({device.flops / 1e9:.1f} GFLOP/s in training) and {LINK}.",
        "load at the beginning, after the first and after the second run: " + "; ".join(loads),
    ]
    for row in rows:
        met = "met" if row.value <= BOUND else "missed"
        notes.append(f"{row.name}: {row.value:.1%}, bound {BOUND:.0%}: {met}")
    report(
        "closed_loop" + (" (quick: a smoke test, not a measurement)" if arguments.quick else ""),
        rows,
        tables=[_table(name, turns) for name, turns in parts.items()],
        notes=notes,
        json_path=arguments.json,
        more={"parts": parts, "load": loads, "claim": CLAIM},
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows and all turns to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 2 rounds of short turns in each part")
    parser.add_argument("--rounds", type=int, default=6, help=f"rounds of {NUM_DEVICES} turns in each part (6)")
    parser.add_argument("--batches", type=int, default=64, help="batches of a turn (64)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.batches = 2, 8
    return arguments


def _run(federation: Federation, app: Path, settings: Mapping[str, Value], runs: Path) -> list[dict[str, Any]]:
    """Run an app; return its turns."""
    outcome = federation.run(
        app,
        {**settings, "run-dir": str(runs)},
        timeout_s=TIMEOUT_S,
        on_line=lambda line: print(line, file=sys.stderr),
    )
    if not outcome.completed:
        raise SystemExit(outcome.tail())
    return turns_of(runs)


def _rows(part: str, turns: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Each stage's error over the judged turns, beside that of the first turn, when the fleet file alone was known."""
    judged = turns[FIRST_JUDGED - 1 : LAST_JUDGED]
    first = relative_errors(turns[0])
    rows = []
    for stage, error in median_errors(judged or turns[-1:]).items():
        every = sorted(relative_errors(turn)[stage] for turn in judged or turns[-1:])
        rows.append(
            Row(
                name=f"{part}: relative error of {stage}, turns {FIRST_JUDGED} to {FIRST_JUDGED + len(judged) - 1}",
                value=error,
                unit="1",
                reference=first[stage],
                ratio=error / first[stage] if first[stage] else None,
                n=len(every),
                low=every[0],
                high=every[-1],
            )
        )
    return rows


def _table(part: str, turns: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{part}: predicted / measured seconds, relative error", title_justify="left")
    for heading in ("turn", "device", "cut", *STAGES):
        table.add_column(heading, justify="right")
    for number, turn in enumerate(turns, start=1):
        errors = relative_errors(turn)
        cells = [
            f"{turn[predicted]:.3g} / {turn[measured]:.3g} ({_percent(errors[stage])})"
            for stage, (predicted, measured) in STAGES.items()
        ]
        table.add_row(str(number), turn["device"], str(turn["cut"]), *cells)
    return table


def _percent(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.0%}"


if __name__ == "__main__":
    main()
