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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from flwr_splitkd import errors
from flwr_splitkd.errors import SplitKDError

if TYPE_CHECKING:
    from flwr_splitkd.clients.split_kd import Identity, SplitKDClient
    from flwr_splitkd.records import TurnTicket
    from flwr_splitkd.tiers.device import TurnReport

__all__ = ["Job", "TurnFailed", "main"]


@dataclass(frozen=True, slots=True)
class Job:
    """A turn to take.

    Parameters
    ----------
    client
        With the student's builder and the data.
    ticket, identity
        Of the turn and the device.
    token
        Opens the session in place of the ticket's own, if that is used; else empty.
    """

    client: SplitKDClient
    ticket: TurnTicket
    identity: Identity
    token: bytes


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """Why a turn came to nothing: an error of `flwr_splitkd.errors` by name, with its message."""

    kind: str
    message: str

    def to_error(self) -> SplitKDError:
        """The error, as if it had been raised here."""
        return getattr(errors, self.kind, SplitKDError)(self.message)


def take(job: Job, pipe: Connection) -> TurnReport | TurnFailed:
    """Take the turn."""
    try:
        return job.client.take_turn(job.ticket, job.identity, token=job.token, on_token=pipe.send)
    except SplitKDError as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
        return TurnFailed(known, str(error))
    except Exception as error:
        return TurnFailed("SplitKDError", f"{type(error).__name__}: {error}")


def main() -> None:
    """Take one turn."""
    pipe = Connection(int(sys.argv[1]))
    sys.path[:] = pipe.recv()
    job: Job = pipe.recv()
    # Nothing more comes; the pipe ends when the supervisor does, in whatever way.
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    pipe.send(take(job, pipe))


def _end_with(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
