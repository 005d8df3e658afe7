"""Three ways to train the same student: the product's split turns, one process that has all the text, and FedAvg.

All take the same optimiser with the same schedule and the same bound on the gradient norm, and start from the same
weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from _quality_tasks import Batch, Task
from torch import Tensor, nn

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.models import HeadTap, build_skeleton, find_head, fingerprint
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device import OWN_MOMENTS, DeviceData, run_turn
from flwr_splitkd.tiers.edge import EdgeService, EdgeSetup, HandoverName, TurnSettings
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, OptimizerSettings, set_learning_rate
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Recipe", "Turn", "averaged", "fedavg", "split_turns", "unsplit"]

# The demo app's.
MAX_GRAD_NORM = 1.0
TEMPERATURE = 1.0
RUN_ID = 1
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What decides a student's weights beside its text.

    Parameters
    ----------
    learning_rate, schedule
        Base rate, and the factor on it by optimiser step.
    kd_ratio
        Weight of the distillation term; at 0 there is no teacher.
    handover
        Of the optimiser's moments, from turn to turn.
    seed
        Of the initial weights; orders of text are the caller's.
    """

    learning_rate: float
    schedule: LearningRateSchedule
    kd_ratio: float
    handover: HandoverName
    seed: int

    @property
    def optimizer(self) -> OptimizerSettings:
        """AdamW with the demo app's weight decay."""
        return OptimizerSettings(learning_rate=self.learning_rate, weight_decay=0.01)

    @property
    def loss(self) -> DistillationLoss:
        """CE + KL."""
        return DistillationLoss(temperature=TEMPERATURE, kd_ratio=self.kd_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One device's turn: at which cut, on which batches."""

    server_round: int
    device: int
    cut: int
    batches: Sequence[Batch]


AfterTurn = Callable[[Turn, nn.Module], None]


def split_turns(
    task: Task, recipe: Recipe, turns: Iterable[Turn], folder: Path, after_turn: AfterTurn
) -> dict[str, Tensor]:
    """Take turns one after another through the product's edge and device, over gRPC on loopback.

    Returns
    -------
    dict of str to Tensor
        The student's weights.
    """

    def student() -> nn.Module:
        return task.student(recipe.seed)

    with _edge(task, recipe, student, folder / "commits") as edge:
        for turn in turns:
            _take(edge, student, turn, folder / f"device-{turn.device}")
            after_turn(turn, edge.student.model)
        return edge.student.model.state_dict()


def unsplit(task: Task, recipe: Recipe, turns: Iterable[Turn], after_turn: AfterTurn) -> dict[str, Tensor]:
    """Take the same steps on whole models in this process, with torch's own clipping."""
    student, step = task.student(recipe.seed), 0
    steps = _UnsplitSteps(task, recipe, student)
    for turn in turns:
        step = steps.take(turn.batches, step)
        after_turn(turn, student)
    return student.state_dict()


def fedavg(task: Task, recipe: Recipe, rounds: Iterable[Sequence[Turn]], after_turn: AfterTurn) -> dict[str, Tensor]:
    """Let each device of a round train the whole student from the same weights, and average by number of labels.

    The devices of a round share their step numbers; each starts it with new moments, as in Flower's FedAvg, where an
    optimiser lives as long as a message.
    """
    student, step = task.student(recipe.seed), 0
    for turns in rounds:
        states, weights, ended = [], [], step
        for turn in turns:
            local = copy.deepcopy(student)
            ended = _UnsplitSteps(task, recipe, local).take(turn.batches, step)
            states.append(local.state_dict())
            weights.append(sum(int((batch["labels"] != -100).sum()) for batch in turn.batches))
        student.load_state_dict(averaged(states, weights))
        step = ended
        after_turn(turns[-1], student)
    return student.state_dict()


def averaged(states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of every tensor."""
    total = sum(weights)
    return {
        name: sum(state[name] * (weight / total) for state, weight in zip(states, weights, strict=True))  # type: ignore[misc]
        for name in states[0]
    }


class _UnsplitSteps:
    """A whole student, a whole teacher and an optimiser."""

    def __init__(self, task: Task, recipe: Recipe, student: nn.Module) -> None:
        self._task, self._recipe, self._student = task, recipe, student
        self._loss, self._optimizer = recipe.loss, recipe.optimizer.build(student.parameters())
        self._teacher = _teacher(task) if recipe.kd_ratio else None

    def take(self, batches: Iterable[Batch], step: int) -> int:
        """Take an optimiser step for each batch; return the number of the next step."""
        self._student.train()
        for batch in batches:
            self._loss_of(batch).backward()
            nn.utils.clip_grad_norm_(self._student.parameters(), MAX_GRAD_NORM)
            set_learning_rate(self._optimizer, self._recipe.learning_rate * self._recipe.schedule(step))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            step += 1
        return step

    def _loss_of(self, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if self._task.kind == "classification":
            logits, teacher_logits = self._student(**inputs).logits, None
            if self._teacher is not None:
                with torch.no_grad():
                    teacher_logits = self._teacher(**inputs).logits
            return self._loss.from_logits(logits, teacher_logits, batch["labels"]).loss
        labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=self._loss.ignore_index)
        with HeadTap(self._student) as tap:
            self._student(**inputs)
        teacher_hidden, teacher_head = None, None
        if self._teacher is not None:
            with torch.no_grad(), HeadTap(self._teacher) as teacher_tap:
                self._teacher(**inputs)
            teacher_hidden, teacher_head = teacher_tap.hidden.flatten(0, 1), find_head(self._teacher)
        hidden, head = tap.hidden.flatten(0, 1), find_head(self._student)
        return self._loss.from_hidden(hidden, head, teacher_hidden, teacher_head, labels.flatten()).loss


def _teacher(task: Task) -> nn.Module:
    return task.teacher().eval().requires_grad_(False)


@contextmanager
def _edge(task: Task, recipe: Recipe, student: Callable[[], nn.Module], commits: Path) -> Iterator[EdgeService]:
    setup = EdgeSetup(
        student=student,
        teacher=task.teacher,
        loss=recipe.loss,
        task=task.kind,
        tied_embeddings="refuse",
        train_embeddings=True,
        blocks=(),
        optimizer=recipe.optimizer,
        optimizer_handover=recipe.handover,
        turn=TurnSettings(max_grad_norm=MAX_GRAD_NORM, lr_schedule=recipe.schedule, step_timeout_s=TIMEOUT_S),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
    )
    edge = setup.open(setup.build_student(), commits, ticket_lifetime_s=TIMEOUT_S)
    try:
        yield edge
    finally:
        edge.close()


def _take(edge: EdgeService, student: Callable[[], nn.Module], turn: Turn, cache: Path) -> None:
    """Serve one turn, with its device in a thread."""
    session = edge.expect(run_id=RUN_ID, node_id=turn.device, server_round=turn.server_round)
    ticket = session.ticket
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _device(edge.server.address, ticket.session_id, ticket.token, student, turn, cache)
        except BaseException as error:
            failures.append(error)

    device = threading.Thread(target=work, daemon=True)
    device.start()
    with edge.server.changed:
        edge.server.changed.wait_for(lambda: session.connected or bool(failures), TIMEOUT_S)
    if session.link is None:
        raise RuntimeError(f"Device {turn.device} did not connect within {TIMEOUT_S:g} s: {failures}")
    edge.serve(session, mode="train", cut=turn.cut, local_epochs=1, info={})
    device.join(TIMEOUT_S)
    if failures:
        raise failures[0]


def _device(
    address: str, session_id: str, token: bytes, student: Callable[[], nn.Module], turn: Turn, folder: Path
) -> None:
    model = build_skeleton(student)
    layout = find_layout(model)
    cache = DeviceCache(folder)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=session_id,
        token=token,
        run_id=RUN_ID,
        node_id=turn.device,
        server_round=turn.server_round,
        student=fingerprint_to_wire(fingerprint(model, layout)),
        codecs=supported_codecs(),
    )
    for unit, version in cache.versions().items():
        if not unit.startswith(OWN_MOMENTS):
            hello.cached_units.add(unit=unit, version=version)
    with connect(address, hello) as link:
        run_turn(
            link,
            model=model,
            layout=layout,
            data=DeviceData(turn.batches),
            cache=cache,
            compute_device=torch.device("cpu"),
            begin_timeout_s=TIMEOUT_S,
            step_timeout_s=TIMEOUT_S,
        )
