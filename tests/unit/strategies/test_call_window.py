"""The order of turns in time, with a fake grid and a clock that jumps from event to event."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message

from flwr_splitkd.errors import DataError
from flwr_splitkd.strategies import turns
from flwr_splitkd.strategies.turns import Call, CallWindow, GaveUp
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

CONNECT_TIMEOUT_S = 30.0
NEVER = None


class _World:
    """Grid, devices and clock in one: what is pushed connects or replies after a while.

    Parameters
    ----------
    connect_after_s
        By node id, seconds from the start of its ClientApp to its handshake; NEVER for a device that stays away.
    actors
        ClientApps that run at the same time; each is busy until its device's turn is over. 0 means enough.
    pick
        Which of the queued ClientApps an actor takes next.
    """

    def __init__(
        self,
        connect_after_s: dict[int, float | None],
        *,
        actors: int = 0,
        pick: Callable[[list[Call]], Call] = lambda queue: queue[0],
    ) -> None:
        self.now_s = 0.0
        self.calls: dict[str, Call] = {}
        self.pushed: list[int] = []
        self.overdue: list[int] = []
        self.rejected: set[int] = set()
        self._connect_after_s = connect_after_s
        self._free_actors = actors or 10**9
        self._pick = pick
        self._queue: list[Call] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._replies: list[Any] = []

    # ---- the clock

    def monotonic(self) -> float:
        return self.now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        self._events.append((when_s, next(self._counter), action))

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = self.now_s + timeout_s
        while not predicate():
            due = sorted(event for event in self._events if event[0] <= deadline_s)
            if not due:
                self.now_s = deadline_s
                return predicate()
            self._events.remove(due[0])
            self.now_s = max(self.now_s, due[0][0])
            due[0][2]()
        return True

    # ---- the grid

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        (message,) = messages
        node_id = message.metadata.dst_node_id
        if node_id in self.rejected:
            return [None]
        self.pushed.append(node_id)
        self._queue.append(self.calls[f"message {node_id}"])
        self._start()
        return [f"message {node_id}"]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        wanted = set(message_ids)
        assert all(isinstance(message_id, str) and message_id for message_id in wanted)
        pulled = [reply for reply in self._replies if reply.metadata.reply_to_message_id in wanted]
        self._replies = [reply for reply in self._replies if reply not in pulled]
        return pulled

    def reply(self, node_id: int, error: str | None) -> None:
        # As the SuperLink does for a dead node: in its own name, so only the message id tells whose it is.
        metadata = SimpleNamespace(reply_to_message_id=f"message {node_id}", src_node_id=1)
        reply = SimpleNamespace(
            metadata=metadata, has_error=lambda: error is not None, error=SimpleNamespace(reason=error)
        )
        self._replies.append(reply)

    # ---- the devices

    def call(self, node_id: int) -> Call:
        ticket = Ticket(session_id=str(node_id), token=b"", run_id=1, node_id=node_id, server_round=1, expires_s=1e9)
        message: Any = SimpleNamespace(metadata=SimpleNamespace(dst_node_id=node_id))
        self.calls[f"message {node_id}"] = Call(message, Session(ticket))
        return self.calls[f"message {node_id}"]

    def finish(self, call: Call) -> None:
        """The turn is over: its actor is free."""
        assert call.session.link is not None
        call.session.link.close()
        self._free_actors += 1
        self._start()

    def _start(self) -> None:
        while self._queue and self._free_actors:
            call = self._pick(self._queue)
            self._queue.remove(call)
            self._free_actors -= 1
            after_s = self._connect_after_s.get(call.node_id, 1.0)
            if after_s is not NEVER:
                self.at(self.now_s + after_s, lambda call=call: self._connect(call))

    @staticmethod
    def _connect(call: Call) -> None:
        link = Link(peer=f"device {call.node_id}")
        Stream(pb.DownlinkFrame, peer=link.peer).attach(link)
        call.session.link = link


class _Round:
    """A round over a world: serves whoever is yielded for some seconds, and writes down what happened."""

    def __init__(
        self, world: _World, monkeypatch: pytest.MonkeyPatch, nodes: Iterable[int], turn_s: float = 5.0
    ) -> None:
        monkeypatch.setattr(turns, "time", world)
        self.world, self.turn_s = world, turn_s
        self.served: list[int] = []
        self.gave_up: dict[int, str] = {}
        self.drawn: list[int] = []
        self.window = CallWindow(
            world,  # type: ignore[arg-type]
            self._draw(nodes),
            wait_for=world.wait_for,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            on_overdue=lambda call: world.overdue.append(call.node_id),
        )

    def run(self) -> _Round:
        for item in self.window:
            assert self.world.now_s < 10_000, "the round does not end"
            if isinstance(item, GaveUp):
                self.gave_up[item.call.node_id] = item.reason
                continue
            assert item.session.connected
            self.served.append(item.node_id)
            self.world.wait_for(lambda: False, self.turn_s)
            self.world.finish(item)
        return self

    def _draw(self, nodes: Iterable[int]) -> Iterator[Call]:
        for node in nodes:
            self.drawn.append(node)
            yield self.world.call(node)


def test_everyone_in_order_two_messages_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 3.0, 2: 1.0, 3: 0.5, 4: 2.0})
    round_ = _Round(world, monkeypatch, [1, 2, 3, 4])
    ahead = []
    for item in round_.window:
        assert isinstance(item, Call)
        round_.served.append(item.node_id)
        ahead.append(len(world.pushed) - len(round_.served))
        assert round_.drawn == world.pushed  # a session is opened only when its message goes out
        world.wait_for(lambda: False, 5.0)
    assert round_.served == world.pushed == [1, 2, 3, 4]
    assert ahead == [1, 1, 1, 0]
    assert not world.overdue


def test_messages_of_the_first_two_go_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 3.0, 2: 1.0})
    round_ = _Round(world, monkeypatch, [1, 2, 3])
    iterator = iter(round_.window)
    first = next(iterator)
    assert isinstance(first, Call) and first.node_id == 1
    assert world.now_s == 3.0
    assert world.pushed == [1, 2]  # the one at work and the next; the third is called when the second begins


def test_the_next_device_is_warm_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six devices that need 4 s to start and 5 s for a turn: only the first start shows."""
    world = _World(dict.fromkeys(range(6), 4.0))
    _Round(world, monkeypatch, range(6), turn_s=5.0).run()
    assert world.now_s <= 4.0 + 6 * 5.0 + 1.0


def test_a_ready_second_waits_for_the_first_while_it_is_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    round_ = _Round(_World({1: 9.0, 2: 0.1}), monkeypatch, [1, 2]).run()
    assert round_.served == [1, 2]


def test_an_absent_first_is_overtaken_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: NEVER})
    round_ = _Round(world, monkeypatch, [1, 2, 3, 4, 5]).run()
    assert round_.served == [2, 3, 4, 5]
    assert list(round_.gave_up) == [1]
    assert "did not connect within 60 s" in round_.gave_up[1] and "`connect_timeout_s`" in round_.gave_up[1]
    assert world.overdue == [1]
    assert 2 * CONNECT_TIMEOUT_S <= world.now_s <= 2 * CONNECT_TIMEOUT_S + 15


def test_a_late_first_has_its_turn_later_in_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 14.0})
    round_ = _Round(world, monkeypatch, [1, 2, 3, 4], turn_s=5.0).run()
    assert sorted(round_.served) == [1, 2, 3, 4] and round_.served[0] == 2
    assert not round_.gave_up


def test_an_overdue_device_that_comes_before_the_end_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: CONNECT_TIMEOUT_S + 12.0})
    round_ = _Round(world, monkeypatch, [1, 2, 3], turn_s=5.0).run()
    assert round_.served == [2, 3, 1]
    assert world.overdue == [1] and not round_.gave_up


def test_two_absent_devices_do_not_block_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: NEVER, 2: NEVER})
    round_ = _Round(world, monkeypatch, [1, 2, 3, 4]).run()
    assert round_.served == [3, 4]
    assert sorted(round_.gave_up) == sorted(world.overdue) == [1, 2]
    assert world.now_s <= 3 * CONNECT_TIMEOUT_S


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(dict.fromkeys(range(5), NEVER))
    round_ = _Round(world, monkeypatch, range(5)).run()
    assert not round_.served
    assert sorted(round_.gave_up) == list(range(5))


def test_nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    round_ = _Round(_World({}), monkeypatch, []).run()
    assert not round_.served and not round_.gave_up


def test_with_one_actor_the_second_does_not_wait_for_the_first_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second got the only actor; the first can start only when the second has had its turn."""
    world = _World({}, actors=1, pick=lambda queue: queue[-1])
    round_ = _Round(world, monkeypatch, [])
    round_.window = CallWindow(
        world,  # type: ignore[arg-type]
        [world.call(1), world.call(2)],
        wait_for=world.wait_for,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        on_overdue=lambda call: world.overdue.append(call.node_id),
    )
    world._free_actors = 0
    world.at(0.5, lambda: (setattr(world, "_free_actors", 1), world._start())[0])
    round_.run()
    assert round_.served == [2, 1]
    assert not round_.gave_up
    assert world.now_s < CONNECT_TIMEOUT_S


@pytest.mark.parametrize("actors", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_more_devices_than_actors(monkeypatch: pytest.MonkeyPatch, actors: int, seed: int) -> None:
    rng = random.Random(seed)
    nodes = list(range(9))
    world = _World({node: rng.uniform(0.1, 4.0) for node in nodes}, actors=actors, pick=rng.choice)
    round_ = _Round(world, monkeypatch, nodes, turn_s=rng.uniform(0.5, 8.0)).run()
    assert sorted(round_.served) == nodes
    assert not round_.gave_up


@pytest.mark.parametrize("seed", range(20))
def test_every_call_is_yielded_exactly_once_whatever_happens(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    nodes = list(range(12))
    rng.shuffle(nodes)
    fates: dict[int, float | None] = {n: rng.choice([NEVER, 0.1, 2.0, 20.0, 45.0]) for n in nodes}
    world = _World(fates)
    world.rejected = {n for n in nodes if rng.random() < 0.1}
    for node in nodes:
        if fates[node] is NEVER and rng.random() < 0.5:
            world.at(rng.uniform(1, 40), lambda node=node: world.reply(node, "it broke"))
    round_ = _Round(world, monkeypatch, nodes, turn_s=3.0).run()
    assert sorted([*round_.served, *round_.gave_up]) == sorted(nodes)
    for node in nodes:  # whoever could come in time was served
        if fates[node] in (0.1, 2.0, 20.0) and node not in world.rejected:
            assert node in round_.served


# ---- devices that say that they will not come


def test_an_error_reply_gives_the_device_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: NEVER})
    world.at(2.0, lambda: world.reply(1, "`data` has 0 batches; expected at least 1"))
    round_ = _Round(world, monkeypatch, [1, 2, 3]).run()
    assert round_.gave_up == {1: "`data` has 0 batches; expected at least 1"}
    assert round_.served == [2, 3]
    assert world.now_s < CONNECT_TIMEOUT_S
    assert list(round_.window.replies) == ["message 1"]


def test_error_replies_are_told_apart_by_the_message_that_they_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: NEVER, 2: NEVER})
    world.at(2.0, lambda: world.reply(2, "the second broke"))
    world.at(3.0, lambda: world.reply(1, "the first broke"))
    round_ = _Round(world, monkeypatch, [1, 2, 3]).run()
    assert round_.gave_up == {2: "the second broke", 1: "the first broke"}
    assert round_.served == [3]


def test_a_handler_that_does_not_take_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: NEVER})
    world.at(2.0, lambda: world.reply(1, None))
    round_ = _Round(world, monkeypatch, [1, 2]).run()
    hint = "does its ClientApp have SplitKDMod, or handlers that call SplitKDClient?"
    assert round_.gave_up == {1: f"its handler replied without taking its turn; {hint}"}


def test_a_message_that_flower_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({})
    world.rejected = {1, 3}
    round_ = _Round(world, monkeypatch, [1, 2, 3, 4]).run()
    assert round_.served == [2, 4]
    assert set(round_.gave_up) == {1, 3}
    assert all("Flower did not take the message" in reason for reason in round_.gave_up.values())
    assert world.now_s < CONNECT_TIMEOUT_S


def test_a_device_that_connects_and_is_lost_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token is used, so waiting for it to come back would be in vain."""
    world = _World({1: 8.0, 2: 1.0})

    def lose() -> None:
        link = world.calls["message 2"].session.link
        assert link is not None
        link._finish(DataError("device 2 reported: out of memory"))

    world.at(2.0, lose)
    round_ = _Round(world, monkeypatch, [1, 2, 3]).run()
    assert round_.served == [1, 3]
    assert round_.gave_up == {2: "it connected and was lost before its turn: device 2 reported: out of memory"}
    assert world.now_s < CONNECT_TIMEOUT_S


class _LosingRound(_Round):
    """Devices are lost in their first turn, and put back to wait."""

    def __init__(self, *arguments: Any, lost: set[int], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.lost = lost

    def run(self) -> _LosingRound:
        for item in self.window:
            assert self.world.now_s < 10_000, "the round does not end"
            if isinstance(item, GaveUp):
                self.gave_up[item.call.node_id] = f"{item.reason} ({item.may_come})"
                continue
            self.served.append(item.node_id)
            self.world.wait_for(lambda: False, self.turn_s)
            self.world.finish(item)
            if item.node_id in self.lost:
                self.lost.remove(item.node_id)
                item.session.link = None
                self.window.again(item)
        return self


def test_a_device_that_comes_back_by_itself_has_its_turn_later(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 1.0, 2: 1.0, 3: 1.0})
    world.at(9.0, lambda: world._connect(world.calls["message 1"]))
    round_ = _LosingRound(world, monkeypatch, [1, 2, 3], lost={1}).run()
    assert round_.served == [1, 2, 1, 3] or round_.served == [1, 2, 3, 1]
    assert round_.gave_up == {}


def test_a_lost_device_holds_nobody_up_and_may_come_if_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 1.0, 2: 1.0, 3: 1.0})
    world.at(40.0, lambda: world.reply(1, "its ClientApp has ended"))
    round_ = _LosingRound(world, monkeypatch, [1, 2, 3], lost={1}).run()
    assert round_.served == [1, 2, 3]
    assert round_.gave_up == {1: "its ClientApp has ended (True)"}
    assert world.now_s < 45


def test_a_lost_device_of_which_nothing_is_heard_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 1.0, 2: 1.0})
    round_ = _LosingRound(world, monkeypatch, [1, 2], lost={1}).run()
    assert round_.served == [1, 2]
    assert "lost in its turn and did not come back within 30 s" in round_.gave_up[1] and "(False)" in round_.gave_up[1]


def test_an_early_reply_of_a_connected_device_is_not_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply can be pulled once only, and the end of the round waits for it."""
    world = _World({1: 9.0, 2: 1.0})
    world.at(2.0, lambda: world.reply(2, "it broke while it waited"))
    round_ = _Round(world, monkeypatch, [1, 2]).run()
    assert "message 2" in round_.window.replies
