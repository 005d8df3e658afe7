"""What a cloud has done since its process began: counted by the service's threads, read by any other."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["REQUESTS", "STAGES", "CloudCounters", "CloudReading", "TaskReading"]

Result = TypeVar("Result")

REQUESTS = ("open", "train", "answer", "step", "end_round", "fetch")
"""What an edge asks for: open a task, the gradient of a device's batch, its loss or an answer without training, a step of the
module, a round's end, and the module's weights."""
STAGES = ("queue", "open", "train", "answer", "step", "commit", "fetch")
"""Where seconds go: in the queue for the one thread that computes, or on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReading:
    """A task at one moment.

    Parameters
    ----------
    requests
        How many, by what was asked for and whether it was ``answered`` or ``failed``.
    stages_s
        Seconds of each of `STAGES`.
    num_tokens
        Labels that counted in training.
    loss
        Mean of the newest batch that trained; None before the first.
    num_steps, num_commits
        Steps of the module, and times that it was made durable.
    next_step
        Steps of the module in its whole life, less those that a run has taken back.
    uncommitted_steps
        Steps that a crash would have the edges send again.
    waiting_gradients
        Gradients that wait for a step; each takes the module's memory.
    """

    requests: Mapping[tuple[str, str], int]
    stages_s: Mapping[str, float]
    num_tokens: int
    loss: float | None
    num_steps: int
    num_commits: int
    next_step: int
    uncommitted_steps: int
    waiting_gradients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudReading:
    """A cloud at one moment. Sums are those since its process began.

    Parameters
    ----------
    tasks
        By name.
    sessions
        How many are open, by task, edge, and whether they ``train`` or ``ask``; every pair that may train is there.
    faults
        What went wrong, by where and kind (`flwr_splitkd.faults`): with a ``stream`` before it was let in or on its way, a
        ``session`` that was cut off, or a ``request`` of a device whose edge goes on.
    received_bytes, sent_bytes
        On the wire, from and to edges.
    num_streams
        Connections, those that have not been let in included.
    """

    tasks: Mapping[str, TaskReading]
    sessions: Mapping[tuple[str, str, str], int]
    faults: Mapping[tuple[str, str], int]
    received_bytes: int
    sent_bytes: int
    num_streams: int


class CloudCounters:
    """Sums by task.

    Parameters
    ----------
    tasks
        Their names.
    clock
        Monotonic seconds.
    """

    def __init__(self, tasks: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._requests = {task: {(name, how): 0 for name in REQUESTS for how in _OUTCOMES} for task in tasks}
        self._stages_s = {task: dict.fromkeys(STAGES, 0.0) for task in self._requests}
        self._tokens: Counter[str] = Counter()
        self._losses: dict[str, float] = {}
        self._faults: Counter[tuple[str, str]] = Counter()

    def request(self, task: str, name: str, *, answered: bool) -> None:
        """Count a request that is over."""
        with self._lock:
            self._requests[task][name, _OUTCOMES[not answered]] += 1

    def trained(self, task: str, loss: float, num_tokens: int) -> None:
        """Count a batch that was trained on."""
        with self._lock:
            self._losses[task] = loss
            self._tokens[task] += num_tokens

    def fault(self, where: str, kind: str) -> None:
        """Count what went wrong."""
        with self._lock:
            self._faults[where, kind] += 1

    def timed(self, task: str, stage: str, job: Callable[[], Result]) -> Callable[[], Result]:
        """The same job with its seconds counted, and those from now until it begins."""
        asked_s = self._clock()

        def counted() -> Result:
            started_s = self._clock()
            self._add(task, "queue", started_s - asked_s)
            try:
                return job()
            finally:
                self._add(task, stage, self._clock() - started_s)

        return counted

    def requests(self, task: str) -> dict[tuple[str, str], int]:
        """By what was asked for, and what came of it."""
        with self._lock:
            return dict(self._requests[task])

    def stages_s(self, task: str) -> dict[str, float]:
        """Seconds of each stage."""
        with self._lock:
            return dict(self._stages_s[task])

    def training(self, task: str) -> tuple[int, float | None]:
        """Labels that counted, and the newest batch's loss."""
        with self._lock:
            return self._tokens[task], self._losses.get(task)

    def faults(self) -> dict[tuple[str, str], int]:
        """By where and kind."""
        with self._lock:
            return dict(self._faults)

    def _add(self, task: str, stage: str, seconds: float) -> None:
        with self._lock:
            self._stages_s[task][stage] += seconds


_OUTCOMES = ("answered", "failed")
