"""What a server's streams have carried, and what went wrong with them: counted as it happens. Torch-free."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Tally", "TallyReading"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyReading:
    """Numbers of one moment.

    Parameters
    ----------
    received_bytes, sent_bytes
        Messages on the wire, those that were sent again and those of turns that came to nothing included; without what is
        said before a stream is let in.
    faults
        Streams that were refused or timed out before they were let in, or ended for altered bytes, by the kind of error
        (`flwr_splitkd.faults`); and those that were ``"resumed"``, or ``"restarted"`` by another process.
    """

    received_bytes: int = 0
    sent_bytes: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)


class Tally:
    """Fed by a server's threads, read by any other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received_bytes = self._sent_bytes = 0
        self._faults: Counter[str] = Counter()

    def moved(self, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes on the wire."""
        with self._lock:
            self._sent_bytes += sent
            self._received_bytes += received

    def fault(self, kind: str) -> None:
        """Count a fault, or what was overcome."""
        with self._lock:
            self._faults[kind] += 1

    def reading(self) -> TallyReading:
        """The numbers as they are now."""
        with self._lock:
            return TallyReading(
                received_bytes=self._received_bytes, sent_bytes=self._sent_bytes, faults=dict(self._faults)
            )
