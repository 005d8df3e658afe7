"""Weighted-fair computing: one thread works for many flows, each in proportion to its weight.

The edge realises the compute shares of its devices with it (SCCT, section III.B.3: a device gets ``alpha_n`` of the edge),
the cloud those of its tasks. Torch runs on this one thread alone, so nothing of one flow's pass disturbs another's, the
random generator included.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from flwr_splitkd.errors import ConfigError, PeerLostError

__all__ = ["FairExecutor", "FairQueue"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class FairQueue(Generic[Item]):
    """Start-time fair queueing: who has had the least service for its weight comes next. Pure: it reads no clock.

    A flow's virtual time is its service divided by its weight. One that comes back after a while starts at the virtual time
    of whoever was served last: what it did not ask for is not owed to it.
    """

    def __init__(self) -> None:
        self._weights: dict[Hashable, float] = {}
        self._virtual: dict[Hashable, float] = {}
        self._waiting: dict[Hashable, deque[Item]] = {}
        self._now = 0.0
        self.service_s: dict[Hashable, float] = {}

    def __len__(self) -> int:
        """Items that wait."""
        return sum(len(items) for items in self._waiting.values())

    def set_weights(self, weights: Mapping[Any, float]) -> None:
        """Weights from now on; a flow that is not named has weight 1.

        Raises
        ------
        ConfigError
            If one is not a number above 0.
        """
        for flow, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise ConfigError(f"The weight of {flow!r} is {weight}; expected a finite number above 0.")
        self._weights = dict(weights)

    def push(self, flow: Hashable, item: Item) -> None:
        """Let an item wait."""
        waiting = self._waiting.setdefault(flow, deque())
        if not waiting:
            self._virtual[flow] = max(self._virtual.get(flow, 0.0), self._now)
        waiting.append(item)

    def pop(self) -> tuple[Hashable, Item]:
        """Take the next item; among equals, the flow that came first."""
        flow = min((flow for flow, items in self._waiting.items() if items), key=lambda flow: self._virtual[flow])
        self._now = self._virtual[flow]
        items = self._waiting[flow]
        item = items.popleft()
        if not items:
            del self._waiting[flow]  # so that among equals whoever waits longest comes first
        return flow, item

    def charge(self, flow: Hashable, seconds: float) -> None:
        """Count what the last item of a flow took."""
        self._virtual[flow] = self._virtual.get(flow, self._now) + seconds / self._weights.get(flow, 1.0)
        self.service_s[flow] = self.service_s.get(flow, 0.0) + seconds

    def forget(self, flow: Hashable) -> list[Item]:
        """Drop a flow; return what was waiting."""
        self._virtual.pop(flow, None)
        return list(self._waiting.pop(flow, ()))


class FairExecutor:
    """A thread that runs jobs in the order of a `FairQueue`.

    Parameters
    ----------
    name
        Of the thread.
    clock
        Monotonic seconds, for what a job takes.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queue: FairQueue[tuple[Callable[[], Any], Future[Any]]] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, flow: Hashable, job: Callable[[], Result]) -> Result:
        """Wait for a job's turn, and for its result.

        Raises
        ------
        PeerLostError
            If the executor is closed before the job begins.
        BaseException
            Whatever the job raises.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise PeerLostError("This side is being shut down.")
            self._queue.push(flow, (job, future))
            self._changed.notify_all()
        return future.result()

    def set_weights(self, weights: Mapping[Any, float]) -> None:
        """Set the flows' weights from now on; see `FairQueue.set_weights`."""
        with self._changed:
            self._queue.set_weights(weights)

    def service_s(self) -> dict[Hashable, float]:
        """Seconds that each flow has had so far."""
        with self._changed:
            return dict(self._queue.service_s)

    def forget(self, flow: Hashable) -> None:
        """Drop a flow that is over; jobs of it that still wait fail."""
        with self._changed:
            for _, future in self._queue.forget(flow):
                future.set_exception(PeerLostError("This flow is over."))

    def close(self) -> None:
        """Let the job at work end; those that wait fail."""
        with self._changed:
            self._closed = True
            while len(self._queue):
                self._queue.pop()[1][1].set_exception(PeerLostError("This side is being shut down."))
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._queue))
                if not len(self._queue):
                    return
                flow, (job, future) = self._queue.pop()
            started_s = self._clock()
            try:
                result = job()
            except BaseException as error:  # whoever waits raises it
                self._charge(flow, started_s)
                future.set_exception(error)
            else:
                self._charge(flow, started_s)
                future.set_result(result)
            del job, future  # they hold tensors

    def _charge(self, flow: Hashable, started_s: float) -> None:
        with self._changed:
            self._queue.charge(flow, self._clock() - started_s)
