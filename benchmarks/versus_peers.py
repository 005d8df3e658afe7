"""A split KD step by this package, against other ways to do the same step, each over the same step in one process.

Same models (the demo's), cut, batches, loss and optimiser everywhere. Every row alternates with the unsplit step, and is checked
against it: this package's student must be equal bit for bit, the others' losses to 1e-5.

- This package: in lock-step, and with micro-batches that overlap, beside the unsplit step with the same micro-batches.
- A minimal gRPC loop: `_peer_grpc.py`, what somebody would write in an afternoon.
- NVFlare's Collab API in its multi-process form (``PocEnv``), in a network namespace of its own: `_peer_nvflare_job.py`. Stock, and
  with tensors inside the messages; with two calls a step, as NVFlare's own example does it, and with one.
- Flower messages: the exchange alone, timed in a deployment where nobody computes, plus the compute of this package's step. In a
  deployment every message starts a process anew, which would have to rebuild its half; that is left out in its favour.

NVFlare needs an environment of its own: python -m venv env; env/bin/pip install torch; env/bin/pip install nvflare transformers
peft jaxtyping 'protobuf<7'; then pass --nvflare-python env/bin/python. The namespace takes root, or user namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _peer_nvflare
from _flower_exchanges import flower_exchanges
from _report import Row, report
from _step_processes import (
    Job,
    Placement,
    Processes,
    SplitSteps,
    UnsplitSteps,
    Worker,
    differences,
    pinned,
    quartile_distance,
    start,
    workers,
)

CUT = 4
# Largest relative difference of a peer's loss from the unsplit step's, over all steps of a run.
TOLERANCE = 1e-5
GRPC_WORKER = Path(__file__).with_name("_peer_grpc.py")
TWO_THREADS = 2

Steps = Callable[[Job], UnsplitSteps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to take a split step.

    Parameters
    ----------
    name
        In the table.
    take
        Takes the steps of a job.
    num_microbatches
        Of this way and of its reference.
    """

    name: str
    take: Steps
    num_microbatches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The pairs of one way.

    Parameters
    ----------
    whole
        The unsplit step without micro-batches, for a way that has them; else empty.
    """

    name: str
    split: list[UnsplitSteps]
    unsplit: list[UnsplitSteps]
    whole: list[UnsplitSteps]

    @property
    def rows(self) -> list[Row]:
        """Medians over the pairs."""
        rows = [_row(self.name, _medians(self.split), _medians(self.unsplit))]
        if self.whole:
            rows.append(
                _row(f"{self.name}, over the unsplit step with M = 1", _medians(self.split), _medians(self.whole))
            )
        return rows

    @property
    def check(self) -> str:
        """Whether the arithmetic was the same.

        Raises
        ------
        SystemExit
            If it was not: then the row means nothing.
        """
        pairs = list(zip(self.split, self.unsplit, strict=True))
        if all(split.student and split.student == unsplit.student for split, unsplit in pairs):
            return f"{self.name}: the student equals the unsplit one bit for bit"
        differs = max(loss_difference(split.losses, unsplit.losses) for split, unsplit in pairs)
        if not differs <= TOLERANCE:
            raise SystemExit(
                f"{self.name}: losses differ from the unsplit step's by {differs:.2g}; expected at most {TOLERANCE:g}. This is "
                "not the same training."
            )
        return f"{self.name}: losses equal the unsplit step's to {differs:.1g}"


def main() -> None:
    """Measure every way under both placements, print the table, write the JSON."""
    arguments = _arguments()
    nvflare = _peer_nvflare.nvflare_version(arguments.nvflare_python) if arguments.nvflare_python else None
    job = Job(cut=CUT, warmup=arguments.warmup, steps=arguments.steps, batch_size=arguments.batch)
    measured: list[Measured] = []
    rows: list[Row] = []
    two_each = Placement(edge_threads=TWO_THREADS, device_threads=TWO_THREADS)
    placements = {"1": ("1 pinned thread each", pinned()), "2": ("2 threads each", two_each)}
    notes: list[str] = []
    checks: list[str] = []
    for said, placement in (placements[threads] for threads in arguments.threads):
        for item in _measure_placement(said, placement, job, arguments):
            measured.append(item)
            checks.append(item.check)
            rows += item.rows
        if not arguments.no_flower and placement.cores:
            ours = next(item for item in measured if isinstance(item.split[0], SplitSteps))
            rows.append(_flower_row(said, ours, arguments.exchanges))
            notes.append(
                f"Flower {version('flwr')}: the exchange was timed, {arguments.exchanges} times; the compute is this package's, "
                "added to it. Nobody trained by Flower messages."
            )
    if nvflare is None:
        notes.append("NVFlare: not run: no NVFlare interpreter given (--nvflare-python, see --help).")
    else:
        notes.append(
            f"NVFlare {nvflare}: PocEnv, one server and one client, each with its job's process, as it provisions them. "
            "Smashed data and teacher embeddings travel in one result. Its parent processes are not pinned."
        )
    if arguments.microbatches > 1 and not any(len(item.whole) for item in measured):
        notes.append("Pipelined: not run: TurnSettings of this package has no `num_microbatches`.")
    notes += [
        f"float32, CPU, batch {arguments.batch} x 128 tokens, cut {CUT}, AdamW; {arguments.pairs} alternating pairs of "
        f"{arguments.steps} steps after {arguments.warmup} that do not count.",
        f"Load of the machine: {os.getloadavg()[1]:.1f} over the last 5 minutes, {os.cpu_count()} cores.",
        "value, reference: median step, split and unsplit. ratio: median of the pairs' ratios; spread: quartile distance.",
        *checks,
    ]
    name = "versus_peers" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, rows, notes=notes, json_path=arguments.json)


def loss_difference(split: list[float], unsplit: list[float]) -> float:
    """Largest relative difference, step by step; infinite where one has no loss for a step."""
    if not unsplit or len(split) != len(unsplit):
        return float("inf")
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(split, unsplit, strict=True))


def _measure_placement(said: str, placement: Placement, job: Job, arguments: argparse.Namespace) -> Iterator[Measured]:
    with start(placement) as processes:
        ways = [Way(name="lock-step", take=processes.split)]
        if processes.has_microbatches and arguments.microbatches > 1:
            count = arguments.microbatches
            ways.append(Way(name=f"pipelined, M = {count}", take=processes.split, num_microbatches=count))
        for way in ways:
            yield _measure(f"{said}: {way.name}", way, processes, job, arguments.pairs)
        with workers(placement, GRPC_WORKER, ("edge", "device")) as (edge, device):
            way = Way(name="minimal gRPC", take=lambda job: _take_grpc(edge, device, job))
            yield _measure(f"{said}: {way.name}", way, processes, job, arguments.pairs)
        for inline in (False, True) if arguments.nvflare_python else ():
            with _nvflare(arguments.nvflare_python, placement, inline) as ways:
                for way in ways:
                    yield _measure(f"{said}: {way.name}", way, processes, job, arguments.pairs)


def _measure(name: str, way: Way, processes: Processes, job: Job, pairs: int) -> Measured:
    job = replace(job, num_microbatches=way.num_microbatches)
    takes: dict[str, Callable[[], UnsplitSteps]] = {
        "split": lambda: way.take(job),
        "unsplit": lambda: processes.unsplit(job),
    }
    if job.num_microbatches > 1:
        takes["whole"] = lambda: processes.unsplit(replace(job, num_microbatches=1))
    taken: dict[str, list[UnsplitSteps]] = {"split": [], "unsplit": [], "whole": []}
    for pair in range(pairs):
        # Whoever goes first changes from pair to pair, so that a machine that slows down favours neither.
        for which in reversed(takes) if pair % 2 else takes:
            taken[which].append(takes[which]())
    seconds = {which: _medians(runs) for which, runs in taken.items() if runs}
    print(json.dumps({"name": name, "seconds": seconds}), file=sys.stderr, flush=True)
    return Measured(name=name, **taken)


def _take_grpc(edge: Worker, device: Worker, job: Job) -> UnsplitSteps:
    with edge.awake(), device.awake():
        edge.ask(job.message())
        device.ask(job.message() | edge.answer())
        starts_s, losses = device.answer()["starts_s"], edge.answer()["losses"]
    return UnsplitSteps(step_s=differences(starts_s)[job.measured], student="", losses=losses)


@contextmanager
def _nvflare(python: Path, placement: Placement, inline: bool) -> Iterator[list[Way]]:
    threads = (placement.edge_threads, placement.device_threads)
    with _peer_nvflare.deployment(python, inline=inline, threads=threads, cores=placement.cores) as running:

        def take(job: Job, calls: int) -> UnsplitSteps:
            answer: dict[str, Any] = running.run(job.message() | {"calls": calls})
            if tuple(answer["threads"]) != threads:
                raise SystemExit(f"NVFlare's processes compute with {answer['threads']} threads; expected {threads}.")
            step_s = differences(answer["starts_s"])[job.measured]
            return UnsplitSteps(step_s=step_s, student="", losses=answer["losses"])

        kind = "inline tensors" if inline else "stock"
        yield [
            Way(name=f"NVFlare Collab, {kind}, two calls a step", take=lambda job: take(job, 2)),
            Way(name=f"NVFlare Collab, {kind}, one call a step", take=lambda job: take(job, 1)),
        ]


def _flower_row(said: str, ours: Measured, count: int) -> Row:
    runs = [run for run in ours.split if isinstance(run, SplitSteps)]
    flower = flower_exchanges(runs[0].up, runs[0].down, count)
    compute_s = statistics.median(
        step - exchange for run in runs for step, exchange in zip(run.step_s, run.exchange_s, strict=True)
    )
    unsplit_s = statistics.median(_medians(ours.unsplit))
    steps_s = [exchange + compute_s for exchange in flower.seconds]
    return _row(f"{said}: Flower messages, exchange plus compute", steps_s, [unsplit_s] * len(steps_s))


def _medians(runs: list[UnsplitSteps]) -> list[float]:
    return [run.median_s for run in runs]


def _row(name: str, split_s: list[float], unsplit_s: list[float]) -> Row:
    ratios = [split / unsplit for split, unsplit in zip(split_s, unsplit_s, strict=True)]
    return Row(
        name=name,
        value=1e3 * statistics.median(split_s),
        unit="ms/step",
        reference=1e3 * statistics.median(unsplit_s),
        ratio=statistics.median(ratios),
        spread=quartile_distance(ratios),
        n=len(ratios),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: two pairs of three steps each")
    parser.add_argument(
        "--nvflare-python", type=Path, help="interpreter of an environment with NVFlare; without it, not run"
    )
    parser.add_argument("--no-flower", action="store_true", help="leave Flower messages out")
    parser.add_argument(
        "--threads", nargs="+", choices=("1", "2"), default=["1", "2"], help="one pinned thread each, two (both)"
    )
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs per row (5)")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per run (20)")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them (4)")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step (8)")
    parser.add_argument(
        "--microbatches", type=int, default=4, help="micro-batches of the pipelined row, a divisor of --batch (4)"
    )
    parser.add_argument("--exchanges", type=int, default=9, help="exchanges by Flower messages (9)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.steps, arguments.warmup, arguments.exchanges = 2, 3, 1, 2
    if arguments.microbatches < 1 or arguments.batch % arguments.microbatches:
        parser.error(f"--microbatches is {arguments.microbatches}; expected a divisor of --batch, {arguments.batch}.")
    return arguments


if __name__ == "__main__":
    main()
