"""SplitKDMod: which messages it answers. tests/apps/test_drop_in.py has it answer them in real runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from flwr_splitkd import SplitKDMod
from flwr_splitkd.records import TurnTicket

TICKET = TurnTicket(
    session_id="1",
    token=b"2",
    address="127.0.0.1:3",
    root_certificate=b"",
    server_round=4,
    tied_embeddings="refuse",
    peft='{"peft_type": "LORA"}',
)


def message(kind: str, ticket: bool) -> Any:
    """What the mod looks at; Flower makes real messages within a run only."""
    content = RecordDict({"config": ConfigRecord({"server-round": 4})})
    if ticket:
        TICKET.into(content)
    return SimpleNamespace(content=content, metadata=SimpleNamespace(message_type=kind))


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


class Answered(Exception):
    """Raised where a turn would begin."""


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_other_strategies_get_the_apps_own_answer(kind: str) -> None:
    passed: list[Message] = []

    def handler(msg: Message, _context: Context) -> Message:
        passed.append(msg)
        return msg

    def data(_msg: Message, _context: Context) -> list[Any]:
        raise AssertionError("no data are needed")

    request = message(kind, ticket=False)
    assert SplitKDMod(student=dict, data=data)(request, context(), handler) is request  # type: ignore[arg-type]
    assert passed == [request]


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_a_turn_is_taken_with_the_data_for_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Client:
        def __init__(self, **options: Any) -> None:
            made.update(options)

        def train(self, msg: Message, _context: Context) -> Message:
            raise Answered(MessageType.TRAIN)

        def evaluate(self, msg: Message, _context: Context) -> Message:
            raise Answered(MessageType.EVALUATE)

    monkeypatch.setattr("flwr_splitkd.clients.mod.SplitKDClient", Client)
    mod = SplitKDMod(student=dict, data=lambda msg, _context: [msg.metadata.message_type], num_threads=3)  # type: ignore[arg-type]
    with pytest.raises(Answered, match=kind):
        mod(message(kind, ticket=True), context(), lambda msg, _context: msg)
    assert made == {"student": dict, "data": [kind], "num_threads": 3}


def test_the_ticket_survives_the_message() -> None:
    assert TurnTicket.from_content(message(MessageType.TRAIN, ticket=True).content) == TICKET
