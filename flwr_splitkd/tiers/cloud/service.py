"""The cloud as its edges see it: open a task, differentiate, step, commit."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.metadata import version
from typing import TypeVar

import torch
from torch import Tensor

from flwr_splitkd.errors import HandshakeError, PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.store import FolderLock
from flwr_splitkd.tiers.cloud.counters import CloudCounters, CloudReading, TaskReading
from flwr_splitkd.tiers.cloud.llm import CloudLLM
from flwr_splitkd.tiers.cloud.served import Durable, ServedTask
from flwr_splitkd.tiers.cloud.task import Key
from flwr_splitkd.tiers.fair import FairExecutor
from flwr_splitkd.tiers.units import decode_all, decode_one, encode_all
from flwr_splitkd.wire.cloud_server import CloudServer, CloudSession
from flwr_splitkd.wire.codec import encode
from flwr_splitkd.wire.failures import failure_from
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.handshake import clean_name
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["CloudService", "check_edge"]

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_REQUESTS = "Intermediate|PeftStep|EndRound|FetchState"
_OPEN_S = 60.0
_IDLE_S = 30 * 86_400.0
"""Between two rounds an edge may be silent for long; that it is dead shows on its connection."""
_DEVICES = 32
"""Bits of a device's position: positions of several edges stay apart."""
_MOST_PENDING = 4096
"""Gradients of one edge that may wait for a step; each takes the module's memory."""
_MOST_NEW_TOKENS = 4096
"""Of one answer: nobody else computes while it is generated."""


class CloudService:
    """Serves tasks of one LLM to edges until it is closed.

    Every edge has a thread that waits for its messages; all computing is on one other thread, fair between the tasks.

    Parameters
    ----------
    server
        Bound, not yet started; made with `check` of the same tasks, see `open_cloud`.
    llm
        Frozen, with the tasks' modules.
    tasks
        By name.
    edges
        Names of all edges that may come; their order seeds what is drawn for their devices.
    """

    def __init__(
        self,
        server: CloudServer,
        llm: CloudLLM,
        tasks: Mapping[str, ServedTask],
        edges: Collection[str],
        lock: FolderLock | None = None,
    ) -> None:
        self._server, self._llm, self._tasks, self._lock_of_state = server, llm, dict(tasks), lock
        self._positions = {edge: position for position, edge in enumerate(sorted(edges))}
        self._compute = FairExecutor("splitkd-cloud-compute")
        self._counters = CloudCounters(tasks)
        self._lock = threading.Lock()  # guards what follows
        self._open: list[_EdgeSession] = []
        self.address, self.root_certificate = server.address, server.root_certificate
        server.start(self._serve)

    def service_s(self) -> dict[str, float]:
        """Seconds of computing that each task has had so far."""
        return {str(task): seconds for task, seconds in self._compute.service_s().items()}

    def reading(self) -> CloudReading:
        """What it has done so far, and how it is now; for any thread."""
        trainers = [
            (name, edge, "train")
            for name, served in self._tasks.items()
            for edge in self._positions
            if not served.edges or edge in served.edges
        ]
        sessions = dict.fromkeys(trainers, 0)
        with self._lock:
            keys = [one.key for one in self._open]
        for key in keys:
            sessions[key] = sessions.get(key, 0) + 1
        tally = self._server.tally.reading()
        streams = {("stream", kind): count for kind, count in tally.faults.items()}
        return CloudReading(
            tasks={name: self._task_reading(name, served) for name, served in self._tasks.items()},
            sessions=sessions,
            faults=self._counters.faults() | streams,
            received_bytes=tally.received_bytes,
            sent_bytes=tally.sent_bytes,
            num_streams=self._server.num_streams,
        )

    def _task_reading(self, name: str, served: ServedTask) -> TaskReading:
        num_tokens, loss = self._counters.training(name)
        return TaskReading(
            requests=self._counters.requests(name),
            stages_s=self._counters.stages_s(name),
            num_tokens=num_tokens,
            loss=loss,
            num_steps=served.num_steps,
            num_commits=served.num_commits,
            next_step=served.task.next_step,
            uncommitted_steps=served.uncommitted,
            waiting_gradients=len(served.task.pending),
        )

    def close(self) -> None:
        """Tell every edge, make what was trained durable, and end the threads."""
        self._server.stop()
        for name, served in self._tasks.items():
            if served.uncommitted:
                try:
                    self._compute.run(name, partial(served.commit, ""))
                except SplitKDError as error:
                    _log.error("Task %s was not made durable: %s", name, error)
        self._compute.close()
        if self._lock_of_state is not None:
            self._lock_of_state.release()

    def _serve(self, session: CloudSession) -> None:
        served = self._tasks[session.task]
        offset = self._positions[session.edge] << _DEVICES
        one = _EdgeSession(session, served, self._llm, self._compute, self._counters, offset)
        with self._lock:
            before = [other for other in self._open if other.follows_on(one)]
            self._open.append(one)
        try:
            for other in before:  # its last request may still wait for its turn, and its gradients must be gone
                other.ended.wait()
            one.run(self._tell_committed)
        except PeerLostError as error:
            _log.info("Task %s: %s", session.task, error)
            if not session.link.left:  # an edge whose run is over says so
                self._counters.fault("session", fault_of(error))
        except SplitKDError as error:
            _log.warning("Task %s: edge %s is cut off: %s", session.task, session.edge, error)
            self._counters.fault("session", fault_of(error))
        except Exception as error:
            _log.exception("Task %s: edge %s is cut off", session.task, session.edge)
            self._counters.fault("session", fault_of(error))
        finally:
            with self._lock:
                self._open.remove(one)
            one.ended.set()

    def _tell_committed(self, served: ServedTask, durable: Durable) -> None:
        """Every edge of the task may forget what it would have sent again."""
        with self._lock:
            concerned = [one for one in self._open if one.served is served]
        for one in concerned:
            one.tell_committed(durable)


def check_edge(tasks: Mapping[str, ServedTask], hello: pb.CloudHello) -> None:
    """Refuse an edge that asks for a task which it cannot have.

    Raises
    ------
    HandshakeError
        Naming what is wrong.
    """
    served = tasks.get(hello.task)
    if served is None or (served.edges and hello.edge not in served.edges):
        allowed = sorted(name for name, one in tasks.items() if not one.edges or hello.edge in one.edges)
        raise HandshakeError(
            f"The task is {clean_name(hello.task)!r}; expected one of {allowed}. Add it to the cloud's configuration, or "
            "let this edge use it."
        )
    width = served.task.settings.slm_width
    if hello.encoder_width != width:
        raise HandshakeError(
            f"The encoder's output is {hello.encoder_width} wide; expected {width}, as task {hello.task!r} is configured "
            "(`slm_width`)."
        )


class _EdgeSession:
    """One edge's requests, in the order in which they come."""

    def __init__(
        self,
        session: CloudSession,
        served: ServedTask,
        llm: CloudLLM,
        compute: FairExecutor,
        counters: CloudCounters,
        device_offset: int,
    ) -> None:
        self.served, self.ended, self._counters = served, threading.Event(), counters
        self._opened = False
        self._session, self._link, self._llm, self._compute = session, session.link, llm, compute
        self._task, self._offset = served.task, device_offset
        self._reads_only = session.hello.reads_only

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, edge, and what it is open for."""
        return self._session.task, self._session.edge, "ask" if self._reads_only else "train"

    def follows_on(self, other: _EdgeSession) -> bool:
        """Whether both are of one edge and task, and train: then the one that came later takes the place of the other."""
        both_train = not self._reads_only and not other._reads_only
        return both_train and (self._session.edge, self._session.task) == (other._session.edge, other._session.task)

    def run(self, tell_committed: Callable[[ServedTask, Durable], None]) -> None:
        try:
            self._serve(self._link.receive("OpenTask", _OPEN_S), tell_committed)
            while True:
                self._serve(self._link.receive(_REQUESTS, _IDLE_S), tell_committed)
        except BaseException as error:
            self._link.fail(error)
            raise
        finally:
            if not self._reads_only:  # the gradients that wait are then another session's of this edge
                self._task.discard(self._pending())

    def _serve(self, message: WireMessage, tell_committed: Callable[[ServedTask, Durable], None]) -> None:
        """Do what is asked for, and count it."""
        answered = False
        try:
            self._check_right(message)
            answered = self._do(message, tell_committed)
        finally:
            self._counters.request(self._session.task, _asked(message.body), answered=answered)

    def _do(self, message: WireMessage, tell_committed: Callable[[ServedTask, Durable], None]) -> bool:
        """Do what is asked for; whether it was answered, or failed for one device alone."""
        if message.kind == "Intermediate":
            return self._intermediate(message)
        if message.kind == "OpenTask":
            self._open(message)
        elif message.kind == "PeftStep":
            self._step(message.body, tell_committed)
        elif message.kind == "EndRound":
            self._end_round(message.body, tell_committed)
        else:
            self._link.send(pb.TaskState(), encode_all(self._computed("fetch", self._weights)))
        return True

    def _computed(self, stage: str, job: Callable[[], Result]) -> Result:
        """What a job gives on the thread that computes."""
        return self._compute.run(self._session.task, self._counters.timed(self._session.task, stage, job))

    def tell_committed(self, durable: Durable) -> None:
        if not self._opened or self._reads_only:  # it will hear of what is durable in the answer, or has sent nothing
            return
        edge = self._session.edge
        try:
            self._link.send(pb.Committed(commit_id=durable.commit_id, next_step=durable.iterations.get(edge, 0)))
        except SplitKDError as error:
            _log.info("Edge %s did not hear of commit %s: %s", edge, durable.commit_id, error)

    def _pending(self) -> list[Key]:
        """Gradients of this edge that wait for a step."""
        return [key for key in self._task.pending if key[0] >> _DEVICES == self._offset >> _DEVICES]

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._task.state().items() if name.startswith("weight/")}

    def _open(self, message: WireMessage) -> None:
        edge = self._session.edge
        tensors = decode_all(message.tensors)
        self._computed("open", partial(self.served.restart, message.body, edge, tensors))
        opened = pb.TaskOpened(
            next_step=self.served.iterations.get(edge, 0),
            vocab_size=self._llm.vocab_size,
            reference_loss=self._task.settings.reference_loss,
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
            last=self.served.last_answer(edge),
            process_id=os.getpid(),
        )
        self._link.send(opened)
        self._opened = True
        purpose = "to ask" if self._reads_only else "to train"
        _log.info("Edge %s opened task %s %s, at its step %d", edge, self._session.task, purpose, opened.next_step)

    def _check_right(self, message: WireMessage) -> None:
        """Refuse what would change the module to a session that only reads."""
        if self._reads_only and _changes(message.body):
            raise ProtocolError(
                f"{self._link.peer} sent {message.kind} to change the module of task {self._session.task!r}, and its "
                "CloudHello has `reads_only`; expected only questions. Open a session without it to train."
            )

    def _intermediate(self, message: WireMessage) -> bool:
        body: pb.Intermediate = message.body
        if body.device >> _DEVICES:
            raise ProtocolError(f"{self._link.peer} names device {body.device}; expected below {1 << _DEVICES}.")
        failure: Exception | None = None
        try:
            answer, tensors = self._computed(_asked(body), partial(self._answer, body, message))
        except PeerLostError:  # this side is being shut down
            raise
        except Exception as error:  # this device's; the others go on
            if not isinstance(error, SplitKDError):
                _log.exception("Task %s: device %d of %s", self._session.task, body.device, self._link.peer)
            failure = error
            self._counters.fault("request", fault_of(error))
            answer = pb.IntermediateGradient(
                device=body.device, step=body.step, mode=body.mode, failure=failure_from(error)
            )
            tensors = {}
        self._link.send(answer, {name: encode(tensor) for name, tensor in tensors.items()})
        return failure is None

    def _answer(self, body: pb.Intermediate, message: WireMessage) -> tuple[pb.IntermediateGradient, dict[str, Tensor]]:
        answer = pb.IntermediateGradient(device=body.device, step=body.step, mode=body.mode)
        started_s = time.monotonic()
        try:
            return answer, self._tensors(body, message, answer)
        finally:
            answer.compute_s = time.monotonic() - started_s

    def _tensors(
        self, body: pb.Intermediate, message: WireMessage, answer: pb.IntermediateGradient
    ) -> dict[str, Tensor]:
        hidden, mask = (decode_one(message, name) for name in ("hidden", "mask"))
        tensors: dict[str, Tensor] = {}
        if body.mode not in (pb.MODE_TRAIN, pb.MODE_EVALUATE):
            raise ProtocolError(f"An Intermediate has mode {body.mode}; expected to train or to evaluate.")
        if body.mode == pb.MODE_TRAIN:
            if len(self._pending()) >= _MOST_PENDING:
                raise ProtocolError(
                    f"{_MOST_PENDING} gradients of {self._link.peer} wait for a step; expected fewer. Name them in one, or end "
                    "the round."
                )
            done = self._task.differentiate(
                hidden,
                mask,
                decode_one(message, "labels"),
                key=(self._offset | body.device, body.step),
                reference=decode_all(message.tensors, "reference/") or None,
            )
            answer.loss, answer.num_tokens = done.loss, done.num_tokens
            if done.reference_loss is not None:
                answer.reference_loss = done.reference_loss
            self._counters.trained(self._session.task, done.loss, done.num_tokens)
            tensors["gradient"] = done.gradient
            return tensors
        if "labels" in message.tensors:
            answer.loss, answer.num_tokens = self._task.evaluate(hidden, mask, decode_one(message, "labels"))
        if body.max_new_tokens > _MOST_NEW_TOKENS:
            raise ProtocolError(f"`max_new_tokens` is {body.max_new_tokens}; expected at most {_MOST_NEW_TOKENS}.")
        if body.max_new_tokens:
            tensors["tokens"] = self._task.generate(hidden, mask, body.max_new_tokens)
        return tensors

    def _step(self, body: pb.PeftStep, tell_committed: Callable[[ServedTask, Durable], None]) -> None:
        served, edge = self.served, self._session.edge
        expected = served.iterations.get(edge, 0)
        if body.step != expected:
            raise ProtocolError(
                f"{self._link.peer} asks for step {body.step}; expected {expected}. Nothing was applied."
            )
        keys = [(self._offset | one.device, one.step) for one in body.contributions]
        result = self._computed("step", partial(served.step, edge, keys))
        self._link.send(pb.PeftStepped(step=body.step, learning_rate=result.learning_rate, grad_norm=result.grad_norm))
        if served.uncommitted >= served.commit_every_steps:
            tell_committed(served, self._computed("commit", partial(served.commit, edge)))

    def _end_round(self, body: pb.EndRound, tell_committed: Callable[[ServedTask, Durable], None]) -> None:
        edge = self._session.edge
        if not body.run or not body.server_round:
            raise ProtocolError(
                f"{self._link.peer} ends round {body.server_round} of run {clean_name(body.run)!r}; expected a name, and a "
                "round of at least 1."
            )
        durable = self._computed("commit", partial(self._keep_round, body))
        done = durable.iterations.get(edge, 0)
        self._link.send(pb.Committed(commit_id=durable.commit_id, next_step=done, server_round=body.server_round))
        tell_committed(self.served, durable)

    def _keep_round(self, body: pb.EndRound) -> Durable:
        # What came too late for the round's last step is in no step any more, and a device that starts again from its backup
        # comes with the same numbers.
        self._task.discard(self._pending())
        return self.served.commit(self._session.edge, body.run, body.server_round)


def _asked(body: object) -> str:
    """What a request is counted as, one of `REQUESTS`."""
    if isinstance(body, pb.Intermediate):
        return "train" if body.mode == pb.MODE_TRAIN else "answer"
    kinds = {pb.OpenTask: "open", pb.PeftStep: "step", pb.EndRound: "end_round"}
    return next((name for kind, name in kinds.items() if isinstance(body, kind)), "fetch")


def _changes(body: object) -> bool:
    """Whether a request changes the task's module, or prepares it."""
    if isinstance(body, pb.OpenTask):
        return body.start != pb.TASK_START_CONTINUE or bool(body.run)
    if isinstance(body, pb.Intermediate):
        return body.mode != pb.MODE_EVALUATE
    return isinstance(body, pb.PeftStep | pb.EndRound)
