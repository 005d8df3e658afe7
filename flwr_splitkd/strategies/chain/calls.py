"""The devices that a round has called, and what Flower says of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_splitkd.strategies.chain.result import DeviceRecord
from flwr_splitkd.strategies.console import log
from flwr_splitkd.tiers.edge.chain import Meter, Reading
from flwr_splitkd.wire.server import Session

__all__ = ["POLL_S", "Called", "Replies", "why_not"]

POLL_S = 0.5


@dataclass(slots=True)
class Called:
    """A device that was called: its message, the session that it will open, and its place in the run.

    `seen` is the reading of its meter that was learnt from already.
    """

    message: Message
    session: Session
    position: int
    name: str
    split_point: int = 0
    message_id: str = ""
    reply: Message | None = None
    record: DeviceRecord | None = None
    thread: threading.Thread | None = None
    fatal: BaseException | None = field(default=None, repr=False)
    meter: Meter = field(default_factory=Meter, repr=False)
    seen: Reading = field(default_factory=Reading, repr=False)

    @property
    def node_id(self) -> int:
        """The node that was called."""
        return self.session.ticket.node_id


class Replies:
    """Pulls Flower's replies while a round goes on, on a thread of its own: an early one tells that a device failed."""

    def __init__(self, grid: Grid, called: Sequence[Called]) -> None:
        self._grid = grid
        self._missing: Mapping[str, Called] = {one.message_id: one for one in called if one.message_id}
        self._deadline_s = float("inf")
        self._thread = threading.Thread(target=self._pull, name="splitkd-replies", daemon=True)
        self._called = called

    def start(self) -> None:
        """Begin to pull."""
        self._thread.start()

    def finish(self, timeout_s: float) -> list[Message]:
        """Wait for the replies of those who took part; return all that came."""
        self._deadline_s = time.monotonic() + timeout_s
        self._thread.join()
        replies = [one.reply for one in self._called if one.reply is not None]
        for one in self._called:
            if one.reply is None and one.record is not None and one.record.outcome is not None:
                log(WARNING, "Device %s took part and sent no reply within %.0f s", one.name, timeout_s)
        return replies

    def _pull(self) -> None:
        missing = dict(self._missing)
        while missing and time.monotonic() < self._deadline_s:
            for reply in self._grid.pull_messages(list(missing)):
                one = missing.pop(reply.metadata.reply_to_message_id, None)
                if one is not None:
                    one.reply = reply
            done = self._deadline_s < float("inf")
            # Who came to nothing need not answer: of a lost device Flower says so only a minute later.
            if done and all(one.record is None or one.record.outcome is None for one in missing.values()):
                return
            time.sleep(POLL_S)


def why_not(reply: Message) -> str:
    """What a device replied with instead of coming."""
    if reply.has_error():
        return f"its ClientApp failed: {reply.error.reason}"
    return "its handler replied without taking part; does its ClientApp call SCCTClient?"
