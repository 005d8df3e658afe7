"""The order of turns in time: messages go out two ahead, and whoever is ready in order takes the next turn.

A Flower message needs 3-6 s to start a ClientApp in a deployment. So while one device has its turn the next one
is already called, builds its half and waits on an open stream. A device that does not come is overtaken, and gets
its turn later in the round if it comes after all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_splitkd.errors import PeerLostError
from flwr_splitkd.wire.server import Session

__all__ = ["Call", "CallWindow", "GaveUp"]

_WINDOW = 2
"""Messages under way: the turn at work, and the next."""
_POLL_S = 1.0
"""Seconds between two looks for Flower's error replies while nobody is ready."""
_PATIENCE_S = 10.0
"""Seconds that a ready device waits for those before it in the order.

With a single simulation actor the second in order may hold the actor that the first one needs: this is what keeps
such a pair from waiting for each other.
"""


@dataclass(slots=True)
class Call:
    """A message that asked a device to come, and the session that it will open.

    `num_turns` is how many calls the round has; `lost` tells that it had begun its turn.
    """

    message: Message
    session: Session
    num_turns: int = 0
    called_s: float = 0.0
    message_id: str = ""
    overdue: bool = False
    lost: bool = False

    @property
    def node_id(self) -> int:
        """The node that was called."""
        return self.session.ticket.node_id


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A device that does not come, why, and whether it could if it were called again."""

    call: Call
    reason: str
    may_come: bool = False


class CallWindow:
    """Calls devices in order, two at a time, and yields each when its turn can begin.

    Parameters
    ----------
    grid
        Carries the messages.
    calls
        In the order of the turns; drawn one turn ahead.
    wait_for
        ``wait_for(predicate, timeout_s)``: blocks until the predicate holds; checked whenever a device connects.
    connect_timeout_s
        Seconds that a called device has to connect before others overtake it, and again at the round's end.
    on_overdue
        Told of each device that is overtaken.
    """

    def __init__(
        self,
        grid: Grid,
        calls: Iterable[Call],
        *,
        wait_for: Callable[[Callable[[], bool], float], bool],
        connect_timeout_s: float,
        on_overdue: Callable[[Call], None],
    ) -> None:
        self._grid, self._calls = grid, iter(calls)
        self._wait_for, self._on_overdue = wait_for, on_overdue
        self._connect_timeout_s = connect_timeout_s
        self._waiting: list[Call] = []
        self._exhausted = False
        self._turn_ended_s = float("-inf")
        self.replies: dict[str, Message] = {}

    def __iter__(self) -> Iterator[Call | GaveUp]:
        """Yield every call exactly once. Between two items the caller serves the turn."""
        while True:
            self._fill()
            if not self._waiting:
                return
            yield from self._next()

    def call_ahead(self) -> None:
        """Call the first devices before anybody waits for them."""
        self._fill()

    @property
    def waiting(self) -> tuple[Call, ...]:
        """The calls that are under way."""
        return tuple(self._waiting)

    def again(self, call: Call) -> None:
        """Wait for a device that was lost in its turn, behind all others: it may come back by itself."""
        call.lost = call.overdue = True
        call.called_s = time.monotonic()
        self._waiting.append(call)

    def _fill(self, limit: int = _WINDOW) -> None:
        """Keep `limit` calls on their way; an overdue one does not count."""
        while not self._exhausted and sum(not call.overdue for call in self._waiting) < limit:
            call = next(self._calls, None)
            if call is None:
                self._exhausted = True
                return
            call.message_id = next(iter(self._grid.push_messages([call.message])), None) or ""
            call.called_s = time.monotonic()
            self._waiting.append(call)

    def _next(self) -> Iterator[Call | GaveUp]:
        """Wait until somebody is ready or has to be given up."""
        started_s = time.monotonic()
        while True:
            self._wait_for(lambda: self._ready(started_s) is not None, _POLL_S)
            if (ready := self._ready(started_s)) is not None:
                self._waiting.remove(ready)
                self._fill(_WINDOW - 1)  # the next device starts while this one has its turn
                yield ready
                self._turn_ended_s = time.monotonic()
                return
            lost: list[GaveUp] = []
            for find in (self._failed, self._expired):  # one after the other, so that nobody is in both
                found = find()
                for gave_up in found:
                    self._waiting.remove(gave_up.call)
                lost += found
            yield from lost
            room = sum(not call.overdue for call in self._waiting) < _WINDOW
            if lost or (room and not self._exhausted):
                return

    def _ready(self, started_s: float) -> Call | None:
        """The first connected device, provided that nobody before it is still expected or patience has run out."""
        impatient = time.monotonic() - started_s > _PATIENCE_S
        for call in self._waiting:
            if call.session.connected:
                return call
            if not call.overdue and not impatient:
                return None
        return None

    def _failed(self) -> list[GaveUp]:
        """Devices that cannot come any more: not called, gone again, or whose ClientApp has answered instead."""
        gave_up = [GaveUp(call, reason, _may_come(call)) for call in self._waiting if (reason := _lost(call))]
        # Asked again for a reply that was pulled, Flower would say that there is none.
        by_id = {call.message_id: call for call in self._waiting if call.message_id not in {"", *self.replies}}
        lost = {gone.call.message_id for gone in gave_up}
        for reply in self._grid.pull_messages(list(by_id)) if by_id else ():
            # Not by source node: the SuperLink answers in its own name for a node that is gone.
            call = by_id.get(reply.metadata.reply_to_message_id)
            if call is None:
                continue
            self.replies[call.message_id] = reply  # a reply can be pulled only once
            if call.session.connected or call.message_id in lost:
                continue
            said = reply.error.reason if reply.has_error() else None
            in_its_name = reply.metadata.src_node_id != call.node_id
            gave_up.append(GaveUp(call, _why(said), may_come=call.lost or in_its_name))
        return gave_up

    def _expired(self) -> list[GaveUp]:
        """Mark those who are late; give up those who are late a second time, when nobody else is left to serve."""
        now_s = time.monotonic()
        gave_up = []
        for call in self._waiting:
            if call.session.connected or now_s - call.called_s < self._connect_timeout_s:
                continue
            if not call.overdue:
                call.overdue, call.called_s = True, now_s
                self._on_overdue(call)
            # With few simulation actors a device may be late because others were served: its time starts anew then.
            elif now_s - self._turn_ended_s < self._connect_timeout_s:
                continue
            elif self._exhausted and all(other.overdue for other in self._waiting):
                gave_up.append(GaveUp(call, self._why_expired(call)))
        return gave_up

    def _why_expired(self, call: Call) -> str:
        if call.lost:
            return f"it was lost in its turn and did not come back within {self._connect_timeout_s:g} s"
        return (
            f"it did not connect within {2 * self._connect_timeout_s:g} s; check that its SuperNode runs and can "
            "reach the data plane's address, or raise `connect_timeout_s`"
        )


def _why(said: str | None) -> str:
    """What a device replied with instead of coming, and what that usually means."""
    if said and "KeyError" not in said:
        return said
    # An app that was written for another strategy: it looks for weights in the message, or replies at once.
    hint = "does its ClientApp have SplitKDMod, or handlers that call SplitKDClient?"
    return f"{said or 'its handler replied without taking its turn'}; {hint}"


def _may_come(call: Call) -> bool:
    """Whether a device that is gone was lost, rather than failed by itself."""
    return call.session.link is not None and isinstance(call.session.link.error, PeerLostError)


def _lost(call: Call) -> str:
    """Why a call has come to nothing already, or an empty string."""
    if not call.message_id:
        return "Flower did not take the message for it; the node may have left"
    link = call.session.link
    if link is not None and link.closed:  # its token is used, so it cannot come back
        return f"it connected and was lost before its turn: {link.error or 'its stream was closed'}"
    return ""
