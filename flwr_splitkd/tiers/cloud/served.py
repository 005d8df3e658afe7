"""A task with its life on the disk: steps, commits, and where a run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from flwr_splitkd.errors import ConfigError, ProtocolError
from flwr_splitkd.tiers.cloud.store import TaskStore
from flwr_splitkd.tiers.cloud.task import CloudTask, Key, StepResult
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Durable", "ServedTask"]


class Durable(NamedTuple):
    """A commit, and the steps of each edge that are in it."""

    commit_id: str
    iterations: Mapping[str, int]


@dataclass(slots=True)
class ServedTask:
    """A task with what belongs to its life as a service.

    Parameters
    ----------
    task
        The module.
    store
        Where its state goes.
    commit_every_steps
        Steps after which the state is made durable; what came since is sent again by the edge after a crash.
    edges
        Names of the edges that may use it; empty for all.

    Attributes
    ----------
    iterations
        Steps that each edge has asked for, by its name.
    answers
        Learning rate and gradient norm of the newest of them, by the edge's name.
    uncommitted
        Steps that are not durable yet.
    num_steps, num_commits
        Since this process began.
    """

    task: CloudTask
    store: TaskStore
    commit_every_steps: int = 10
    edges: frozenset[str] = frozenset()
    iterations: dict[str, int] = field(default_factory=dict)
    answers: dict[str, tuple[float, float]] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict, repr=False)
    uncommitted: int = 0
    num_steps: int = 0
    num_commits: int = 0

    def __post_init__(self) -> None:
        """Go on from the disk, if there is something."""
        if self.commit_every_steps < 1:
            raise ConfigError(f"`commit_every_steps` is {self.commit_every_steps}; expected at least 1.")
        self.initial = self.task.state()
        latest = self.store.latest()
        if latest is not None:
            self._load(*latest)

    def restart(self, start: pb.OpenTask, edge: str, tensors: Mapping[str, Tensor]) -> None:
        """Put the task where an edge's run begins; if the run is named, that is kept as the end of its round 0.

        Raises
        ------
        SplitKDError
            If there is no such state; the task is as before.
        """
        if start.start == pb.TASK_START_CONTINUE and not start.run:
            return
        before = self.task.state(), {"iterations": self.iterations, "answers": self.answers}
        try:
            self._begin(start, edge, tensors)
            self.commit(edge, "" if start.start == pb.TASK_START_ROUND else start.run)
        except BaseException:
            self._load(*before)
            raise

    def _begin(self, start: pb.OpenTask, edge: str, tensors: Mapping[str, Tensor]) -> None:
        if start.start == pb.TASK_START_ROUND:
            self._load(*self.store.go_back(edge, start.run, start.server_round))
        elif start.start == pb.TASK_START_FRESH:
            self._load(self.initial, {})
        elif start.start == pb.TASK_START_GIVEN:
            weights = {name: tensor for name, tensor in self.initial.items() if name.startswith("weight/")}
            self._load({**weights, **tensors}, {})
        elif start.start != pb.TASK_START_CONTINUE:
            raise ProtocolError(f"Edge {edge} opens its task with the start {start.start}; expected 1 to 4.")

    def commit(self, edge: str, run: str = "", server_round: int = 0) -> Durable:
        """Make the task's state durable; as that of a round's end, if one is named."""
        done = dict(self.iterations)
        answers = {name: [*answer] for name, answer in self.answers.items()}
        info = {"iterations": done, "answers": answers, "edge": edge, "run": run, "server_round": server_round}
        commit = self.store.commit_round if run else self.store.commit
        commit_id = commit(self.task.state(), info)
        self.uncommitted = 0
        self.num_commits += 1
        return Durable(commit_id, done)

    def step(self, edge: str, keys: Sequence[Key]) -> StepResult:
        """Take a step and count it; one job, because a commit must not come between the two."""
        result = self.task.step(keys)
        self.iterations[edge] = self.iterations.get(edge, 0) + 1
        self.answers[edge] = result.learning_rate, result.grad_norm
        self.uncommitted += 1
        self.num_steps += 1
        return result

    def last_answer(self, edge: str) -> pb.PeftStepped | None:
        """What was said, or would have been, to the newest step of an edge."""
        if edge not in self.answers:
            return None
        learning_rate, grad_norm = self.answers[edge]
        return pb.PeftStepped(step=self.iterations[edge] - 1, learning_rate=learning_rate, grad_norm=grad_norm)

    def _load(self, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        self.task.load_state(state)
        self.iterations = dict(info.get("iterations", {}))
        self.answers = {edge: (rate, norm) for edge, (rate, norm) in info.get("answers", {}).items()}
