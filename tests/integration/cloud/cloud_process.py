"""A cloud that a test forks, with the place where it is to die."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloud_runs

from flwr_splitkd.store import commits
from flwr_splitkd.tiers.cloud import CloudSetup, CloudTask, open_cloud
from flwr_splitkd.tiers.cloud.served import ServedTask
from flwr_splitkd.wire.link import Link
from tiny_llms import tiny_llm

__all__ = ["main"]


def main(job: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if job["die"]:
        PLACES[job["die"]](job["nth"])
    service = open_cloud(
        CloudSetup(
            llm=partial(tiny_llm, "llama"),
            tasks={name: cloud_runs.settings(name) for name in job["tasks"]},
            edges={name: bytes.fromhex(token) for name, token in job["edges"].items()},
            task_edges={name: frozenset(edges) for name, edges in job["task_edges"].items()},
            state_folder=Path(job["folder"]),
            commit_every_steps=job["commit_every_steps"],
            data_address=f"127.0.0.1:{job['port']}",
            grace_period_s=job["grace_period_s"],
            max_message_bytes=1 << 24,
        )
    )
    print("listening", flush=True)
    stop.wait()
    service.close()


def _dies(owner: Any, name: str, nth: int, *, before: bool) -> None:
    """Have the process killed at the nth call of a function: before it does anything, or when it has done it."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, 1 << 30))

    def counted(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == nth
        if now and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def _after_a_lost_answer(nth: int) -> None:
    """The answer to the nth step does not leave, and the process dies when that step is durable."""
    send, commit = Link.send, ServedTask.commit
    lost: list[int] = []

    def send_some(link: Link, body: Any, tensors: Any = None) -> None:
        if body.DESCRIPTOR.name == "PeftStepped" and body.step == nth - 1:
            lost.append(body.step)
            return
        send(link, body, tensors)

    def commit_and_die(served: ServedTask, *args: Any) -> Any:
        result = commit(served, *args)
        if lost:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Link.send, ServedTask.commit = send_some, commit_and_die  # type: ignore[method-assign]


PLACES: dict[str, Callable[[int], None]] = {
    "within a backward pass": partial(_dies, CloudTask, "_backward", before=False),
    "between answers and step": partial(_dies, CloudTask, "step", before=True),
    "between step and answer": partial(_dies, ServedTask, "step", before=False),
    "before a commit": partial(_dies, ServedTask, "commit", before=True),
    "within a commit": partial(_dies, commits, "write_atomically", before=True),
    "after a commit": partial(_dies, ServedTask, "commit", before=False),
    "after a commit, the answer lost": _after_a_lost_answer,
}
