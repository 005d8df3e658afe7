"""SplitKDMod: which messages it answers. tests/apps/test_drop_in.py has it answer them in real runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod, message_size_mod

from flwr_splitkd import SplitKDMod
from flwr_splitkd.errors import ConfigError
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


def app_with(before: list[Any], after: list[Any], of_function: list[Any], *, data: Any) -> ClientApp:
    app = ClientApp(mods=[*before, SplitKDMod(student=dict, data=data), *after])  # type: ignore[arg-type]

    @app.train(mods=of_function)
    def train(msg: Message, _context: Context) -> Message:
        return msg

    return app


@pytest.mark.parametrize(
    ("mod", "name"),
    [(LocalDpMod(1.0, 1.0, 1.0, 1e-5), "LocalDpMod"), (fixedclipping_mod, "fixedclipping_mod")],
    ids=["an object", "a function"],
)
@pytest.mark.parametrize("of_function", [False, True])
def test_a_mod_that_would_be_bypassed_is_refused(mod: Any, name: str, of_function: bool) -> None:
    def data(_msg: Message, _context: Context) -> list[Any]:
        raise AssertionError("refused before any data are loaded")

    app = app_with([], [] if of_function else [mod], [mod] if of_function else [], data=data)
    with pytest.raises(ConfigError, match=f"The mod {name} comes after SplitKDMod"):
        app(message(MessageType.TRAIN, ticket=True), context())


def test_a_mod_that_comes_after_serves_other_strategies() -> None:
    request = message(MessageType.TRAIN, ticket=False)
    app = app_with([], [lambda msg, context, call_next: call_next(msg, context)], [], data=None)
    assert app(request, context()) is request


def test_a_mod_that_comes_before_sees_the_message() -> None:
    def data(_msg: Message, _context: Context) -> list[Any]:
        raise Answered("data")

    with pytest.raises(Answered, match="data"):
        app_with([message_size_mod], [], [], data=data)(message(MessageType.TRAIN, ticket=True), context())
