"""Calls in clusters, with the fake grid of `test_call_window`: who is waited for, and what few actors do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from test_call_window import CONNECT_TIMEOUT_S, NEVER, _World

from flwr_splitkd.strategies import turns
from flwr_splitkd.strategies.turns import Call, CallWindow, GaveUp


class _Clusters:
    """A round of clusters over a world: serves whoever is yielded together for some seconds."""

    def __init__(
        self,
        world: _World,
        monkeypatch: pytest.MonkeyPatch,
        parts: Sequence[Sequence[int]],
        *,
        size: int,
        turn_s: float = 5.0,
        on_short: Callable[[int, int], int] = lambda there, expected: expected,
    ) -> None:
        monkeypatch.setattr(turns, "time", world)
        self.world, self.turn_s = world, turn_s
        self.served: list[list[int]] = []
        self.gave_up: list[int] = []
        self.ahead: list[int] = []
        self.window = CallWindow(
            world,  # type: ignore[arg-type]
            self._draw(parts),
            wait_for=world.wait_for,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            on_overdue=lambda call: world.overdue.append(call.node_id),
            cluster_size=size,
            on_short=on_short,
        )

    def run(self) -> _Clusters:
        for item in self.window.clusters():
            assert self.world.now_s < 10_000, "the round does not end"
            if isinstance(item, GaveUp):
                self.gave_up.append(item.call.node_id)
                continue
            assert all(call.session.connected for call in item)
            self.served.append([call.node_id for call in item])
            self.ahead.append(len(self.world.pushed) - sum(map(len, self.served)))
            self.world.wait_for(lambda: False, self.turn_s)
            for call in item:
                self.world.finish(call)
        return self

    def _draw(self, parts: Iterable[Sequence[int]]) -> Iterator[Call]:
        for cluster, part in enumerate(parts):
            for node in part:
                call = self.world.call(node)
                call.cluster = cluster
                yield call


def everyone(parts: Sequence[Sequence[int]]) -> list[int]:
    return sorted(node for part in parts for node in part)


def test_clusters_follow_one_another_and_the_next_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({1: 3.0, 2: 1.0, 3: 0.5, 4: 2.0, 5: 4.0})
    round_ = _Clusters(world, monkeypatch, [[1, 2], [3, 4], [5]], size=2).run()
    assert round_.served == [[1, 2], [3, 4], [5]]
    assert round_.ahead == [2, 1, 0]  # the next cluster starts while this one trains
    assert world.now_s <= 3.0 + 3 * 5.0 + 1.0


def test_clusters_of_a_policy_need_not_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [[1, 2], [3], [4, 5, 6]]
    assert _Clusters(_World({}), monkeypatch, parts, size=3).run().served == parts


def test_a_cluster_begins_without_whoever_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({2: NEVER})
    round_ = _Clusters(world, monkeypatch, [[1, 2, 3]], size=3).run()
    assert round_.served == [[1, 3]]
    assert round_.gave_up == [2]
    assert world.overdue == [2]


def test_a_full_cluster_of_others_goes_before_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({2: 17.0})
    round_ = _Clusters(world, monkeypatch, [[1, 2], [3, 4], [5, 6]], size=2).run()
    assert round_.served[0] == [1, 3]
    assert everyone(round_.served) == [1, 2, 3, 4, 5, 6]
    assert not world.overdue


def test_a_straggler_fills_a_later_cluster_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({2: CONNECT_TIMEOUT_S + 2.0, 3: CONNECT_TIMEOUT_S + 2.0})
    round_ = _Clusters(world, monkeypatch, [[1, 2], [3], [4], [5]], size=2).run()
    assert round_.served[0] == [1]
    assert any(len(part) == 2 and {2, 3} & set(part) for part in round_.served)
    assert everyone(round_.served) == [1, 2, 3, 4, 5]


def test_a_device_that_fails_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World({2: NEVER})
    world.at(2.0, lambda: world.reply(2, "the sensor is broken"))
    round_ = _Clusters(world, monkeypatch, [[1, 2, 3]], size=3).run()
    assert round_.served == [[1, 3]]
    assert world.now_s < 15


def test_as_many_of_the_next_cluster_go_first_when_they_hold_the_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many actors as a cluster has devices, and the one that was called ahead got one of them."""
    world = _World({}, actors=2, pick=lambda queue: queue[-1])
    round_ = _Clusters(world, monkeypatch, [[1, 2], [3, 4]], size=2).run()
    assert everyone(round_.served) == [1, 2, 3, 4]
    assert not world.overdue


@pytest.mark.parametrize("actors", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_with_fewer_actors_clusters_shrink_once(actors: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    world = _World({}, actors=actors, pick=random_.choice)
    told = []

    def short(there: int, expected: int) -> int:
        told.append((there, expected))
        return there

    parts = [list(range(first, first + 4)) for first in (0, 4, 8)]
    round_ = _Clusters(world, monkeypatch, parts, size=4, on_short=short).run()
    assert everyone(round_.served) == list(range(12))
    assert not round_.gave_up
    assert told == [(actors, 4)]
    assert all(len(part) <= actors for part in round_.served)
    assert world.now_s < 2 * CONNECT_TIMEOUT_S + 12 * 16


@pytest.mark.parametrize("seed", range(20))
def test_every_round_ends_with_everybody_served_or_given_up(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    connect: dict[int, float | None] = {
        node: random_.choice([NEVER, 1.0, 5.0, CONNECT_TIMEOUT_S * 1.2, CONNECT_TIMEOUT_S * 3]) for node in range(10)
    }
    size = random_.randint(2, 5)
    actors = random_.choice([0, 3, 6, 10])
    world = _World(connect, actors=actors, pick=random_.choice)
    parts = [list(range(first, min(first + size, 10))) for first in range(0, 10, size)]
    round_ = _Clusters(world, monkeypatch, parts, size=size, on_short=lambda there, expected: there).run()
    assert sorted([*everyone(round_.served), *round_.gave_up]) == list(range(10))


def test_a_slow_start_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first start is slower than the timeout, everybody is overdue before anybody has come."""
    told = []
    world = _World({0: CONNECT_TIMEOUT_S + 5.0}, actors=1)
    round_ = _Clusters(
        world,
        monkeypatch,
        [[0, 1, 2]],
        size=3,
        on_short=lambda there, expected: told.append((there, expected)) or there,
    )
    assert everyone(round_.run().served) == [0, 1, 2]
    assert told == [(1, 3)]
