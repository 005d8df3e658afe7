"""The edge's process: the strategy itself, on a grid whose nodes are processes instead of SuperNodes."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from phases import Phases, patched
from tiny_models import llama_student, llama_teacher
from zygote import fork

from flwr_splitkd import SplitKD
from flwr_splitkd.callbacks import Callback
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.schedulers import Candidate, FixedCut
from flwr_splitkd.store import commits, tensor_file
from flwr_splitkd.store.tensor_file import digest
from flwr_splitkd.strategies import split_kd, turns
from flwr_splitkd.strategies.result import TurnRecord
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.link import Link

_CONNECT_S = 45.0
"""For a worker that starts on a busy machine: turns in another order would end in another student."""

RUN_ID = 77


class ProcessGrid:
    """Starts a device's process for each message, as a SuperNode starts a ClientApp.

    Parameters
    ----------
    job
        The test's: zygote, folder, devices and so on.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._counter = itertools.count()
        self._messages: dict[str, tuple[int, int]] = {}  # process and node by message
        self.run = SimpleNamespace(run_id=RUN_ID)

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._job["devices"] + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        ticket, node_id = TurnTicket.from_content(message.content), message.metadata.dst_node_id
        message_id = f"{os.getpid()}-{next(self._counter)}"
        job = {
            **self._job,
            "run_id": RUN_ID,
            "node_id": node_id,
            "name": f"device-{node_id}",
            "reply": str(self._reply(message_id)),
            "ticket": {
                "session_id": ticket.session_id,
                "token": ticket.token.hex(),
                "address": ticket.address,
                "server_round": ticket.server_round,
                "tied_embeddings": ticket.tied_embeddings,
            },
        }
        folder = Path(self._job["folder"])
        pid = fork(self._job["zygote"], "device", job, folder / f"device-{node_id}.log")
        with (folder / "pids").open("a") as file:
            file.write(f"{pid}\n")
        self._messages[message_id] = pid, node_id
        return [message_id]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        return [reply for message_id in message_ids if (reply := self._pull(message_id))]

    def _pull(self, message_id: str) -> Any:
        pid, node_id = self._messages[message_id]
        path = self._reply(message_id)
        if path.exists():
            said = json.loads(path.read_text())
            source = node_id
        elif _is_alive(pid):
            return None
        else:  # as the SuperLink says in its own name, if a minute later
            said, source = {"error": "the ClientApp has ended"}, 1_000
        del self._messages[message_id]
        metrics = MetricRecord({"num-examples": said.get("num_examples", 0), "train-loss": said.get("loss", 0.0)})
        return SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=message_id, src_node_id=source),
            has_error=lambda: "error" in said,
            error=SimpleNamespace(reason=said.get("error", "")),
            content=RecordDict({"metrics": metrics}),
        )

    def _reply(self, message_id: str) -> Path:
        return Path(self._job["folder"]) / f"reply-{message_id}.json"


class GivenOrder:
    """Rounds in an order that the test names."""

    def __init__(self, orders: Sequence[Sequence[int]]) -> None:
        self._orders = orders

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        return list(self._orders[(server_round - 1) % len(self._orders)])


class Diary(Callback):
    """Writes down when turns end, and when streams are lost and taken up again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "diary.jsonl"
        patched(Link, "lost", lambda link, stream, reason: self._lost(link, stream, reason))
        patched(Link, "attach", lambda link, *_: self.write("attach", link.peer))

    def on_turn(self, turn: TurnRecord) -> None:
        self.write("turn" if turn.outcome else "failed", f"{turn.server_round}/{turn.device} {turn.error}")

    def write(self, event: str, what: str) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"time_s": time.time(), "event": event, "what": what}) + "\n")

    def _lost(self, link: Link, stream: object, reason: str) -> None:
        if link._stream is stream and not link.done:
            self.write("lost", f"{link.peer}: {reason}")


def _message(*, content: RecordDict, message_type: str, dst_node_id: int, ttl: float | None) -> Any:
    """Flower's own can be made in a process of Flower only."""
    metadata = SimpleNamespace(dst_node_id=dst_node_id, message_type=message_type)
    return SimpleNamespace(content=content, metadata=metadata)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main(job: dict[str, Any]) -> None:
    folder, run = Path(job["folder"]), Path(job["run"])
    phases = Phases(folder, "edge", job["phase"])
    patched(commits, "write_tensors", lambda *_, **__: phases.reach("write unit"))
    patched(commits, "write_atomically", lambda *_: phases.reach("write manifest"))
    patched(Link, "send", lambda _link, body, *_: phases.reach(f"send {body.DESCRIPTOR.name}"))
    patched(Link, "receive", lambda _link, expected, *_: phases.reach(f"receive {expected}"))
    patched(
        tensor_file, "_sync", lambda path: phases.reach(f"sync {'manifest' if 'manifest' in path.name else 'other'}")
    )
    split_kd.Message = _message  # type: ignore[assignment,misc]
    turns._PATIENCE_S = _CONNECT_S
    strategy = SplitKD(
        student=llama_student,
        teacher=llama_teacher,
        cut=FixedCut(2),
        selection=GivenOrder(job["orders"]),
        optimizer=OptimizerSettings(learning_rate=1e-2),
        train_embeddings=True,
        max_grad_norm=1.0,
        commit_every_steps=job["commit_every_steps"],
        grace_period_s=job["grace_period_s"],
        step_timeout_s=job["step_timeout_s"],
        connect_timeout_s=_CONNECT_S,
        data_address=f"127.0.0.1:{job['port']}",
        advertised_address=job["advertised_address"],
        run_folder=None if job["resume"] else run,
        resume=run if job["resume"] else None,
        callbacks=[Diary(folder)],
    )
    grid: Any = ProcessGrid(job)
    result = strategy.start(grid, ArrayRecord(llama_student().state_dict()), num_rounds=job["rounds"])
    state = result.arrays.to_torch_state_dict()
    done = {"digest": digest(state), "turns": [turn.error or f"{turn.device}" for turn in result.turns]}
    tensor_file.write_atomically(folder / "result.json", json.dumps(done))
