"""Ask nodes who they are, before anybody has had a turn."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from logging import INFO, WARNING

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from flwr_splitkd.costs import DeviceProfile, device_from_json
from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.records import Enrolment
from flwr_splitkd.strategies.console import log

__all__ = ["enrol_nodes", "profile_of"]

_POLL_S = 0.2


def enrol_nodes(grid: Grid, node_ids: Collection[int], timeout_s: float) -> dict[int, Enrolment]:
    """Query some nodes; return what those answered that did so in time.

    A node whose ClientApp has no handler for the query stays unknown, until its first turn.

    Parameters
    ----------
    timeout_s
        Seconds for all of them together.
    """
    messages = [
        Message(content=Enrolment.ask(), message_type=MessageType.QUERY, dst_node_id=node_id, ttl=timeout_s)
        for node_id in node_ids
    ]
    asked = {
        message_id: message.metadata.dst_node_id
        for message, message_id in zip(messages, grid.push_messages(messages), strict=False)
        if message_id
    }
    log(INFO, "Enrolment: asked %d nodes who they are", len(asked))
    known: dict[int, Enrolment] = {}
    deadline_s = time.monotonic() + timeout_s
    while asked and time.monotonic() < deadline_s:
        for reply in grid.pull_messages(list(asked)):
            node_id = asked.pop(reply.metadata.reply_to_message_id, None)
            if node_id is None:
                continue
            if reply.has_error():
                log(WARNING, "\tnode %s did not say who it is: %s", node_id, reply.error.reason)
                continue
            try:
                known[node_id] = Enrolment.from_content(reply.content)
            except SplitKDError as error:
                log(WARNING, "\tnode %s did not say who it is: %s", node_id, error)
        if asked:
            time.sleep(_POLL_S)
    for node_id in asked.values():
        log(WARNING, "\tnode %s did not say within %.0f s who it is", node_id, timeout_s)
    return known


def profile_of(enrolment: Enrolment) -> DeviceProfile | None:
    """The profile that a device brought along; None if it has none, or one that cannot be used."""
    if not enrolment.profile:
        return None
    try:
        return device_from_json(json.loads(enrolment.profile))
    except (SplitKDError, ValueError, OverflowError, RecursionError) as error:  # it comes from outside
        log(WARNING, "\tdevice %s has a profile that cannot be used: %s", enrolment.name, error)
        return None
