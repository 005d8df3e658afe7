"""Iterations on a clock that the test moves: who is waited for, and what becomes of whoever comes late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from flwr_splitkd.errors import ConfigError, NonFiniteError, PeerLostError
from flwr_splitkd.tiers.edge.chain import Closed, CloudAnswer, Iterations
from flwr_splitkd.tiers.edge.chain.cloud_link import Stepped

WAIT_S = 10.0


def answer(loss: float = 1.0) -> CloudAnswer:
    return CloudAnswer(gradient=None, tokens=None, loss=loss, reference_loss=None, num_tokens=1)


class World:
    """Iterations with a clock and a cloud of the test's own."""

    def __init__(self, devices: list[int], quorum: float = 1.0, straggler_timeout_s: float = 5.0) -> None:
        self.now_s = 100.0
        self.steps: list[list[tuple[int, int]]] = []
        self.iterations = Iterations(
            devices, self._step, quorum=quorum, straggler_timeout_s=straggler_timeout_s, clock=lambda: self.now_s
        )
        self.step_error: BaseException | None = None

    def _step(self, contributions: list[tuple[int, int]]) -> Stepped:
        if self.step_error is not None:
            raise self.step_error
        self.steps.append(contributions)
        return Stepped(step=len(self.steps) - 1, learning_rate=0.1, grad_norm=1.0)

    def bring(self, device: int, step: int, loss: float = 1.0) -> None:
        given = answer(loss)
        assert self.iterations.take_part(device, step, lambda: given) is given

    def pass_s(self, seconds: float) -> None:
        """Move the clock, and let whoever waits look at it."""
        self.now_s += seconds
        with self.iterations._changed:
            self.iterations._changed.notify_all()


class Later:
    """A call on a thread of its own, with what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.result: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def waits(self) -> bool:
        """Whether it still waits after time enough to go on if it could."""
        self._thread.join(0.1)
        return self._thread.is_alive()

    def closed(self) -> Closed:
        self._thread.join(WAIT_S)
        assert isinstance(self.result, Closed), (self.result, self.error)
        return self.result

    def end(self) -> object:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.result


def test_everybody_is_waited_for_and_summed_in_the_order_of_positions() -> None:
    world = World([2, 0, 1])
    closing = Later(world.iterations.close_next)
    world.bring(2, 7)
    world.bring(0, 3, loss=4.0)
    world.pass_s(1e6)
    assert closing.waits()
    world.now_s = 102.5
    world.bring(1, 5)
    closed = closing.closed()
    assert world.steps == [[(0, 3), (1, 5), (2, 7)]]
    assert (list(closed.answers), closed.missed, closed.answers[0].loss) == ([0, 1, 2], (), 4.0)
    assert closed.seconds == 2.5 and closed.stepped.step == 0


def test_a_device_takes_part_in_an_iteration_once() -> None:
    world = World([0, 1])
    world.bring(0, 0)
    second = Later(lambda: world.bring(0, 1))
    assert second.waits()
    world.bring(1, 0)
    world.iterations.close_next()
    second.end()
    world.bring(1, 1)
    world.iterations.close_next()
    assert world.steps == [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]


def test_a_quorum_and_then_a_little_longer() -> None:
    world = World([0, 1, 2], quorum=0.6)
    closing = Later(world.iterations.close_next)
    world.bring(0, 0)
    world.pass_s(1000.0)
    assert closing.waits(), "one of three is no quorum"
    world.bring(2, 0)
    assert closing.waits()
    world.pass_s(4.9)
    assert closing.waits(), "the straggler still has 0.1 s"
    world.pass_s(0.2)
    closed = closing.closed()
    assert (world.steps, closed.missed) == ([[(0, 0), (2, 0)]], (1,))


def test_who_comes_within_the_time_for_stragglers_counts_at_once() -> None:
    world = World([0, 1, 2], quorum=0.6)
    closing = Later(world.iterations.close_next)
    world.bring(0, 0)
    world.bring(1, 0)
    world.pass_s(1.0)
    assert closing.waits()
    world.bring(2, 0)
    assert closing.closed().missed == ()


def test_a_late_batch_counts_in_the_iteration_in_which_it_arrives() -> None:
    world = World([0, 1], quorum=0.5, straggler_timeout_s=0.0)
    world.bring(0, 0)
    assert world.iterations.close_next().missed == (1,)  # type: ignore[union-attr]
    world.bring(1, 0, loss=9.0)
    world.bring(0, 1)
    closed = world.iterations.close_next()
    assert closed is not None and closed.missed == () and closed.answers[1].loss == 9.0
    assert world.steps == [[(0, 0)], [(0, 1), (1, 0)]]


def test_a_batch_that_is_at_the_cloud_when_an_iteration_closes_is_not_asked_for_twice() -> None:
    world = World([0, 1], quorum=0.5, straggler_timeout_s=0.0)
    at_cloud, come_back = threading.Event(), threading.Event()

    def ask() -> CloudAnswer:
        at_cloud.set()
        assert come_back.wait(WAIT_S)
        return answer()

    slow = Later(lambda: world.iterations.take_part(1, 0, ask))
    assert at_cloud.wait(WAIT_S)
    world.bring(0, 0)
    assert world.iterations.close_next().missed == (1,)  # type: ignore[union-attr]
    second = Later(lambda: world.bring(1, 1))
    assert second.waits(), "its first batch is still on its way"
    come_back.set()
    slow.end()
    world.bring(0, 1)
    world.iterations.close_next()
    second.end()
    assert world.steps == [[(0, 0)], [(0, 1), (1, 0)]]


def test_who_leaves_is_not_waited_for_and_what_it_brought_counts() -> None:
    world = World([0, 1, 2])
    closing = Later(world.iterations.close_next)
    world.bring(0, 0)
    world.bring(1, 0)
    world.iterations.leave(1)
    assert closing.waits()
    world.iterations.leave(2)
    assert closing.closed().missed == ()
    assert world.steps == [[(0, 0), (1, 0)]]


def test_a_quorum_is_one_of_those_who_are_left() -> None:
    world = World([0, 1, 2, 3], quorum=0.75, straggler_timeout_s=0.0)
    closing = Later(world.iterations.close_next)
    world.bring(0, 0)
    world.bring(1, 0)
    assert closing.waits(), "two of four"
    world.iterations.leave(3)
    assert closing.waits(), "two of three"
    world.iterations.leave(2)
    assert closing.closed().missed == ()


def test_who_joins_is_waited_for_from_then_on() -> None:
    world = World([0])
    world.bring(0, 0)
    world.iterations.close_next()
    world.iterations.join(1)
    world.bring(0, 1)
    closing = Later(world.iterations.close_next)
    assert closing.waits()
    world.bring(1, 0)
    closing.closed()
    assert world.steps == [[(0, 0)], [(0, 1), (1, 0)]]


def test_when_nobody_is_left_there_is_no_iteration() -> None:
    world = World([0, 1])
    closing = Later(world.iterations.close_next)
    world.iterations.leave(0)
    world.iterations.leave(1)
    assert closing.end() is None and closing.error is None
    assert world.steps == []


def test_after_the_end_whoever_comes_is_told_so() -> None:
    world = World([0, 1], quorum=0.5, straggler_timeout_s=0.0)
    world.bring(0, 0)
    waiting = Later(lambda: world.iterations.take_part(0, 1, answer))
    assert waiting.waits() and not world.iterations.over
    world.iterations.end()
    assert world.iterations.over
    assert waiting.end() is None and waiting.error is None
    assert world.iterations.take_part(1, 0, lambda: pytest.fail("the cloud was asked")) is None


def test_a_cloud_that_is_lost_ends_the_round_for_all() -> None:
    world = World([0, 1])
    world.step_error = PeerLostError("the cloud is away")
    world.bring(0, 0)
    waiting = Later(lambda: world.bring(0, 1))
    world.bring(1, 0)
    with pytest.raises(PeerLostError, match="the cloud is away"):
        world.iterations.close_next()
    waiting.end()
    assert isinstance(waiting.error, PeerLostError)
    with pytest.raises(PeerLostError, match="the cloud is away"):
        world.bring(1, 1)


def test_what_the_cloud_refuses_is_its_device_s_alone() -> None:
    world = World([0, 1])

    def refused() -> CloudAnswer:
        raise NonFiniteError("`hidden` has 3 of 9 values NaN")

    with pytest.raises(NonFiniteError, match="3 of 9"):
        world.iterations.take_part(1, 0, refused)
    world.iterations.leave(1)
    world.bring(0, 0)
    world.iterations.close_next()
    assert world.steps == [[(0, 0)]]


def test_twenty_devices_at_once() -> None:
    """On real threads: every batch counts once, and every iteration has all of them."""
    world = World(list(range(20)))

    def device(position: int) -> None:
        for step in range(10):
            time.sleep((position * 7 + step) % 5 / 1000)
            world.bring(position, step)

    threads = [threading.Thread(target=device, args=(n,), daemon=True) for n in range(20)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        world.iterations.close_next()
    for thread in threads:
        thread.join(WAIT_S)
    assert world.steps == [[(n, step) for n in range(20)] for step in range(10)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quorum": 0.0}, "`quorum` is 0.0; expected above 0"),
        ({"quorum": 1.5}, "`quorum` is 1.5"),
        ({"straggler_timeout_s": -1.0}, "`straggler_timeout_s` is -1.0; expected 0 or more"),
        ({"straggler_timeout_s": float("nan")}, "`straggler_timeout_s` is nan"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        World([0], **settings)
