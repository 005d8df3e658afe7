"""A run of many minutes in which devices, workers, connections and the edge are killed at random: `make soak`.

Real processes without Flower, as in `test_faults.py`. The edge is killed in the first third only: what comes after shows
whether the memory of one long-lived process grows. Prints a line a minute and a summary at the end: turns, what was done
to them, the loss, the memory of the edge and its slope, and the files that were left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from fault_run import Run, running, zygote_at

MIB = 1 << 20


class Soak:
    """Does something to a run now and then, and keeps the books."""

    def __init__(self, run: Run, rng: random.Random) -> None:
        self.run, self.rng = run, rng
        self.faults: dict[str, int] = {}
        self.memory: list[list[tuple[float, float]]] = [[]]  # seconds and MiB, for each process of the edge

    def disturb(self, *, edge_too: bool) -> None:
        acts = {
            "device killed": 4,
            "device stopped for some seconds": 2,
            "connection cut": 4,
            "edge killed": 2 * edge_too,
        }
        name = self.rng.choices(list(acts), weights=list(acts.values()))[0]
        devices = [pid for pid in self.run.pids()[-4:] if self.run.lives(pid)]
        if name.startswith("device") and not devices:
            return
        self.faults[name] = self.faults.get(name, 0) + 1
        if name == "device killed":
            os.kill(self.rng.choice(devices), signal.SIGKILL)
        elif name == "device stopped for some seconds":
            pid = self.rng.choice(devices)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.rng.uniform(0.5, 14))
            if self.run.lives(pid):
                os.kill(pid, signal.SIGCONT)
        elif name == "connection cut":
            self.run.relay.refusing = True
            self.run.relay.cut()
            time.sleep(self.rng.uniform(0.0, 5.0))
            self.run.relay.refusing = False
        else:
            self.restart_edge()

    def restart_edge(self, **changes: Any) -> None:
        os.kill(self.run.edge_pid, signal.SIGKILL)
        self.run.until(lambda: not self.run.lives(self.run.edge_pid), "death of the edge")
        self.run.start(resume=True, **changes)
        self.memory.append([])

    def look(self, started_s: float) -> None:
        if not self.run.lives(self.run.edge_pid):
            sys.exit(f"the edge has ended by itself\n{self.run.logs()}")
        memory = psutil.Process(self.run.edge_pid).memory_info().rss / MIB
        self.memory[-1].append((time.monotonic() - started_s, memory))

    def turns(self) -> list[dict[str, Any]]:
        path = self.run.run_folder / "metrics.jsonl"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        )
        return [line for line in lines if line["kind"] == "turn"]

    def slope(self, settling_s: float = 240.0) -> tuple[float, float]:
        """MiB an hour of the edge's longest-lived process without its first `settling_s`, and over how many seconds."""
        samples = max(self.memory, key=len)
        settled = [(when, value) for when, value in samples if when > samples[0][0] + settling_s]
        if len(settled) < 20:
            return float("nan"), 0.0
        return statistics.linear_regression(*zip(*settled, strict=True)).slope * 3600, settled[-1][0] - settled[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument("--every-s", type=float, default=8.0, help="mean seconds between faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the summary here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splitkd-soak-") as name, zygote_at(Path(name) / "zygote") as zygote:
        folder = Path(name) / "soak"
        folder.mkdir()
        job = {"rounds": 1_000_000, "batches": 40, "commit_every_steps": 8, "grace_period_s": 4.0}
        with running(folder, zygote, **job) as run:
            summary = _soak(Soak(run, random.Random(arguments.seed)), arguments)
    text = json.dumps(summary, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _soak(soak: Soak, arguments: argparse.Namespace) -> dict[str, Any]:
    started_s = time.monotonic()
    next_fault_s, next_line_s = started_s + 10, started_s + 60
    while (now_s := time.monotonic()) < started_s + arguments.minutes * 60:
        soak.look(started_s)
        if now_s >= next_fault_s:
            soak.disturb(edge_too=now_s < started_s + arguments.minutes * 20)
            next_fault_s = time.monotonic() + soak.rng.expovariate(1 / arguments.every_s)
        if now_s >= next_line_s:
            next_line_s += 60
            print(_line(soak, now_s - started_s), flush=True)
        time.sleep(0.5)
    # The end: the round at work is the last one.
    current = max(turn["server_round"] for turn in soak.turns())
    soak.restart_edge(rounds=current + 1)
    soak.run.result()
    soak.run.until(lambda: not any(map(soak.run.lives, soak.run.pids())), "end of every device", 20)
    return _summary(soak)


def _line(soak: Soak, seconds: float) -> str:
    turns = soak.turns()
    losses = [turn["loss"] for turn in turns if "loss" in turn]
    lost = sum("error" in turn for turn in turns)
    memory = soak.memory[-1][-1][1] if soak.memory[-1] else float("nan")
    return (
        f"{seconds / 60:5.1f} min: {len(turns)} turns, {lost} lost, loss {losses[-1]:.4f}, edge {memory:.0f} MiB, "
        f"{sum(soak.faults.values())} faults"
    )


def _summary(soak: Soak) -> dict[str, Any]:
    turns = soak.turns()
    losses = [turn["loss"] for turn in turns if "loss" in turn]
    leftovers = [path.name for path in soak.run.folder.rglob("*") if ".part" in path.name]
    commits = soak.run.run_folder / "commits"
    peak = max(value for samples in soak.memory for _, value in samples)
    slope, slope_over_s = soak.slope()
    return {
        "faults": soak.faults,
        "turns": len(turns),
        "turns_lost": sum("error" in turn for turn in turns),
        "rounds": max(turn["server_round"] for turn in turns),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "edge_peak_mib": round(peak, 1),
        "edge_slope_mib_per_hour": round(slope, 2),
        "edge_slope_over_s": round(slope_over_s),
        "edge_memory_each_minute_mib": [round(value) for _, value in max(soak.memory, key=len)[::120]],
        "edge_processes": len(soak.memory),
        "files_left_half_written": leftovers,
        "manifests": len(list(commits.glob("manifest-*.json"))),
        "unit_files": len(list((commits / "units").iterdir())),
    }


if __name__ == "__main__":
    main()
