from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from flwr_splitkd.errors import ConfigError, PeerLostError
from flwr_splitkd.tiers.fair import FairExecutor, FairQueue

WAIT_S = 10.0


def served(queue: FairQueue[object], seconds: dict[str, float], until_s: float) -> Counter[str]:
    """Service of flows that always have something waiting, with jobs of these lengths."""
    had: Counter[str] = Counter()
    for flow in seconds:
        queue.push(flow, None)
    while sum(had.values()) < until_s:
        flow, _ = queue.pop()
        assert isinstance(flow, str)
        had[flow] += seconds[flow]  # type: ignore[assignment]
        queue.push(flow, None)
        queue.charge(flow, seconds[flow])
    return had


# ---- the queue


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_as_the_weights(seed: int) -> None:
    """Within what one job of each takes, however long the jobs of a flow are."""
    rng = random.Random(seed)
    flows = [f"flow {number}" for number in range(4)]
    weights = {flow: rng.uniform(0.1, 5.0) for flow in flows}
    seconds = {flow: rng.uniform(0.01, 2.0) for flow in flows}
    queue: FairQueue[object] = FairQueue()
    queue.set_weights(weights)
    had = served(queue, seconds, 300.0)
    for one in flows:
        for other in flows:
            ahead = had[one] / weights[one] - had[other] / weights[other]
            assert ahead <= seconds[one] / weights[one] + seconds[other] / weights[other] + 1e-6
    assert queue.service_s == pytest.approx(dict(had))


def test_a_flow_that_was_idle_is_owed_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push("busy", f"busy {number}")
    for _ in range(50):
        queue.charge(queue.pop()[0], 1.0)
    for number in range(100):
        queue.push("late", f"late {number}")
    order = []
    for _ in range(20):
        flow, _ = queue.pop()
        queue.charge(flow, 1.0)
        order.append(flow)
    assert 9 <= order.count("late") <= 11


def test_each_flow_is_first_in_first_out() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(6):
        queue.push(number % 2, number)
    popped = []
    while len(queue):
        flow, item = queue.pop()
        queue.charge(flow, 1.0)
        popped.append(item)
    assert popped == [0, 1, 2, 3, 4, 5]  # and among equals, who came first


def test_a_flow_that_is_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.push("gone", number)
    queue.push("stays", 3)
    assert queue.forget("gone") == [0, 1, 2] and queue.forget("gone") == []
    assert queue.pop() == ("stays", 3) and len(queue) == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_that_cannot_be(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"The weight of 'a' is {weight}; expected a finite number above 0"):
        FairQueue().set_weights({"a": weight})


# ---- the thread


@pytest.fixture
def executor() -> Iterator[FairExecutor]:
    one = FairExecutor("splitkd-test")
    yield one
    one.close()


class Held:
    """A job at work until it is let go; what is asked for meanwhile waits."""

    def __init__(self, executor: FairExecutor) -> None:
        self._started, self._go = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=executor.run, args=("held", self._job))]
        self.threads[0].start()
        assert self._started.wait(WAIT_S)

    def _job(self) -> None:
        self._started.set()
        assert self._go.wait(WAIT_S)

    def go(self) -> None:
        self._go.set()
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


def waiting(executor: FairExecutor, held: Held, flow: str, said: list[object]) -> None:
    """Have somebody wait for a job; what becomes of it goes to `said`."""

    def ask() -> None:
        try:
            said.append(executor.run(flow, lambda: flow))
        except PeerLostError as error:
            said.append(str(error))

    before = len(executor._queue)
    held.threads.append(threading.Thread(target=ask))
    held.threads[-1].start()
    while len(executor._queue) == before:
        threading.Event().wait(0.001)


def test_results_and_exceptions_go_to_whoever_asked(executor: FairExecutor) -> None:
    assert executor.run("a", lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        executor.run("a", lambda: 1 // 0)
    with pytest.raises(KeyboardInterrupt):  # it ends nobody but whoever asked
        executor.run("a", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert executor.run("b", lambda: threading.current_thread().name) == "splitkd-test"
    assert set(executor.service_s()) == {"a", "b"}


def test_jobs_of_a_flow_that_is_over(executor: FairExecutor) -> None:
    held, said = Held(executor), []  # type: ignore[var-annotated]
    waiting(executor, held, "gone", said)
    waiting(executor, held, "stays", said)
    executor.forget("gone")
    held.go()
    assert sorted(said) == ["This flow is over.", "stays"]


def test_close_lets_the_job_at_work_end_and_fails_the_rest() -> None:
    executor = FairExecutor("splitkd-test")
    held, said = Held(executor), []  # type: ignore[var-annotated]
    waiting(executor, held, "late", said)
    closing = threading.Thread(target=executor.close)
    closing.start()
    while not said:
        threading.Event().wait(0.001)
    assert said == ["This side is being shut down."] and closing.is_alive()
    held.go()
    closing.join(WAIT_S)
    assert not closing.is_alive() and "splitkd-test" not in {one.name for one in threading.enumerate()}
    with pytest.raises(PeerLostError, match="shut down"):
        executor.run("late", lambda: None)
    executor.close()


def test_a_job_may_close_the_executor() -> None:
    executor = FairExecutor("splitkd-test")
    executor.run("a", executor.close)
    with pytest.raises(PeerLostError):
        executor.run("a", lambda: None)


def test_weights_are_kept_to(executor: FairExecutor) -> None:
    """By a clock that says a second for each job."""
    seconds = iter(range(1 << 20))
    executor._clock = lambda: float(next(seconds))
    executor.set_weights({"big": 3.0, "small": 1.0})
    held, said = Held(executor), []  # type: ignore[var-annotated]
    for _ in range(12):
        waiting(executor, held, "big", said)
        waiting(executor, held, "small", said)
    held.go()
    assert 8 <= executor.service_s()["big"] <= 12 and len(said) == 24
