"""Time of a training step split between two processes, against the same step in one process.

The step: forward passes of student and teacher, CE + KL, backward pass, AdamW, with the demo app's models, batch and
settings. Split: one turn of the product's own edge and device, in two processes over loopback gRPC. Unsplit: a plain
loop over whole models in a third process, stopped while it is not its turn. Both take the same steps, and end with the
same student.

There is a bound for one torch thread in each process, each process pinned to a core of its own; and, with a larger batch, another
for steps of several micro-batches, which overlap on the two cores. The unsplit step then has the same micro-batches. Beside it,
without a bound: two threads each, nothing pinned, under both OpenMP wait policies and without one, and what the product does by
itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from _report import Row, report
from _step_processes import (
    Job,
    Placement,
    Processes,
    SplitSteps,
    UnsplitSteps,
    pinned,
    quartile_distance,
    start,
)

from flwr_splitkd.tiers.threads import default_threads

# Of the unsplit step's time at the primary cut; see benchmarks/README.md.
BOUND = 1.10
PRIMARY_CUT = 4
# Where micro-batches overlap on two cores, a split step takes less time than one on one core.
OVERLAP_BOUND = 1.0
MICROBATCHES = (1, 2, 4, 8)
# Sequences of a step with micro-batches: a multiple of each of their numbers.
OVERLAP_BATCH = 8
# The demo app's bound on the gradient norm.
MAX_GRAD_NORM = 1.0
TWO_THREADS = 2
LOOPBACK = "127.0.0.1:0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table."""

    name: str
    cut: int = PRIMARY_CUT
    max_grad_norm: float | None = None
    bound: float | None = None
    batch_size: int | None = None
    num_microbatches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The pairs of one case."""

    case: Case
    split: list[SplitSteps]
    unsplit: list[UnsplitSteps]

    @property
    def row(self) -> Row:
        """Return medians over the pairs."""
        ratios = [s.median_s / u.median_s for s, u in zip(self.split, self.unsplit, strict=True)]
        return Row(
            name=self.case.name,
            value=1e3 * statistics.median(run.median_s for run in self.split),
            unit="ms/step",
            reference=1e3 * statistics.median(run.median_s for run in self.unsplit),
            ratio=statistics.median(ratios),
            spread=quartile_distance(ratios),
            n=len(ratios),
        )

    @property
    def parts(self) -> str:
        """Where the split step's time went, and whether both ways trained the same student."""
        pairs = zip(self.split, self.unsplit, strict=True)
        same = "equal" if all(s.student == u.student for s, u in pairs) else "NOT equal"
        if self.case.num_microbatches > 1:
            return f"{self.case.name}: the students are {same} bit for bit"
        device, edge, exchange = (
            1e3 * statistics.median(second for run in runs for second in run)
            for runs in zip(*((run.device_s, run.edge_s, run.exchange_s) for run in self.split), strict=True)
        )
        return (
            f"{self.case.name}: device {device:.1f} ms, edge {edge:.1f} ms, exchange {exchange:.1f} ms; "
            f"the students are {same} bit for bit"
        )


def main() -> None:
    """Measure every case, print the table, write the JSON."""
    arguments = _arguments()
    measured: list[Measured] = []
    left_out: list[str] = []
    about = ""
    for placement, cases in _cases(arguments.microbatches, arguments.only_overlap):
        with start(placement) as processes:
            about = processes.about
            for case in cases:
                if case.num_microbatches > 1 and not processes.has_microbatches:
                    left_out.append(case.name)
                else:
                    measured.append(_measure(processes, case, arguments))
    notes = [
        f"float32, CPU, {about}, AdamW, chunked loss; {arguments.pairs} alternating pairs of turns of "
        f"{arguments.steps} steps after {arguments.warmup} that do not count.",
        "value, reference: median step, split and unsplit. ratio: median of the pairs' ratios; spread: their quartile "
        "distance. exchange: what the device waits beyond the edge's forward pass, loss and backward pass.",
        "default: what the product sets where device and edge share a machine: device "
        f"{default_threads(LOOPBACK) or 'as many threads as torch takes'}, edge as many threads as torch takes "
        f"({TWO_THREADS} here), no wait policy.",
        *(item.parts for item in measured),
    ]
    for item in measured:
        row, bound = item.row, item.case.bound
        if bound is not None:
            verdict = "met" if row.ratio is not None and row.ratio <= bound else "missed"
            notes.append(f"{row.name}: ratio {row.ratio:.3f}, bound {bound:.2f}: {verdict}")
    notes += [f"{name}: not run: TurnSettings of this package has no `num_microbatches`." for name in left_out]
    name = "split_overhead" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, [item.row for item in measured], notes=notes, json_path=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: two pairs of three steps each")
    parser.add_argument(
        "--microbatches", type=int, nargs="*", default=MICROBATCHES, choices=MICROBATCHES, help="numbers of them (all)"
    )
    parser.add_argument("--only-overlap", action="store_true", help="only the steps with micro-batches")
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs per row (5)")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per run (20)")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them (4)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.steps, arguments.warmup = 2, 3, 1
    return arguments


def _cases(microbatches: Sequence[int], only_overlap: bool) -> Iterator[tuple[Placement, Sequence[Case]]]:
    overlap = [
        Case(
            name=f"1 pinned thread each, cut {PRIMARY_CUT}, batch {OVERLAP_BATCH}, M = {count}",
            bound=BOUND if count == 1 else OVERLAP_BOUND,
            batch_size=OVERLAP_BATCH,
            num_microbatches=count,
        )
        for count in microbatches
    ]
    if only_overlap:
        yield pinned(), overlap
        return
    yield (
        pinned(),
        [
            *(
                Case(name=f"1 pinned thread each, cut {cut}", cut=cut, bound=BOUND if cut == PRIMARY_CUT else None)
                for cut in (2, PRIMARY_CUT, 6)
            ),
            Case(name=f"1 pinned thread each, cut {PRIMARY_CUT}, clipping", max_grad_norm=MAX_GRAD_NORM),
            *overlap,
        ],
    )
    for policy in ("active", "passive", None):
        placement = Placement(edge_threads=TWO_THREADS, device_threads=TWO_THREADS, wait_policy=policy)
        said = f"OMP_WAIT_POLICY={policy}" if policy else "no OMP_WAIT_POLICY"
        yield placement, [Case(name=f"2 threads each, {said}, cut {PRIMARY_CUT}")]
    threads = default_threads(LOOPBACK) or TWO_THREADS
    by_default = Placement(edge_threads=TWO_THREADS, device_threads=threads)
    yield by_default, [Case(name=f"default: edge {TWO_THREADS} threads, device {threads}, cut {PRIMARY_CUT}")]


def _measure(processes: Processes, case: Case, arguments: argparse.Namespace) -> Measured:
    job = Job(
        cut=case.cut,
        max_grad_norm=case.max_grad_norm,
        warmup=arguments.warmup,
        steps=arguments.steps,
        batch_size=case.batch_size,
        num_microbatches=case.num_microbatches,
    )
    split: list[SplitSteps] = []
    unsplit: list[UnsplitSteps] = []
    for pair in range(arguments.pairs):
        # Whoever goes first changes from pair to pair, so that a machine that slows down favours neither.
        if pair % 2:
            unsplit.append(processes.unsplit(job))
        split.append(processes.split(job))
        if not pair % 2:
            unsplit.append(processes.unsplit(job))
    seconds = {"split": [run.median_s for run in split], "unsplit": [run.median_s for run in unsplit]}
    print(json.dumps({"name": case.name, "seconds": seconds}), file=sys.stderr, flush=True)
    return Measured(case=case, split=split, unsplit=unsplit)


if __name__ == "__main__":
    main()
