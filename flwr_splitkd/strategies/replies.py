"""Flower's replies to the calls of a round whose turns are over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from logging import WARNING

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_splitkd.strategies.console import log
from flwr_splitkd.strategies.turns import Call

__all__ = ["Replies"]

_POLL_S = 0.2


class Replies:
    """Pulls the replies to calls whose turns are over, which come seconds after them in a deployment.

    Flower keeps a message until its reply has been pulled, and its simulation looks through all that are kept once for every node,
    ten times a second: a thousand devices whose replies wait for the round's end would keep it busy with nothing else.

    Parameters
    ----------
    grid
        Carries the messages.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._calls: dict[str, Call] = {}
        self._given_up: dict[str, Call] = {}
        self._came: dict[str, Message] = {}

    def expect(self, call: Call) -> None:
        """Await the reply to a call whose turn is over."""
        self._calls[call.message_id] = call

    def give_up(self, call: Call) -> None:
        """Take the reply to a call that came to nothing off Flower's hands, if it comes; nobody waits for it."""
        if call.message_id:
            self._given_up[call.message_id] = call

    def pull(self, pulled: Mapping[str, Message]) -> None:
        """Take those that are there, without waiting, and those that somebody else has `pulled`: each is there only once."""
        self._came.update(pulled)
        for message in pulled:
            self._given_up.pop(message, None)
        # Of a node whose heartbeats fail to come Flower says at once that there is no reply, which may still be on its way.
        if waiting := {**self._missing(), **self._given_up}:
            online = set(self._grid.get_node_ids())
            self._ask([message for message, call in waiting.items() if call.node_id in online])

    def collect(self, timeout_s: float) -> list[Message]:
        """Wait for the rest; return all: first those that were not expected, then the others in the order of their turns."""
        deadline_s = time.monotonic() + timeout_s
        while self._missing() and time.monotonic() < deadline_s:
            self._ask([*self._missing(), *self._given_up])
            if self._missing():
                time.sleep(_POLL_S)
        for call in self._missing().values():
            log(WARNING, "Node %s took its turn and sent no reply within %.0f s", call.node_id, timeout_s)
        others = [reply for message, reply in self._came.items() if message not in self._calls]
        return others + [self._came[message] for message in self._calls if message in self._came]

    def _missing(self) -> dict[str, Call]:
        return {message: call for message, call in self._calls.items() if message not in self._came}

    def _ask(self, messages: list[str]) -> None:
        for reply in self._grid.pull_messages(messages) if messages else ():
            message = reply.metadata.reply_to_message_id
            if self._given_up.pop(message, None) is None:
                self._came[message] = reply
