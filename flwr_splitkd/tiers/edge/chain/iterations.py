"""When an iteration is over: one step of the cloud's module over what the devices brought (SCCT, equation (9)).

The devices of an iteration work at the same time, each on a thread of its own. A device takes part in an iteration once; its
next batch goes to the cloud when that iteration is closed. Without a quorum an iteration waits for everybody. With one, it
waits for that share of the devices, then a little longer, and closes. The batch of a straggler then counts in the iteration in
which it arrives, if the round has another one, with a gradient by the module as it was when it arrived.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.tiers.edge.chain.cloud_link import CloudAnswer, Stepped

__all__ = ["Closed", "Iterations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """An iteration that is over.

    Parameters
    ----------
    answers
        What the cloud said to each device that took part, by the device's position.
    missed
        Positions of the devices that were still at work.
    seconds
        That it took.
    stepped
        The module's step.
    """

    answers: dict[int, CloudAnswer]
    missed: tuple[int, ...]
    seconds: float
    stepped: Stepped


@dataclass(slots=True)
class _State:
    expected: set[int] = field(default_factory=set)
    at_cloud: set[int] = field(default_factory=set)
    contributions: dict[int, tuple[int, CloudAnswer]] = field(default_factory=dict)
    over: bool = False
    error: BaseException | None = None


class Iterations:
    """The iterations of one round.

    Parameters
    ----------
    devices
        Positions of those that are expected, present or on their way.
    step
        Takes the module's step over ``(device, step)`` pairs.
    quorum
        Share of the expected devices that closes an iteration, above 0 to 1; 1 waits for all.
    straggler_timeout_s
        Seconds that the others have once the quorum is there.
    clock
        Monotonic seconds.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """

    def __init__(
        self,
        devices: Iterable[int],
        step: Callable[[list[tuple[int, int]]], Stepped],
        *,
        quorum: float = 1.0,
        straggler_timeout_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < quorum <= 1:
            raise ConfigError(f"`quorum` is {quorum}; expected above 0, and at most 1 to wait for every device.")
        if not straggler_timeout_s >= 0:
            raise ConfigError(f"`straggler_timeout_s` is {straggler_timeout_s}; expected 0 or more seconds.")
        self._step, self._quorum, self._patience_s, self._clock = step, quorum, straggler_timeout_s, clock
        self._changed = threading.Condition()
        self._state = _State(expected=set(devices))

    # ---- the devices' threads

    def take_part(self, device: int, step: int, ask: Callable[[], CloudAnswer]) -> CloudAnswer | None:
        """Bring a batch to the cloud when it is this device's time; None if the round is over before.

        Parameters
        ----------
        ask
            Sends the intermediate data and waits for the answer.

        Raises
        ------
        SplitKDError
            What `ask` raises, or why the round failed.
        """
        state = self._state
        with self._changed:
            self._changed.wait_for(lambda: state.over or state.error or device not in state.at_cloud)
            if state.error is not None:
                raise state.error
            if state.over:
                return None
            state.at_cloud.add(device)
        answer = ask()
        with self._changed:
            state.contributions[device] = (step, answer)
            self._changed.notify_all()
        return answer

    @property
    def over(self) -> bool:
        """Whether the round is over."""
        return self._state.over or self._state.error is not None

    def join(self, device: int) -> None:
        """Expect a device from the next iteration on."""
        with self._changed:
            self._state.expected.add(device)

    def leave(self, device: int) -> None:
        """Expect a device no longer: it has left, is lost, or has taken all its steps. What it brought counts."""
        with self._changed:
            self._state.expected.discard(device)
            self._changed.notify_all()

    # ---- the round's thread

    def close_next(self) -> Closed | None:
        """Wait for the next iteration's devices and take the module's step; None when nobody is left.

        Raises
        ------
        SplitKDError
            If the cloud is lost; the devices hear of it too.
        """
        started_s, state = self._clock(), self._state
        with self._changed:
            self._wait_for_quorum()
            brought = dict(sorted(state.contributions.items()))
            missed = tuple(sorted(state.expected - set(brought)))
            if not brought:
                return None
        try:
            stepped = self._step([(device, step) for device, (step, _) in brought.items()])
        except BaseException as error:
            self.end(error)
            raise
        with self._changed:
            for device in brought:
                del state.contributions[device]
                state.at_cloud.discard(device)
            self._changed.notify_all()
        answers = {device: answer for device, (_, answer) in brought.items()}
        return Closed(answers=answers, missed=missed, seconds=self._clock() - started_s, stepped=stepped)

    def end(self, error: BaseException | None = None) -> None:
        """The round is over: who comes with another batch is told so, or why it failed."""
        with self._changed:
            self._state.over, self._state.error = True, error
            self._changed.notify_all()

    def _wait_for_quorum(self) -> None:
        """With the lock held: wait for everybody, or for the quorum and then a little longer."""
        state, since_s = self._state, None
        while not state.expected <= set(state.contributions):
            there = len(state.expected & set(state.contributions))
            if there < math.ceil(self._quorum * len(state.expected)) or not there:
                since_s = None
                self._changed.wait()
                continue
            since_s = self._clock() if since_s is None else since_s
            left_s = since_s + self._patience_s - self._clock()
            if left_s <= 0:
                return
            self._changed.wait(left_s)
