"""A split step over a shaped link: several micro-batches in flight against lock-step, and against its slowest stage.

Device and edge are processes with one thread on a core of their own, in network namespaces that a token bucket joins; a relay
adds the delay. The stages' seconds come from the turns' own traces. Needs root, and `ip` and `tc` of iproute2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import Row, report
from _step_processes import STEP_WORKER, Job, Worker, differences, pinned, quartile_distance

from demo_command import raise_on_signals
from lab_network import LabNetwork, NetworkError, lab_network

RELAY = Path(__file__).with_name("_delay_relay.py")
RATES_MBPS, DELAYS_MS = (50.0, 200.0), (5.0, 20.0)
PORT = 7900
NUM_MICROBATCHES, CUT = 4, 4
# Device, uplink, edge, downlink: what a micro-batch passes through. The device's two passes are one stage, on one core.
NUM_STAGES = 4
BOUND = 1.15
STAGES = {
    "device": [
        ("device", stage) for stage in ("load", "teacher", "forward", "encode", "decode", "backward", "optimizer")
    ],
    "uplink": [("edge", "receive")],
    "edge": [("edge", stage) for stage in ("decode", "teacher", "student", "encode", "optimizer")],
    "downlink": [("device", "receive")],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Seconds of the measured steps and, by stage, of all micro-batches of a step; the digest of the student."""

    step_s: float
    stages_s: dict[str, float]
    student: str

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest stage in a step."""
        return max(self.stages_s.values())


def main() -> None:
    """Measure every link, print the table, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that the namespaces go, whatever ends this
    rows, notes = [], []
    try:
        for rate_mbps in arguments.rates:
            for delay_ms in arguments.delays:
                found = _measure(arguments, rate_mbps, delay_ms)
                rows += found[0]
                notes += found[1]
    except NetworkError as error:
        raise SystemExit(f"The network cannot be made: {error}") from error
    about = [
        f"The demo's models and batch of {arguments.batch_size} x 128 tokens, cut {CUT}, M = {NUM_MICROBATCHES} micro-batches, "
        f"K = {NUM_STAGES} stages, float32, no codec; {arguments.pairs} alternating pairs of turns of {arguments.steps} steps "
        f"after {arguments.warmup} that do not count.",
        "value, reference: median seconds of a step, with as many micro-batches in flight as there are and in lock-step. ratio: "
        "median of the pairs' ratios; spread: their quartile distance.",
        f"bound: {BOUND} x (M + K - 1) / M x the slowest stage, as the trace of the same steps has it, and a round trip.",
    ]
    name = "pipeline" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, rows, notes=[*about, *notes], json_path=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one link, two pairs of three steps")
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs for each link (5)")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a turn (8)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (2)")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of a step (4)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES_MBPS, help="Mbit/s of the links (50 200)")
    parser.add_argument("--delays", type=float, nargs="+", default=DELAYS_MS, help="ms each way (5 20)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.steps, arguments.warmup = 2, 3, 1
        arguments.rates, arguments.delays = [RATES_MBPS[1]], [DELAYS_MS[0]]
    return arguments


def _measure(arguments: argparse.Namespace, rate_mbps: float, delay_ms: float) -> tuple[list[Row], list[str]]:
    pipelined, lock_step = [], []
    job = _job(arguments)
    with lab_network([rate_mbps]) as lab, _site(lab, delay_ms / 1e3) as site:
        unsplit = site.unsplit(job)
        for _ in range(arguments.pairs):
            lock_step.append(site.split(job, depth=1))
            pipelined.append(site.split(job, depth=NUM_MICROBATCHES))
    link = f"{rate_mbps:g} Mbit/s, {delay_ms:g} ms each way"
    factor, round_trip_s = (NUM_MICROBATCHES + NUM_STAGES - 1) / NUM_MICROBATCHES, 2 * delay_ms / 1e3
    ratios = [one.step_s / other.step_s for one, other in zip(pipelined, lock_step, strict=True)]
    bounds_s = [BOUND * factor * one.slowest_s + round_trip_s for one in pipelined]
    of_bound = [one.step_s / bound_s for one, bound_s in zip(pipelined, bounds_s, strict=True)]
    value = statistics.median(one.step_s for one in pipelined)
    rows = [
        Row(
            name=f"{link}: in flight / lock-step",
            value=value,
            unit="s/step",
            reference=statistics.median(one.step_s for one in lock_step),
            ratio=statistics.median(ratios),
            spread=quartile_distance(ratios),
            n=len(ratios),
        ),
        Row(
            name=f"{link}: in flight / bound",
            value=value,
            unit="s/step",
            reference=statistics.median(bounds_s),
            ratio=statistics.median(of_bound),
            spread=quartile_distance(of_bound),
            n=len(of_bound),
        ),
    ]
    equal = all(one.student == unsplit for one in (*pipelined, *lock_step))
    verdict = "met" if statistics.median(of_bound) <= 1 else "missed"
    return rows, [
        f"{link}: bound {verdict}. Seconds of a step in flight: {_parts(pipelined)}; in lock-step: {_parts(lock_step)}. All "
        f"students are {'equal' if equal else 'NOT equal'} bit for bit to the unsplit one with {NUM_MICROBATCHES} micro-batches."
    ]


def _parts(runs: Sequence[Steps]) -> str:
    medians = {stage: statistics.median(run.stages_s[stage] for run in runs) for stage in STAGES}
    return ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in medians.items())


def _job(arguments: argparse.Namespace) -> Job:
    return Job(
        cut=CUT,
        warmup=arguments.warmup,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        num_microbatches=NUM_MICROBATCHES,
    )


class _Site:
    """An edge, a device behind a slow link, and an unsplit process."""

    def __init__(self, edge: Worker, device: Worker, unsplit: Worker, lab: LabNetwork, relay: str) -> None:
        self._edge, self._device, self._unsplit = edge, device, unsplit
        self._listen, self._dial = f"{lab.host}:{PORT}", relay

    def split(self, job: Job, *, depth: int) -> Steps:
        message = job.message() | {"pipeline_depth": depth, "data_address": self._listen, "trace": True}
        with self._edge.awake(), self._device.awake():
            self._edge.ask(message)
            self._device.ask(message | self._edge.answer() | {"address": self._dial})
            device, edge = self._device.answer(), self._edge.answer()
        steps = range(job.warmup, job.warmup + job.steps)
        return Steps(
            step_s=statistics.median(differences(device["starts_s"])[job.measured]),
            stages_s=_stages(edge["spans"], steps),
            student=edge["student"],
        )

    def unsplit(self, job: Job) -> str:
        with self._unsplit.awake():
            self._unsplit.ask(job.message())
            student: str = self._unsplit.answer()["student"]
        return student


def _stages(spans: Sequence[Sequence[Any]], steps: range) -> dict[str, float]:
    """Seconds of each stage in a step: the median over the steps."""
    by_step: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for where, stage, step, _, _, duration_s in spans:
        by_step[where, stage][step] += duration_s
    return {
        name: statistics.median(sum(by_step[part][step] for part in parts) for step in steps)
        for name, parts in STAGES.items()
    }


@contextmanager
def _site(lab: LabNetwork, delay_s: float) -> Iterator[_Site]:
    placement = pinned()
    edge_core, device_core = placement.cores or (None, None)
    with ExitStack() as stack:
        relay = stack.enter_context(
            subprocess.Popen(
                [*lab.devices[0], sys.executable, str(RELAY), f"{lab.host}:{PORT}", str(delay_s)],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(relay.kill)
        address = relay.stdout.readline().strip() if relay.stdout else ""
        if not address:
            raise SystemExit(f"The relay ended with {relay.wait()}; see its message above.")
        started = [
            stack.enter_context(Worker(STEP_WORKER, role, None, 1, core, within))
            for role, core, within in (
                ("edge", edge_core, lab.edge),
                ("device", device_core, lab.devices[0]),
                ("unsplit", edge_core, ()),
            )
        ]
        for worker in started:
            worker.about = worker.answer()
            worker.rest()
        yield _Site(*started, lab, address)


if __name__ == "__main__":
    main()
