"""Who holds a place on the server, and when it has to give it up. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from flwr_splitkd.wire.stream import Stream

__all__ = ["Places"]

_LINGER_S = 10.0
"""Seconds that a stream which is over may stand still; what the peer does not read holds a thread."""
_CROWDED = 0.75
"""Share of the places from which on whoever has said nothing yet makes room for the next one."""


class Places:
    """The streams that are open on a server, in the order in which they came.

    A stream holds a thread. Whoever has shaken hands keeps its place until its turn is over; a stranger keeps it only as
    long as the place is not needed, so that connections that say nothing keep no device out.

    Parameters
    ----------
    count
        Streams that may be open at once.
    """

    def __init__(self, count: int) -> None:
        self._crowded = max(int(count * _CROWDED), 1)
        self._lock = threading.Lock()
        self._taken: dict[Stream, _Place] = {}

    def __len__(self) -> int:
        """Places that are taken."""
        with self._lock:
            return len(self._taken)

    def take(self, stream: Stream, cancel: Callable[[], object]) -> None:
        """Give a new stream a place; the oldest stranger makes room if there are few left.

        Parameters
        ----------
        stream
            The new one.
        cancel
            Ends its connection at once. Must not block.
        """
        with self._lock:
            others = list(self._taken)
            self._taken[stream] = _Place(cancel)
        if len(others) >= self._crowded:
            stranger = next((other for other in others if other.waits_for_opening), None)
            if stranger is not None:
                stranger.displace()

    def leave(self, stream: Stream) -> None:
        """The stream's connection is gone."""
        with self._lock:
            self._taken.pop(stream, None)

    def sweep(self, now_s: float) -> None:
        """Cut off streams that are over and whose peer does not take what is left.

        Parameters
        ----------
        now_s
            Monotonic seconds.
        """
        with self._lock:
            places = list(self._taken.items())
        for stream, place in places:
            state = (stream.over, stream.frames_sent)
            if not stream.over or state != place.state:
                place.state, place.since_s = state, now_s
            elif now_s - place.since_s >= _LINGER_S:
                place.cancel()


@dataclass(slots=True)
class _Place:
    cancel: Callable[[], object]
    state: tuple[bool, int] = (False, -1)
    since_s: float = 0.0
