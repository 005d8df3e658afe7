"""The order of turns in time: messages go out ahead, and whoever is ready in order takes the next turn.

A Flower message needs 3-6 s to start a ClientApp in a deployment. So while one device has its turn the next one
is already called, builds its half and waits on an open stream. A device that does not come is overtaken, and gets
its turn later in the round if it comes after all.

Devices of a cluster have their turns together, so a whole cluster is called and waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_splitkd.errors import NoDeviceError, PeerLostError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.wire.server import Session

__all__ = ["Call", "CallWindow", "GaveUp"]

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

    `num_turns` is how many calls the round has; `lost` tells that it had begun its turn. Calls of one `cluster` have their turns
    together.
    """

    message: Message
    session: Session
    num_turns: int = 0
    cluster: int = 0
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

    @property
    def fault(self) -> str:
        """The kind of the reason, as `fault_of` says it: what ended its stream if it had come, else that it has not."""
        link = self.call.session.link
        return fault_of(link.error if link is not None and link.error else NoDeviceError(self.reason))


class CallWindow:
    """Calls devices in order, those of a cluster and one more at a time, and yields each cluster when its turns can begin.

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
    cluster_size
        Most devices that have their turns together. With 1 (one device after another) a device that is ready overtakes others
        after a while. A cluster waits for all of its devices; it begins without those that do not connect in time, or with as
        many of the next one, if these are ready and it is not: they may hold what the others need to come.
    on_short
        Told how many devices are there, and how many should be, when a cluster first has to begin without some; returns the size
        of clusters from then on.
    """

    def __init__(
        self,
        grid: Grid,
        calls: Iterable[Call],
        *,
        wait_for: Callable[[Callable[[], bool], float], bool],
        connect_timeout_s: float,
        on_overdue: Callable[[Call], None],
        cluster_size: int = 1,
        on_short: Callable[[int, int], int] = lambda there, expected: expected,
    ) -> None:
        self._grid, self._calls = grid, iter(calls)
        self._wait_for, self._on_overdue = wait_for, on_overdue
        self._connect_timeout_s = connect_timeout_s
        self._size, self._on_short = cluster_size, on_short
        self._waiting: list[Call] = []
        self._exhausted = self._told_short = False
        self._turn_ended_s = float("-inf")
        self.replies: dict[str, Message] = {}

    def __iter__(self) -> Iterator[Call | GaveUp]:
        """Yield every call exactly once, one by one. Between two items the caller serves the turn."""
        for item in self.clusters():
            if isinstance(item, GaveUp):
                yield item
            else:
                yield from item

    def clusters(self) -> Iterator[list[Call] | GaveUp]:
        """Yield every call exactly once, with those that it has its turn with. Between two items the caller serves the turns."""
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

    def _fill(self, limit: int | None = None) -> None:
        """Keep `limit` calls on their way, a cluster and one more if not given; an overdue one does not count."""
        limit = self._size + 1 if limit is None else limit
        while not self._exhausted and sum(not call.overdue for call in self._waiting) < limit:
            call = next(self._calls, None)
            if call is None:
                self._exhausted = True
                return
            call.message_id = next(iter(self._grid.push_messages([call.message])), None) or ""
            call.called_s = time.monotonic()
            self._waiting.append(call)

    def _next(self) -> Iterator[list[Call] | GaveUp]:
        """Wait until somebody is ready or has to be given up."""
        started_s = time.monotonic()
        while True:
            self._wait_for(lambda: bool(self._ready(started_s)), _POLL_S)
            if ready := self._ready(started_s):
                self._waiting = [call for call in self._waiting if not any(call is one for one in ready)]
                self._look_for_shortage(ready)
                self._fill(self._size)  # the next ones start while these have their turns
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
            room = sum(not call.overdue for call in self._waiting) <= self._size
            if lost or (room and not self._exhausted):
                return

    def _ready(self, started_s: float) -> list[Call]:
        """The first connected devices, provided that nobody before or with them is still expected or patience has run out."""
        impatient = time.monotonic() - started_s > _PATIENCE_S
        if self._size > 1:
            return self._ready_cluster(impatient)
        for call in self._waiting:
            if call.session.connected:
                return [call]
            if not call.overdue and not impatient:
                return []
        return []

    def _look_for_shortage(self, ready: list[Call]) -> None:
        """Tell, once, that a cluster begins without devices that were called and have not come."""
        late = any(call.overdue and not call.lost and not call.session.connected for call in self._waiting)
        if late and len(ready) < self._size and not self._told_short:
            self._told_short = True
            self._size = max(self._on_short(len(ready), self._size), 1)

    def _ready_cluster(self, impatient: bool) -> list[Call]:
        """The devices of the cluster at the head, when all that are still expected are there; stragglers fill it up."""
        connected = [call for call in self._waiting if call.session.connected]
        expected = [call for call in self._waiting if not call.overdue]
        expected = [call for call in expected if call.cluster == expected[0].cluster][: self._size]
        if all(call.session.connected for call in expected):
            stragglers = [call for call in connected if call.overdue]
            return [*expected, *stragglers[: self._size - len(expected)]]
        return connected[: self._size] if impatient and len(connected) >= self._size else []

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
