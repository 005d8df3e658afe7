"""The clock of the edge's GPU over a run: the one that was chosen for a turn, a lower one between turns, its own at the end.

::

    free ── begin(f) ──> turn ── end() ──> pause ── begin(f) ──> turn ...
     ^                                       │
     └────── begin(None), free(), close() ───┘

A pause has the turn's clock, or a lower one where that saves energy. Whoever does not come to `close` is followed by `atexit`,
by SIGTERM's handler, or by the next process.

What cannot be done is said once, in the log and in `ServerClock.refusal`, and the GPU keeps its own clock from then on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_splitkd.costs import ServerProfile
from flwr_splitkd.errors import ClockError
from flwr_splitkd.schedulers.idle import idle_frequency
from flwr_splitkd.tiers.edge.clock.journal import ClockJournal, Entry
from flwr_splitkd.tiers.edge.clock.leaving import before_leaving
from flwr_splitkd.tiers.edge.clock.setter import ClockSetter, at_or_above

__all__ = ["ServerClock", "TurnClock"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnClock:
    """What became of the clock that was chosen for a turn.

    Parameters
    ----------
    set_frequency_hz
        What the GPU was told: the least of its clocks that is no slower than what was chosen. None if it was not told any.
    read_frequency_hz
        What it told at the end of the turn, which may be less: temperature and power come first. None if it did not tell.
    refusal
        Why it was not told any; empty if it was.
    """

    set_frequency_hz: float | None = None
    read_frequency_hz: float | None = None
    refusal: str = ""

    def to_json(self) -> dict[str, Any]:
        """As part of a line of ``metrics.jsonl``."""
        line: dict[str, Any] = {
            "set_frequency_hz": self.set_frequency_hz,
            "read_frequency_hz": self.read_frequency_hz,
        }
        return {**line, "clock_refusal": self.refusal} if self.refusal else line


class ServerClock:
    """Sets the clock of the edge's GPU, and puts it back.

    From here on it is this process's; whatever another tool had locked before is gone where it cannot be read, as with NVML.

    Parameters
    ----------
    server
        What the edge draws, by which its clock between turns is chosen.
    find
        Finds who sets the clock; may raise a `ClockError`.
    journals
        Where it is remembered that the clock is set; `clocks_folder` when not given.
    """

    def __init__(self, server: ServerProfile, find: Callable[[], ClockSetter], *, journals: Path | None = None) -> None:
        self._server = server
        # A signal may come while the clock is being set, on the same thread.
        self._mutex = threading.RLock()
        self._setter: ClockSetter | None = None
        self._journal: ClockJournal | None = None
        self._limits: Mapping[str, int] = {}
        self._locked_hz: float | None = None
        self._pause_s, self._switch_s = math.inf, 0.0
        self._paused_since_s: float | None = None
        self._stay: Callable[[], None] = lambda: None
        self.refusal = ""
        try:
            setter = find()
            try:
                self._take(setter, journals)
            except BaseException:
                setter.close()
                raise
        except ClockError as error:
            self._refuse(error)

    @property
    def works(self) -> bool:
        """Whether the clock is what was chosen, as far as is known."""
        return self._setter is not None

    # ---- in a run

    def begin(self, frequency_hz: float | None) -> None:
        """Set the clock for a turn; None leaves it to the GPU."""
        with self._mutex:
            if self._paused_since_s is not None:
                self._pause_s, self._paused_since_s = time.monotonic() - self._paused_since_s, None
            if frequency_hz is None:
                self._release()
            else:
                self._hold(frequency_hz)

    def end(self) -> TurnClock:
        """Say what became of the clock in the turn that ends, and set the one to wait at."""
        with self._mutex:
            read_hz = self._setter.read_hz() if self._setter is not None else None
            held = TurnClock(set_frequency_hz=self._locked_hz, read_frequency_hz=read_hz, refusal=self.refusal)
            self._paused_since_s = time.monotonic()
            held_hz = self._locked_hz or self._server.nominal_frequency_hz
            # A pause is expected to be as long as the last one was.
            wanted_hz = idle_frequency(self._server, self._pause_s, self._switch_s, held_hz=held_hz)
            if wanted_hz < held_hz:
                self._hold(wanted_hz)
            return held

    def free(self) -> None:
        """Leave the clock to the GPU until the next turn: for work between turns that is no pause."""
        with self._mutex:
            self._paused_since_s = None
            self._release()

    def close(self) -> None:
        """Put the clock back for good; what comes later does nothing."""
        self._close("The run is over.")

    # ---- inside

    def _close(self, why: str) -> None:
        with self._mutex:
            if self._setter is not None:
                self._put_back()
                self.refusal = why

    def _take(self, setter: ClockSetter, journals: Path | None) -> None:
        """Begin with the GPU's own clock, whoever has left it set; this also shows whether it may be set at all."""
        journal = ClockJournal(setter.key, journals)
        try:
            left = journal.left()
            limits = setter.limits() if left is None else left.limits
            if left is None:
                journal.write(Entry.of_this_process(setter, limits))
            try:
                setter.reset(limits)
            except ClockError:
                if left is None:  # nothing was changed
                    journal.remove()
                raise
            if left is not None:
                _log.warning(
                    "The clock of %s, which process %d had left set, is put back.", setter.gpu, left.process_id
                )
                limits = limits or setter.limits()
                journal.write(Entry.of_this_process(setter, limits))
        except BaseException:
            journal.close()
            raise
        self._setter, self._journal, self._limits = setter, journal, limits
        self._stay = before_leaving(lambda: self._close("The process is ending."))

    def _hold(self, wanted_hz: float) -> None:
        if self._setter is None:
            return
        try:
            hz = at_or_above(wanted_hz, self._setter.supported_hz)
            if hz == self._locked_hz:
                return
            started_s = time.monotonic()
            self._setter.lock(hz)
        except ClockError as error:
            self._give_up(error)
            return
        self._switch_s = max(self._switch_s, time.monotonic() - started_s)
        self._locked_hz = hz

    def _release(self) -> None:
        if self._setter is None or self._locked_hz is None:
            return
        try:
            self._setter.reset(self._limits)
        except ClockError as error:
            self._give_up(error)
            return
        self._locked_hz = None

    def _give_up(self, error: ClockError) -> None:
        self._put_back()
        self._refuse(error)

    def _refuse(self, error: ClockError) -> None:
        self.refusal = str(error)
        _log.warning("The frequency of the edge's GPU is not set, and training goes on at its own. %s", error)

    def _put_back(self) -> None:
        """Put the clock back; the journal stays if that fails, for the next process."""
        setter, journal = self._setter, self._journal
        if setter is None or journal is None:
            return
        # Until it is back this process stays responsible: Ctrl-C, or a signal that exits, may come in between, and whoever is
        # called then (`atexit`, the handler) has to find what to put back.
        try:
            setter.reset(self._limits)
            journal.remove()
        except ClockError as error:
            if self._setter is setter:
                _log.warning(
                    "The clock of %s may still be set: %s The next run that sets it puts it back first, and so does "
                    "`flwr-splitkd restore-clocks`.",
                    setter.gpu,
                    error,
                )
        if self._setter is not setter:
            return  # a signal's handler has been here in the meantime, and has done all of it
        self._setter = self._journal = self._locked_hz = None
        self._stay()
        journal.close()
        setter.close()
