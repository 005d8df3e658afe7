"""A process of its own for a device's turn, so that what kills it does not kill the ClientApp.

The supervisor (`flwr_splitkd.clients.supervisor`) starts `main` with the number of a file descriptor, one end of a pipe.
What comes first is where to import from, then a `Job`. What goes back are the stream's resume tokens as they come, and
at the end the turn's report or its error. Both ends are the same user's on the same machine, and what travels is what
multiprocessing would send to a process of its own, by the same means.
"""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from flwr_splitkd.clients.job import Job, TurnFailed

if TYPE_CHECKING:
    from flwr_splitkd.tiers.device import TurnReport

__all__ = ["main"]


def main() -> None:
    """Take one turn."""
    pipe = Connection(int(sys.argv[1]))
    sys.path[:] = pipe.recv()
    job: Job = pipe.recv()
    # Nothing more comes; the pipe ends when the supervisor does, in whatever way.
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    pipe.send(_take(job, pipe))


def _take(job: Job, pipe: Connection) -> TurnReport | TurnFailed:
    try:
        return job.client.take_turn(job.ticket, job.identity, token=job.token, on_token=pipe.send)
    except Exception as error:  # the supervisor raises it where the user's code can see it
        return TurnFailed.of(error)


def _end_with(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
