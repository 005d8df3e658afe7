"""Flower's replies to the calls of a round, from a grid that has each of them once."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from flwr_splitkd.strategies import replies as replies_module
from flwr_splitkd.strategies.replies import Replies


class _Grid:
    """Has what was answered until it is pulled; says so if somebody asks for what is gone."""

    def __init__(self) -> None:
        self.answered: dict[str, Any] = {}
        self.asked: list[list[str]] = []
        self.online = list(range(100))

    def get_node_ids(self) -> list[int]:
        return self.online

    def answer(self, *messages: str) -> None:
        for message in messages:
            metadata = SimpleNamespace(reply_to_message_id=message)
            self.answered[message] = SimpleNamespace(metadata=metadata, of=message)

    def pull_messages(self, messages: list[str]) -> list[Any]:
        self.asked.append(list(messages))
        return [self.answered.pop(message) for message in messages if message in self.answered]


@pytest.fixture
def grid() -> _Grid:
    return _Grid()


def call(message: str) -> Any:
    return SimpleNamespace(message_id=message, node_id=int(message or 0))


def replies_from(grid: _Grid, *messages: str) -> Replies:
    replies = Replies(grid)  # type: ignore[arg-type]
    for message in messages:
        replies.expect(call(message))
    return replies


def test_nothing_stays_with_flower_longer_than_until_the_next_turn(grid: _Grid) -> None:
    replies = replies_from(grid)
    for message in map(str, range(100)):
        replies.expect(call(message))
        grid.answer(message)
        replies.pull({})
        assert not grid.answered
    assert max(map(len, grid.asked)) == 1
    assert [reply.of for reply in replies.collect(0.0)] == [*map(str, range(100))]  # type: ignore[attr-defined]


def test_the_order_is_that_of_the_turns_whatever_came_first(grid: _Grid) -> None:
    replies = replies_from(grid, "1", "2", "3")
    grid.answer("3")
    replies.pull({})
    grid.answer("2", "1")
    assert [reply.of for reply in replies.collect(1.0)] == ["1", "2", "3"]  # type: ignore[attr-defined]


def test_what_somebody_else_has_pulled_is_not_asked_for_again(grid: _Grid) -> None:
    replies = replies_from(grid, "1", "2")
    grid.answer("1", "2", "9")
    pulled = {message: grid.answered.pop(message) for message in ("1", "9")}
    replies.pull(pulled)
    assert [reply.of for reply in replies.collect(1.0)] == ["9", "1", "2"]  # type: ignore[attr-defined]
    assert grid.asked == [["2"]]


def test_nobody_is_asked_when_nothing_is_missing(grid: _Grid) -> None:
    replies = replies_from(grid)
    replies.pull({})
    assert replies.collect(1.0) == [] and grid.asked == []


def test_one_that_never_answers_is_named(
    grid: _Grid, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies_module, "_POLL_S", 0.001)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    replies = replies_from(grid, "1", "7")
    grid.answer("1")
    assert [reply.of for reply in replies.collect(0.01)] == ["1"]  # type: ignore[attr-defined]
    assert "Node 7 took its turn and sent no reply within 0 s" in caplog.text


def test_of_a_call_that_came_to_nothing_nothing_stays_with_flower_and_nothing_is_returned(grid: _Grid) -> None:
    replies = replies_from(grid, "1")
    for message in ("2", "3", ""):  # the last one Flower never took
        replies.give_up(call(message))
    replies.pull({})
    grid.answer("1", "2")
    assert [reply.of for reply in replies.collect(1.0)] == ["1"]  # type: ignore[attr-defined]
    assert grid.asked == [["1", "2", "3"]] * 2 and not grid.answered


def test_a_node_that_is_away_is_not_asked_for_its_reply_before_it_must_be_there(grid: _Grid) -> None:
    """Flower would answer in its place, and drop what it sends when it is back."""
    replies = replies_from(grid, "1", "2")
    grid.online = [2]
    replies.pull({})
    grid.answer("1", "2")
    replies.pull({})
    assert grid.asked == [["2"], ["2"]]
    assert [reply.of for reply in replies.collect(1.0)] == ["1", "2"]  # type: ignore[attr-defined]


def test_who_was_given_up_and_answered_somebody_else_is_not_asked_again(grid: _Grid) -> None:
    replies = replies_from(grid)
    replies.give_up(call("4"))
    grid.answer("4")
    replies.pull({"4": grid.answered.pop("4")})
    assert [reply.of for reply in replies.collect(1.0)] == ["4"] and grid.asked == []  # type: ignore[attr-defined]
