"""What split KD buys: a student's quality at equal optimiser steps, against the other ways to train it.

Held-out perplexity of a small language model whose text is divided by module, and accuracy of a small classifier whose
classes are divided among devices. Split KD is the product's own edge and device, over gRPC on loopback, one device after
another at cuts 1, 2, 3; against it the same student trained in one process (same batches: must be equal; shuffled), on
labels alone, and by FedAvg. Then forgetting: each device's own text right after its turn and at the end of the round, and
what the product's options do about it.

Every arm takes the same number of optimiser steps; learning rates are chosen from the same grid on text that is
neither trained on nor quoted. Losing is a finding.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the processes of the pool: each computes with one thread.
os.environ["OMP_NUM_THREADS"] = "1"

from _quality_arms import FOLLOWERS, LEADERS, RATES
from _quality_figures import best_rate
from _quality_runs import Arm, Job, Result, prepare_worker, run_job, train_better_teacher
from _quality_tables import Findings, draw, tables
from _quality_tasks import Scale, TaskKey, load_task
from _report import report
from transformers.utils import logging as transformers_logging

MAX_SEEDS = 100


def main() -> None:
    """Run every arm, print the tables, write the JSON and the figure."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    scale = Scale.quick() if arguments.quick else Scale()
    started_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="quality-") as folder:
            teachers = _teachers(scale, Path(folder))
            with _pool(arguments.processes, Path(folder)) as pool:
                results, better = _run(pool, scale, arguments.seeds)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; nothing was written") from None
    findings = Findings(results, teachers, better)
    about = _about(scale, arguments, time.monotonic() - started_s)
    name = "quality" + (" (quick: a smoke test, these figures mean nothing)" if arguments.quick else "")
    report(
        name,
        findings.rows(),
        tables=tables(findings),
        notes=[*about.values(), *findings.notes()],
        json_path=arguments.json,
        more={"about": about, "scale": asdict(scale), "runs": [asdict(result) for result in results]},
    )
    if arguments.plot:
        draw(findings, arguments.plot)
    if not findings.all_equal:
        raise SystemExit("split training is NOT equal to unsplit training in the same order; see above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--json", type=Path, help="write every run and the rows to this file as well")
    parser.add_argument("--plot", type=Path, help="draw the figures into this PNG (needs matplotlib)")
    parser.add_argument("--seeds", type=int, help="runs of each arm (3)")
    parser.add_argument("--processes", type=int, default=cores, help="runs at a time, one thread each (every core)")
    parser.add_argument("--quick", action="store_true", help="a smoke test in two minutes; its figures mean nothing")
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or (2 if arguments.quick else 3)
    if not 1 <= arguments.seeds <= MAX_SEEDS or arguments.processes < 1:
        parser.error(
            f"--seeds is {arguments.seeds} and --processes {arguments.processes}; expected 1..{MAX_SEEDS} and at least 1"
        )
    if arguments.plot:
        try:
            version("matplotlib")
        except ImportError:
            parser.error("--plot needs matplotlib: pip install 'flwr_splitkd[report]'")
    return arguments


def _teachers(scale: Scale, folder: Path) -> dict[TaskKey, float]:
    """Train the teachers that no cache has, before there are processes that want them; return their figures."""
    figures: dict[TaskKey, float] = {}
    for key in RATES:

        def progress(step: int, steps: int, loss: float, key: str = key) -> None:
            if step == steps or step % 50 == 0:
                _say(f"teacher of {key}: step {step}/{steps}, loss {loss:.2f}")

        task = load_task(key, scale, folder, progress)
        figures[key] = task.figure(task.teacher(), task.heldout)
    return figures


@contextmanager
def _pool(processes: int, folder: Path) -> Iterator[Any]:
    """Processes that end with the block, however it ends."""
    pool = multiprocessing.get_context("spawn").Pool(processes, prepare_worker, (folder,))
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


def _run(pool: Any, scale: Scale, seeds: int) -> tuple[list[Result], float]:
    """Run the arms that try every rate, choose each one's best, run the others; and the better teacher's figure."""
    leaders = [
        Job(arm=arm, rate=rate, seed=seed, scale=scale)
        for arm in LEADERS
        for rate in RATES[arm.task][-scale.rates :]
        for seed in range(seeds)
    ]
    # Their rates are not known yet; what they cost is.
    followers = [replace(arm, compute=min(arm.compute, scale.devices)) for arm in FOLLOWERS]
    left_s = sum(Job(arm=arm, rate=0.0, seed=0, scale=scale).cost for arm in followers) * seeds
    progress = _Progress(len(leaders) + len(followers) * seeds, sum(job.cost for job in leaders) + left_s)
    # Only followers need it: it is trained beside the leaders, unless the cache has it.
    better = pool.apply_async(train_better_teacher, (scale,))
    results = _drain(pool, leaders, progress)
    better_figure = better.get()
    rates = {(arm.task, arm.name): best_rate(_of(results, arm), lower_is_better=arm.task == "lm") for arm in LEADERS}
    jobs = [
        Job(arm=arm, rate=rates[arm.task, str(arm.rate_of)], seed=seed, scale=scale)
        for arm in followers
        for seed in range(seeds)
    ]
    return results + _drain(pool, jobs, progress), better_figure


def _of(results: Sequence[Result], arm: Arm) -> list[Result]:
    return [result for result in results if (result.task, result.arm) == (arm.task, arm.name)]


def _drain(pool: Any, jobs: Sequence[Job], progress: _Progress) -> list[Result]:
    # The longest first, so that no process is left with one at the end.
    results = []
    for job, result in pool.imap_unordered(_labelled, sorted(jobs, key=lambda job: -job.cost)):
        progress.done(job, result)
        results.append(result)
    return sorted(results, key=lambda result: (result.task, result.arm, result.rate, result.seed))


def _labelled(job: Job) -> tuple[Job, Result]:
    return job, run_job(job)


class _Progress:
    """Says what is done, and how long the rest takes at the pace so far."""

    def __init__(self, count: int, cost: float) -> None:
        self._count, self._cost = count, cost
        self._done, self._paid = 0, 0.0
        self._started_s = time.monotonic()

    def done(self, job: Job, result: Result) -> None:
        self._done += 1
        self._paid += job.cost
        left_s = (time.monotonic() - self._started_s) * (self._cost / self._paid - 1.0)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        _say(
            f"[{self._done:3d}/{self._count}] {result.task}, {result.arm}, rate {result.rate:g}, seed {result.seed}: "
            f"validation {result.validation:.1f}, held out {result.heldout:.1f} in {result.wall_s:.0f} s; about {left} left"
        )


def _about(scale: Scale, arguments: argparse.Namespace, wall_s: float) -> dict[str, str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("flwr_splitkd", "torch", "transformers"))
    steps = scale.devices * scale.rounds * scale.turn_steps
    class_steps = scale.devices * scale.rounds * scale.class_turn_steps
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "sizes": f"{scale.devices} devices x {scale.rounds} rounds x {scale.turn_steps} steps = {steps} AdamW steps of "
        f"{scale.batch_size} x {scale.sequence_length} tokens (lm: Llama of 4 layers x {scale.width}); "
        f"x {scale.class_turn_steps} = {class_steps} steps of {scale.class_batch_size} x {scale.class_sequence_length} "
        f"tokens (classification: BERT of 4 layers x {scale.width // 2}, {scale.devices} classes)",
        "teachers": f"teacher of lm: {'a toy' if scale.toy else 'that of the demo app'}, {scale.teacher.num_layers} layers x "
        f"{scale.teacher.hidden_size}, {scale.teacher.steps} steps on text that no device has; the better one: "
        f"{scale.better_teacher.steps} steps; of classification: 4 layers x 128, "
        f"{scale.class_teacher_steps} steps on other blocks of the same packages",
        "machine": f"{versions}, Python {platform.python_version()}, {platform.machine()}, {arguments.processes} processes "
        f"of one thread, {arguments.seeds} seeds (initial weights and order of the text), {wall_s / 60:.0f} min",
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
