"""What a supervisor sends to its worker process, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flwr_splitkd import errors
from flwr_splitkd.errors import SplitKDError

if TYPE_CHECKING:
    from flwr_splitkd.records import TurnTicket
    from flwr_splitkd.tiers.device import TurnReport

__all__ = ["Identity", "Job", "TurnFailed", "TurnTaker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who takes a turn: Flower's identifiers of run and node, and the device's own name."""

    run_id: int
    node_id: int
    name: str


class TurnTaker(Protocol):
    """What takes a turn in the process that it is called in; `SplitKDClient` does."""

    def take_turn(
        self,
        ticket: TurnTicket,
        identity: Identity,
        *,
        token: bytes = b"",
        on_token: Callable[[bytes], None] | None = None,
    ) -> TurnReport:
        """Take a turn; `token` opens its session if it is not empty, else the ticket does."""


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

    client: TurnTaker
    ticket: TurnTicket
    identity: Identity
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """Why a turn came to nothing: an error of `flwr_splitkd.errors` by name, with its message."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> TurnFailed:
        """Describe an error; one of another kind becomes a `SplitKDError`."""
        if not isinstance(error, SplitKDError):
            return cls("SplitKDError", f"{type(error).__name__}: {error}")
        return cls(next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__), str(error))

    def to_error(self) -> SplitKDError:
        """The error, as if it had been raised here."""
        error: SplitKDError = getattr(errors, self.kind, SplitKDError)(self.message)
        return error
