"""A link that drops from 200 to 10 Mbit/s in the middle of a run: what the planner makes of it, and what that is worth.

A SuperLink and a SuperNode in network namespaces of their own, joined by a link that is shaped with a token bucket. The planner
knows the link from what the data plane measures alone. Turns have all their passes without loss while that fits into the
bound on a turn; otherwise `OptimalCut` chooses among all codecs and `DeadlineEpochs` the passes. After the drop the new
decisions alternate with the one from before it, turn by turn, and both are timed. Needs root, and `ip` and `tc` of iproute2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _planned_runs import (
    BATCH_SIZE,
    PLANNED_APP,
    SEQUENCE_LENGTH,
    environment,
    load,
    make_models,
    measure_machine,
    turns_of,
    write_fleet,
)
from _report import Row, report

from demo_command import raise_on_signals
from flower_run import Run, Value, deployment
from lab_network import LabNetwork, NetworkError, lab_network

BEFORE_MBPS, AFTER_MBPS = 200.0, 10.0
CODECS = "none,int8"
NUM_BATCHES = 8
MAX_EPOCHS = 6
# Half of the demo's layers: little to compute, so that it is the link that decides, also on a machine where others compute.
SHARE = 2
TIMEOUT_S = 1500.0
_POLL_S = 0.5


def main() -> None:
    """Run, print the turns and what the new decisions save, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that the namespaces go, whatever ends this
    try:
        with lab_network([BEFORE_MBPS]) as lab:
            turns, dropped, loads = _measure(arguments, lab)
    except NetworkError as error:
        print(f"link_drop is left out: {error}; expected root on Linux with iproute2.")
        return
    name = "link_drop" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    old, new, noticed = decisions(turns, dropped)
    notes = [
        f"One SuperNode, {NUM_BATCHES} batches of {BATCH_SIZE} x {SEQUENCE_LENGTH} tokens in a pass, at most {MAX_EPOCHS} passes a "
        f"turn, bound on a turn {arguments.max_delay:g} s; one torch thread in each process; torch {torch.__version__}, flwr "
        f"{version('flwr')}.",
        f"The link dropped from {BEFORE_MBPS:g} to {AFTER_MBPS:g} Mbit/s when turn {dropped} had ended; "
        + (f"turn {noticed} was decided anew." if noticed else "no turn was decided anew."),
        "load at the beginning and at the end: " + "; ".join(loads),
    ]
    if noticed:
        notes += [
            f"before: {turns[dropped - 1]['reason']}; {turns[dropped - 1]['local_epochs']} passes",
            f"after: {turns[noticed - 1]['reason']}; {turns[noticed - 1]['local_epochs']} passes",
        ]
    report(
        name,
        _rows(old, new),
        tables=[_table(turns, dropped, noticed)],
        notes=notes,
        json_path=arguments.json,
        more={"turns": turns, "dropped_after": dropped, "noticed": noticed, "load": loads},
    )


def decisions(
    turns: Sequence[Mapping[str, Any]], dropped: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], int]:
    """Tell old from new decisions among the turns after a drop.

    Parameters
    ----------
    turns
        In order.
    dropped
        Turns that had ended when the link dropped, at least 1.

    Returns
    -------
    old, new
        Turns that were decided as before the drop, and otherwise; from the first one on that was decided otherwise.
    noticed
        Number of that turn, from 1; 0 if there is none.
    """
    before = _decision(turns[dropped - 1])
    after = list(turns[dropped:])
    noticed = next((index for index, turn in enumerate(after) if _decision(turn) != before), None)
    if noticed is None:
        return [], [], 0
    judged = after[noticed:]
    old = [turn for turn in judged if _decision(turn) == before]
    new = [turn for turn in judged if _decision(turn) != before]
    return old, new, dropped + noticed + 1


def _decision(turn: Mapping[str, Any]) -> tuple[int, str, int]:
    return turn["cut"], turn["codec"], turn["local_epochs"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows and all turns to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 3 turns before the drop, 4 after it")
    parser.add_argument("--before", type=int, default=4, help="turns before the drop (4)")
    parser.add_argument("--after", type=int, default=8, help="turns after it (8)")
    parser.add_argument("--max-delay", type=float, default=25.0, help="bound on a turn in seconds (25)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.before, arguments.after = 3, 4
    return arguments


def _measure(arguments: argparse.Namespace, lab: LabNetwork) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Run the app, and let the link drop; its turns, how many of them had ended then, and the machine's load."""
    loads = [load()]
    with tempfile.TemporaryDirectory(prefix="link-drop-") as name:
        folder = Path(name)
        runs = folder / "runs"
        models = make_models(folder, share=SHARE)
        fleet = write_fleet(folder / "fleet.json", *measure_machine(models["student"]), f"wired-{BEFORE_MBPS:g}m")
        settings: dict[str, Value] = {
            **models,
            "fleet": fleet,
            "cut-policy": "optimal",
            "codecs": CODECS,
            "max-delay": arguments.max_delay,
            "local-epochs": MAX_EPOCHS,
            "max-batches": NUM_BATCHES,
            "batch-size": BATCH_SIZE,
            "sequence-length": SEQUENCE_LENGTH,
            # By-name would ask for forecasts, in which the policies would see turns that are not taken.
            "selection": "round-robin",
            "num-server-rounds": arguments.before + arguments.after,
            "data-address": f"{lab.host}:0",
            "advertised-address": lab.host,
            "insecure": True,
            "run-dir": str(runs),
        }
        with deployment(
            folder / "logs",
            supernodes=1,
            environment=environment(folder),
            host=lab.host,
            superlink_prefix=lab.edge,
            supernode_prefixes=lab.devices,
        ) as federation:
            run = federation.submit(PLANNED_APP, settings, on_line=lambda line: print(line, file=sys.stderr))
            dropped = _await_turns(run, runs, arguments.before)
            lab.set_rate(0, AFTER_MBPS)
            outcome = run.wait(TIMEOUT_S)
            if not outcome.completed:
                raise SystemExit(outcome.tail())
        loads.append(load())
        turns = turns_of(runs)
    if errors := [turn["error"] for turn in turns if "error" in turn]:
        raise SystemExit(f"{len(errors)} of {len(turns)} turns failed: {errors[0]}")
    return turns, dropped, loads


def _await_turns(run: Run, runs: Path, count: int) -> int:
    """Wait until so many turns have ended; return how many have."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while (ended := len(turns_of(runs))) < count:
        if time.monotonic() > deadline_s:
            run.stop()
            raise SystemExit(f"{ended} turns ended within {TIMEOUT_S:g} s; expected {count}.")
        time.sleep(_POLL_S)
    return ended


def _rows(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Medians of new decisions beside those of old ones."""
    if not (old and new):
        return []
    measures = {
        "a turn": lambda turn: turn["duration_s"],
        "a batch": lambda turn: turn["duration_s"] / turn["num_batches"],
    }
    rows = []
    for name, seconds in measures.items():
        after, before = sorted(map(seconds, new)), statistics.median(map(seconds, old))
        value = statistics.median(after)
        rows.append(
            Row(
                name=f"{name}, new decision, against the old one on the same link",
                value=value,
                unit="s",
                reference=before,
                ratio=value / before,
                n=len(after),
                low=after[0],
                high=after[-1],
            )
        )
    return rows


def _table(turns: Sequence[Mapping[str, Any]], dropped: int, noticed: int) -> Table:
    table = Table(title="Turns; rates are measured, in Mbit/s", title_justify="left")
    for heading in ("turn", "link", "decision", "cut", "codec", "passes", "up", "down", "predicted s", "measured s"):
        table.add_column(heading, justify="right")
    before = _decision(turns[dropped - 1])
    for number, turn in enumerate(turns, start=1):
        kind = "old" if noticed and _decision(turn) == before else "new"
        table.add_row(
            str(number),
            f"{BEFORE_MBPS if number <= dropped else AFTER_MBPS:g}",
            kind if noticed and number >= noticed else "-",
            str(turn["cut"]),
            turn["codec"],
            str(turn["local_epochs"]),
            _rate(turn, "uplink"),
            _rate(turn, "downlink"),
            f"{turn['predicted_s']:.1f}",
            f"{turn['duration_s']:.1f}",
        )
    return table


def _rate(turn: Mapping[str, Any], way: str) -> str:
    seconds = turn[f"{way}_s"]
    return f"{turn[f'{way}_payload_bytes'] * 8 / seconds / 1e6:.1f}" if seconds > 0 else "-"


if __name__ == "__main__":
    main()
