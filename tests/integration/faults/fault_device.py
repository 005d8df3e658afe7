"""A device's process: takes one turn, or several if its worker is restarted, and writes what came of it."""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from phases import Phases, patched
from tiny_models import batches, llama_student

from flwr_splitkd.clients import SplitKDClient
from flwr_splitkd.clients.job import Identity, Job
from flwr_splitkd.clients.supervisor import supervise
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.store.tensor_file import write_atomically
from flwr_splitkd.wire.link import Link


class WatchedClient(SplitKDClient):
    """A client that stops where the test wants, in whichever process its turn runs."""

    def __init__(self, job: dict[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._job = job

    def take_turn(self, *arguments: Any, **keywords: Any) -> Any:
        torch.set_num_threads(1)
        phases = Phases(Path(self._job["folder"]), self._job["name"], self._job["phase"])
        patched(Link, "send", lambda _link, body, *_: phases.reach(f"send {body.DESCRIPTOR.name}"))
        patched(Link, "receive", lambda _link, expected, *_: phases.reach(f"receive {expected}"))
        phases.reach("before hello")
        return super().take_turn(*arguments, **keywords)


def main(job: dict[str, Any]) -> None:
    ticket = TurnTicket(**{**job["ticket"], "token": bytes.fromhex(job["ticket"]["token"]), "root_certificate": b""})
    identity = Identity(run_id=job["run_id"], node_id=job["node_id"], name=job["name"])
    client = WatchedClient(
        job,
        student=llama_student,
        data=batches(job["node_id"], job["batches"]),
        cache_folder=Path(job["folder"]) / "cache",
        connect_timeout_s=10.0,
    )
    reply: dict[str, Any] = {"pid": os.getpid()}
    try:
        if job["max_restarts"]:
            report = supervise(Job(client, ticket, identity), max_restarts=job["max_restarts"])
        else:
            report = client.take_turn(replace(ticket), identity)
        reply |= {"num_examples": report.num_examples, "loss": report.result.loss}
    except Exception as error:
        traceback.print_exc()
        reply["error"] = f"{type(error).__name__}: {error}"
    write_atomically(Path(job["reply"]), json.dumps(reply))
