"""One training run of the quality benchmark: an arm, a learning rate and a seed, from text to figures."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _quality_tasks import Scale, Task, TaskKey, load_task
from _quality_training import Recipe, Turn, fedavg, split_turns, unsplit
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from flwr_splitkd.tiers.edge import HandoverName
from flwr_splitkd.tiers.optimizer import warmup_schedule

__all__ = ["KD_RATIO", "Arm", "Job", "Result", "prepare_worker", "run_job", "train_better_teacher"]

# The demo app's.
KD_RATIO = 0.9
WARMUP_STEPS = 10
CUTS = (1, 2, 3)
CURVE_POINTS = 4
# Milliseconds of a step on one core, with and without a teacher: for the remaining time only.
STEP_MS = {"lm": (54, 34), "classification": (27, 19)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to train the student.

    Parameters
    ----------
    task
        On which task.
    name
        For the tables.
    method
        Split turns; the same batches in the same order on the whole model; batches drawn from all devices' text; or
        FedAvg of the whole student.
    kd_ratio, handover
        As in the product.
    turn_length
        Factor on the steps of a turn; the number of rounds shrinks by it.
    random_order
        Draw the order of the devices anew in each round.
    rate_factor, decay
        Factor on the learning rate, and whether it then falls linearly to 0.
    better_teacher
        Learn from the teacher that was trained longer.
    iid
        Deal the text to the devices whatever it is about.
    compute
        Factor on the steps of every device (of FedAvg's, which work at the same time).
    rate_of
        The arm whose best learning rate this one takes; None to try the whole grid.
    """

    task: TaskKey
    name: str
    method: Literal["split", "same order", "shuffled", "fedavg"] = "split"
    kd_ratio: float = KD_RATIO
    handover: HandoverName = "full"
    turn_length: float = 1.0
    random_order: bool = False
    rate_factor: float = 1.0
    decay: bool = False
    better_teacher: bool = False
    iid: bool = False
    compute: int = 1
    rate_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    arm: Arm
    rate: float
    seed: int
    scale: Scale

    @property
    def cost(self) -> float:
        """Seconds that it takes, roughly."""
        scale = self.scale
        steps = scale.turn_steps if self.arm.task == "lm" else scale.class_turn_steps
        step_ms = STEP_MS[self.arm.task][0 if self.arm.kd_ratio else 1]
        return 1e-3 * step_ms * steps * scale.rounds * scale.devices * self.arm.compute + 1.0


@dataclass(kw_only=True)
class Result:
    """What came of a job.

    Parameters
    ----------
    validation, heldout
        Perplexity or accuracy at the end.
    own
        The same on each device's own text.
    curve
        (optimiser steps, held-out figure) on the way.
    order, after_turn
        Of the last round: the devices in their order, and after each of their turns the figure on every device's own
        text, by device. Empty where there are no turns.
    equal
        For the same order unsplit: whether every tensor equals the split student's.
    """

    task: str
    arm: str
    rate: float
    seed: int
    validation: float = 0.0
    heldout: float = 0.0
    own: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    after_turn: list[list[float]] = field(default_factory=list)
    equal: bool | None = None
    steps: int = 0
    wall_s: float = 0.0


_folder = Path()
_tasks: dict[str, Task] = {}


def prepare_worker(folder: Path) -> None:
    """Set a process of the pool up: one thread, no progress bars; Ctrl-C is the parent's to handle."""
    global _folder
    _folder = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def run_job(job: Job) -> Result:
    """Train and measure."""
    key = job.arm.task
    if key not in _tasks:
        _tasks[key] = load_task(key, job.scale, _folder)
    task = _tasks[key]
    if job.arm.better_teacher and task.better_teacher is not None:
        task = replace(task, teacher=task.better_teacher)
    return _Run(job, task).result()


def train_better_teacher(scale: Scale) -> float:
    """Put the language model's better teacher where the jobs find it; return its held-out perplexity."""
    task = load_task("lm", scale, _folder)
    return task.figure(task.better_teacher(), task.heldout) if task.better_teacher else 0.0


class _Run:
    def __init__(self, job: Job, task: Task) -> None:
        self._job, self._arm, self._task = job, job.arm, task
        self._rounds = max(1, round(job.scale.rounds / job.arm.turn_length))
        self._turn_steps = job.scale.rounds * task.turn_steps // self._rounds * job.arm.compute
        self._result = Result(task=task.key, arm=job.arm.name, rate=job.rate, seed=job.seed)

    def result(self) -> Result:
        started_s = time.monotonic()
        weights = self._train()
        result, task = self._result, self._task
        result.wall_s = time.monotonic() - started_s
        student = task.student(self._job.seed)
        student.load_state_dict(weights)
        result.validation = task.figure(student, task.validation)
        result.heldout = task.figure(student, task.heldout)
        result.own = result.after_turn[-1] if result.after_turn else self._own(student)
        self._keep_or_compare(weights)
        return result

    def _train(self) -> dict[str, Tensor]:
        arm, devices = self._arm, len(self._task.train)
        total = self._rounds * self._turn_steps * (1 if arm.method == "fedavg" else devices)
        kind = "linear" if arm.decay else "constant_with_warmup"
        recipe = Recipe(
            learning_rate=self._job.rate * arm.rate_factor,
            schedule=warmup_schedule(kind, num_warmup_steps=WARMUP_STEPS, num_training_steps=total),
            kd_ratio=arm.kd_ratio,
            handover=arm.handover,
            seed=self._job.seed,
        )
        if arm.method == "fedavg":
            return fedavg(self._task, recipe, self._by_round(), self._after_turn)
        turns = self._shuffled() if arm.method == "shuffled" else (t for turns in self._by_round() for t in turns)
        if arm.method == "split":
            with tempfile.TemporaryDirectory(dir=_folder) as folder:
                return split_turns(self._task, recipe, turns, Path(folder), self._after_turn)
        return unsplit(self._task, recipe, turns, self._after_turn)

    def _by_round(self) -> Iterator[list[Turn]]:
        text = self._task.train_iid if self._arm.iid else self._task.train
        for server_round in range(1, self._rounds + 1):
            order = list(range(len(text)))
            if self._arm.random_order:
                order = np.random.default_rng([self._job.seed, server_round]).permutation(len(text)).tolist()
            yield [
                Turn(
                    server_round=server_round,
                    device=device,
                    cut=CUTS[device % len(CUTS)],
                    batches=self._batches(device, server_round),
                )
                for device in order
            ]

    def _batches(self, device: int, server_round: int) -> list[dict[str, Tensor]]:
        text = (self._task.train_iid if self._arm.iid else self._task.train)[device]
        seed = (self._job.seed * 1000 + server_round) * 100 + device
        batches: list[dict[str, Tensor]] = []
        while len(batches) < self._turn_steps:  # a turn may be longer than the device's text
            batches += self._task.loader(text, seed + 1_000_000 * len(batches), self._turn_steps - len(batches))
        return batches

    def _shuffled(self) -> Iterator[Turn]:
        """As many batches from all devices' text, in pieces as long as a round."""
        task, steps = self._task, self._turn_steps * len(self._task.train)
        batches: list[dict[str, Tensor]] = []
        while len(batches) < steps * self._rounds:
            batches += task.loader(task.all_text, self._job.seed + len(batches), steps * self._rounds - len(batches))
        for index in range(self._rounds):
            piece = batches[index * steps : (index + 1) * steps]
            yield Turn(server_round=index + 1, device=-1, cut=0, batches=piece)

    def _after_turn(self, turn: Turn, student: nn.Module) -> None:
        result, devices = self._result, len(self._task.train)
        result.steps += len(turn.batches) * (devices if self._arm.method == "fedavg" else 1)
        per_round = self._turn_steps * devices
        if result.steps % (per_round * max(1, self._rounds // CURVE_POINTS)) == 0:
            result.curve.append((result.steps, self._task.figure(student, self._task.heldout)))
        if turn.server_round == self._rounds and self._arm.method == "split":
            result.order.append(turn.device)
            result.after_turn.append(self._own(student))

    def _own(self, student: nn.Module) -> list[float]:
        return [self._task.figure(student, samples) for samples in self._task.own]

    def _keep_or_compare(self, weights: dict[str, Tensor]) -> None:
        """The same order unsplit loads what the split run kept: equal kd_ratio, rate and seed."""
        arm, job = self._arm, self._job
        path = _folder / f"{arm.task}-{arm.kd_ratio}-{job.rate}-{job.seed}.safetensors"
        if arm.method == "same order":
            split = load_file(path)
            self._result.equal = set(split) == set(weights) and all(
                torch.equal(tensor, split[name]) for name, tensor in weights.items()
            )
        elif arm.method == "split" and arm.rate_of is None:
            save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, path)
