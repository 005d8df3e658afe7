"""Start the processes of the split-step benchmarks, let them take steps, read their clocks. Torch-free."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

__all__ = [
    "STEP_WORKER",
    "Job",
    "Placement",
    "Processes",
    "SplitSteps",
    "Tensors",
    "UnsplitSteps",
    "Worker",
    "differences",
    "pinned",
    "quartile_distance",
    "start",
    "workers",
]

_UP = ("TeacherData", "Forward")

STEP_WORKER = Path(__file__).with_name("_step_worker.py")

Event = tuple[str, str, float, float]
Tensors = dict[str, tuple[list[int], str]]
"""Shape and dtype of each tensor of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the processes run.

    Parameters
    ----------
    edge_threads, device_threads
        Torch's threads. The unsplit process has as many as the edge.
    cores
        One core for the edge and the unsplit process, one for the device; None leaves both to the system.
    wait_policy
        ``OMP_WAIT_POLICY`` of all three; None leaves it unset.
    """

    edge_threads: int
    device_threads: int
    cores: tuple[int, int] | None = None
    wait_policy: str | None = None


def pinned() -> Placement:
    """Return one thread in each process, each process on a core of its own.

    Raises
    ------
    SystemExit
        If this machine has one core.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit(f"This process may use the cores {cores}; expected at least 2, one for each side.")
    return Placement(edge_threads=1, device_threads=1, cores=(cores[0], cores[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to measure.

    Parameters
    ----------
    cut
        Blocks on the device; the unsplit process ignores it.
    max_grad_norm
        Bound of the global gradient norm, or None.
    warmup, steps
        Steps left out at the start, and steps measured after them.
    batch_size
        Sequences of a step; None for the demo's.
    num_microbatches
        Parts into which a step's batch is divided; they overlap where the step is split. A divisor of `batch_size`.
    pipeline_depth
        Micro-batches under way at once; None for what the package chooses.
    """

    cut: int
    max_grad_norm: float | None = None
    warmup: int
    steps: int
    batch_size: int | None = None
    num_microbatches: int = 1
    pipeline_depth: int | None = None

    def message(self) -> dict[str, Any]:
        """Return the job as the processes read it."""
        # One step more than is measured: a step lasts until the next one begins.
        return {
            "cut": self.cut,
            "max_grad_norm": self.max_grad_norm,
            "steps": self.warmup + self.steps + 1,
            "batch_size": self.batch_size,
            "num_microbatches": self.num_microbatches,
            "pipeline_depth": self.pipeline_depth,
        }

    @property
    def measured(self) -> slice:
        """Which of all steps are measured."""
        return slice(self.warmup, self.warmup + self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsplitSteps:
    """Seconds of each measured step, the digest of the student at the end, and the loss of every step where it is known."""

    step_s: list[float]
    student: str
    losses: list[float]

    @property
    def median_s(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.step_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSteps(UnsplitSteps):
    """The same of split steps, from one batch's departure at the device to the next, and where the time went.

    The three parts are empty where micro-batches overlap: then they do not add up to the step.

    Parameters
    ----------
    device_s
        When the device does not wait: backward pass, optimiser step, forward pass.
    edge_s
        From a message's arrival at the computing thread to its answer: forward pass, loss, backward pass. The
        edge's optimiser step comes after the answer, while the device computes.
    exchange_s
        What the device waited beyond that: framing, gRPC, threads, both ways.
    up, down
        Tensors of a step.
    """

    device_s: list[float]
    edge_s: list[float]
    exchange_s: list[float]
    up: Tensors
    down: Tensors


class Processes:
    """An edge, a device and an unsplit process, alive until the ``with`` block of `start` ends."""

    def __init__(self, edge: Worker, device: Worker, unsplit: Worker) -> None:
        self._edge, self._device, self._unsplit = edge, device, unsplit
        batch = f"{edge.about['batch_size']} x {edge.about['sequence_length']} tokens"
        self.about = f"torch {edge.about['torch']}, batch {batch}"
        self.has_microbatches: bool = edge.about["has_microbatches"]

    def split(self, job: Job) -> SplitSteps:
        """Take steps in a turn of the edge and the device.

        Raises
        ------
        SystemExit
            If the job has micro-batches and the package does not know them.
        """
        if job.num_microbatches > 1 and not self.has_microbatches:
            raise SystemExit(
                f"`num_microbatches` is {job.num_microbatches}; expected 1: this package's TurnSettings has no such setting."
            )
        with self._edge.awake(), self._device.awake():
            self._edge.ask(job.message())
            self._device.ask(job.message() | self._edge.answer())
            device, edge = self._device.answer(), self._edge.answer()
        step_s = differences(device["starts_s"])[job.measured]
        device_s: list[float] = []
        edge_s: list[float] = []
        exchange_s: list[float] = []
        if job.num_microbatches == 1:
            waiting_s = _between(device["events"], "send", "receive")[job.measured]
            edge_s = _between(edge["events"], "receive", "send")[job.measured]
            device_s = [step - waiting for step, waiting in zip(step_s, waiting_s, strict=True)]
            exchange_s = [waiting - answering for waiting, answering in zip(waiting_s, edge_s, strict=True)]
        return SplitSteps(
            step_s=step_s,
            student=edge["student"],
            losses=[],
            device_s=device_s,
            edge_s=edge_s,
            exchange_s=exchange_s,
            # What the teacher needs may travel in messages of its own, ahead of the step.
            up={f"{kind}/{name}": t for kind in _UP for name, t in device["tensors"].get(kind, {}).items()},
            down=edge["tensors"]["Backward"],
        )

    def unsplit(self, job: Job) -> UnsplitSteps:
        """Take the same steps in one process."""
        with self._unsplit.awake():
            self._unsplit.ask(job.message())
            answer = self._unsplit.answer()
        step_s = differences(answer["starts_s"])[job.measured]
        return UnsplitSteps(step_s=step_s, student=answer["student"], losses=answer["losses"])


@contextmanager
def start(placement: Placement) -> Iterator[Processes]:
    """Start the three processes and wait until they have imported everything."""
    with workers(placement, STEP_WORKER, ("edge", "device", "unsplit")) as (edge, device, unsplit):
        yield Processes(edge, device, unsplit)


@contextmanager
def workers(placement: Placement, script: Path, roles: Sequence[str]) -> Iterator[list[Worker]]:
    """Start a process of `script` for each role; the one called "device" has a place of its own."""
    edge_core, device_core = placement.cores or (None, None)
    with ExitStack() as stack:
        started = []
        for role in roles:
            on_device = role == "device"
            threads = placement.device_threads if on_device else placement.edge_threads
            worker = Worker(script, role, placement.wait_policy, threads, device_core if on_device else edge_core)
            started.append(stack.enter_context(worker))
        for worker in started:
            worker.about = worker.answer()
            worker.rest()
        yield started


def quartile_distance(values: Sequence[float]) -> float:
    """Return quartile 3 - quartile 1."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


class Worker:
    """A process that does not run at all unless it is `awake`: OpenMP's idle threads may spin for minutes."""

    def __init__(
        self,
        script: Path,
        role: str,
        wait_policy: str | None,
        threads: int,
        core: int | None,
        within: Sequence[str] = (),
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("OMP_WAIT_POLICY", None)
        if wait_policy is not None:
            environment["OMP_WAIT_POLICY"] = wait_policy
        self.about: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [*within, sys.executable, str(script), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._stdin, self._stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        if core is not None:
            # Long before torch and gRPC start threads, which inherit it.
            os.sched_setaffinity(self._process.pid, {core})

    def __enter__(self) -> Worker:
        """End with the ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process."""
        with self._process:
            self._process.kill()  # SIGTERM would wait for a stopped process to be continued

    def ask(self, job: dict[str, Any]) -> None:
        """Send a job."""
        print(json.dumps(job), file=self._stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        line = self._stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}; see its message above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rest(self) -> None:
        """Stop until it is `awake`."""
        self._process.send_signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside the ``with`` block."""
        self._process.send_signal(signal.SIGCONT)
        yield
        self.rest()


def differences(times_s: Sequence[float]) -> list[float]:
    """Return the distance of each time from the one before."""
    return [later - earlier for earlier, later in pairwise(times_s)]


def _between(events: Sequence[Event], begin: str, end: str) -> list[float]:
    """Seconds of each step from the start of `begin` ("send") or its end ("receive") to the end of `end`.

    A step with clipping has two such spans, which are added.
    """
    steps: list[float] = []
    begun_s: float | None = None
    for operation, kind, start_s, end_s in events:
        if operation == begin and kind in ("Forward", "GradientNorms"):
            begun_s = start_s if begin == "send" else end_s
            if kind == "Forward":
                steps.append(0.0)
        elif operation == end and begun_s is not None:
            steps[-1] += end_s - begun_s
            begun_s = None
    return steps
