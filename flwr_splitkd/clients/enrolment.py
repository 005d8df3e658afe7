"""Enrolment: a device says who it is, before its first turn, to policies that must know."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context, Message

from flwr_splitkd.costs import device_from_json
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.records import Enrolment

__all__ = ["device_name", "enrol"]


def device_name(context: Context) -> str:
    """Name of this device: ``device-name`` in its node config, else its partition id, else Flower's node id."""
    return str(context.node_config.get("device-name", context.node_config.get("partition-id", context.node_id)))


def enrol(msg: Message, context: Context, *, num_examples: int = 0, num_batches: int = 0) -> Message:
    """Answer a query of `SplitKD`, which asks when a policy decides by names or costs.

    ::

        @app.query()
        def query(msg: Message, context: Context) -> Message:
            return enrol(msg, context)

    A ``device-profile`` in the node config is the path of a file that `flwr-splitkd profile` wrote; the planner starts from it.

    Parameters
    ----------
    msg, context
        As the handler gets them.
    num_examples, num_batches
        Of this device's data, if they are known without loading it.

    Raises
    ------
    ConfigError
        If the message is another query, or the profile cannot be used.
    """
    if not Enrolment.is_asked_in(msg.content):
        raise ConfigError(
            f"The query has the records {sorted(msg.content)}; expected one of SplitKD. Answer other queries in another handler: "
            "@app.query('name')."
        )
    enrolment = Enrolment(
        name=device_name(context), num_examples=num_examples, num_batches=num_batches, profile=_profile(context)
    )
    return Message(content=enrolment.to_content(), reply_to=msg)


def _profile(context: Context) -> str:
    path = context.node_config.get("device-profile")
    if not path:
        return ""
    try:
        text = Path(str(path)).read_text(encoding="utf-8")
        device_from_json(json.loads(text))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"`device-profile` is {path!r}, which cannot be read: {error}. Write it with `flwr-splitkd profile --output`."
        ) from error
    return text
