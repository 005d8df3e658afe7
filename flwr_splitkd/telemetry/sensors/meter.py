"""Joules of this machine between two moments.

From a counter of energy (NVML, RAPL, zeus) it is the difference. Where there is only power (a Jetson's rails, GPUs older than
Volta) a thread samples it, and the joules are the integral by the trapezoid rule:

    E = sum_i (P_i + P_(i-1)) / 2 * (t_i - t_(i-1))

Each moment that is asked about is a sample too. A part of which something is not known in between (a counter that fell, power
that was not read for longer than `_LONGEST_GAP_S`, more than any part can take, a sleep of the machine) makes the joules unknown,
not smaller. So does a span in which nothing has moved, or a counter that did before: no machine takes nothing. A counter that
has never moved does not count, and is not named among the parts.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.telemetry.sensors.jetson import JetsonSensors
from flwr_splitkd.telemetry.sensors.reading import Reading, Sensors

__all__ = ["Energy", "EnergyMeter", "Moment"]

_COUNTER_LOOK_S = 30.0
"""Seconds between two looks at counters: RAPL's shortest range is 65 kJ, so that one that starts anew is seen up to 2 kW."""
_LONGEST_GAPS, _LONGEST_GAP_S = 10, 5.0
"""Power is taken to be a line between two samples that are up to 10 intervals, or 5 s, apart: so long a busy interpreter may keep
the thread from its work."""
_MOST_W, _STEP_S = 1e4, 1.0
"""No GPU, package or module takes 10 kW; a counter may come late by up to 1 s, and then has more of them."""
_ASLEEP_S = 1.0
"""Seconds of sleep that are seen. Counters of processors start anew in it, which is not to be told from reaching their range."""
_TRIES, _TRY_AGAIN_S = 3, 0.02
"""A node that has no value at one moment mostly has one at the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What was measured.

    Parameters
    ----------
    joules
        None if they are not known.
    parts
        What is in them, such as ``"VDD_IN"`` or ``"NVIDIA H200 0"``; everything else of the machine is not.
    reason
        Why they are not known; empty otherwise.
    """

    joules: float | None
    parts: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """A moment as a meter has seen it, for `EnergyMeter.joules`; of no use to another meter.

    Parameters
    ----------
    at_s
        Monotonic seconds.
    totals_j, losses
        Of each part, from the meter's start on: joules, and how often something of them was lost.
    reason
        Why one of them is not known; empty otherwise.
    """

    at_s: float
    totals_j: tuple[float, ...]
    losses: tuple[int, ...]
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Part:
    """A part of the machine: its last value, the joules so far, and how often something of them was lost."""

    name: str
    quantity: str
    value: float
    at_s: float
    total_j: float = 0.0
    missing: str = ""
    losses: int = 0
    lost: str = ""

    def take(self, reading: Reading, now_s: float, longest_gap_s: float) -> None:
        odd = _odd(reading)
        if reading.value is None or odd:
            self.missing = f"{self.name}: {odd}"
            return
        gap_s, change = now_s - self.at_s, reading.value - self.value
        if self.quantity == "power_w":
            if gap_s > longest_gap_s:
                self.lose(f"the power of {self.name} was not read for {gap_s:.1f} s")
            else:
                self.total_j += (self.value + reading.value) / 2 * gap_s
        elif change < 0:
            self.lose(f"the counter of {self.name} fell from {self.value:g} to {reading.value:g} J")
        elif change > _MOST_W * (gap_s + _STEP_S):
            self.lose(f"the counter of {self.name} rose by {change:g} J in {gap_s:.1f} s; nothing takes {_MOST_W:g} W")
        else:
            self.total_j += change
        self.value, self.at_s, self.missing = reading.value, now_s, ""

    def lose(self, why: str) -> None:
        """Make the joules of all spans unknown that have begun."""
        self.losses, self.lost = self.losses + 1, why


def _odd(reading: Reading) -> str:
    """Why a reading is no power or counter; empty if it is one."""
    if reading.value is None:
        return reading.reason
    if not math.isfinite(reading.value):
        return f"it says {reading.value}; expected a number."
    if reading.quantity == "power_w" and not 0 <= reading.value <= _MOST_W:
        return f"it says {reading.value:g} W; expected 0 to {_MOST_W:g}."
    return ""


def _seconds_asleep() -> float:
    """How long this machine has slept since it was booted; 0 where the system does not tell."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return 0.0 if boot_time is None else time.clock_gettime(boot_time) - time.clock_gettime(time.CLOCK_MONOTONIC)


@dataclass(slots=True, eq=False)
class _Source:
    """Sensors with the parts of theirs that are measured."""

    sensors: Sensors
    parts: dict[str, _Part] = field(default_factory=dict)
    looked_s: float = -math.inf

    @property
    def samples(self) -> bool:
        """Whether power has to be sampled."""
        return any(part.quantity == "power_w" for part in self.parts.values())

    def look(self, clock: Callable[[], float], longest_gap_s: float) -> None:
        readings = {reading.name: reading for reading in self.sensors.energy()}
        self.looked_s = now_s = clock()
        for name, part in self.parts.items():
            reading = readings.get(name)
            if reading is None or reading.quantity != part.quantity:
                part.missing = f"{name}: its {part.quantity} is not there any more."
            else:
                part.take(reading, now_s, longest_gap_s)


class EnergyMeter:
    """Measures joules of this machine, of as many overlapping spans as there are. May be used by several threads.

    ::

        with EnergyMeter(find_sensors()) as meter:
            began = meter.begin()
            work()
            energy = meter.joules(began)

    A sample of a Jetson's rails took 30 to 180 µs of processor (x86-64, recorded trees in memory); see
    docs/explanation/telemetry.md.

    They are the machine's, whoever used them: other processes, and what it takes when idle, are in them. Where a Jetson tells
    what its whole module takes, that alone is measured, since the module has the GPU and the processors in it.

    Parameters
    ----------
    sensors
        As `find_sensors` returns them.
    interval_s
        Seconds between two samples of power. Counters are looked at when asked about, and every 30 s.
    clock
        Monotonic seconds.
    asleep
        Seconds that the machine has slept, from some moment on.

    Raises
    ------
    ConfigError
        If `interval_s` is not more than 0.
    """

    def __init__(
        self,
        sensors: Sequence[Sensors],
        interval_s: float = 0.1,
        *,
        clock: Callable[[], float] = time.monotonic,
        asleep: Callable[[], float] = _seconds_asleep,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise ConfigError(f"`interval_s` is {interval_s}; expected more than 0 seconds.")
        self._interval_s, self._clock, self._asleep = interval_s, clock, asleep
        self._asleep_s = asleep()
        self._longest_gap_s = max(_LONGEST_GAP_S, _LONGEST_GAPS * interval_s)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self.left_out: tuple[str, ...] = ()
        self._sources = self._find_parts(sensors)

    def _find_parts(self, sensors: Sequence[Sensors]) -> list[_Source]:
        left_out: list[str] = []
        sources: list[_Source] = []
        for one in sensors:
            source = _Source(one)
            for reading in one.energy():
                if odd := _odd(reading):
                    left_out.append(f"{reading.name}: {odd}")
                elif reading.value is not None:
                    source.parts[reading.name] = _Part(reading.name, reading.quantity, reading.value, self._clock())
            sources.append(source)
        modules = [source for source in sources if source.parts and isinstance(source.sensors, JetsonSensors)]
        self.left_out = tuple(left_out)
        return modules or [source for source in sources if source.parts]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what is measured; none if nothing can be."""
        return tuple(part.name for part in self._parts())

    @property
    def reason(self) -> str:
        """Why nothing can be measured; empty if something is."""
        if self._sources:
            return ""
        return "; ".join(self.left_out) or (
            "no sensors of power or energy were found. Jetsons, processors with RAPL and, with pip install "
            "'flwr_splitkd[energy]', GPUs have some; virtual machines and containers mostly hide them."
        )

    def begin(self) -> Moment:
        """Begin a span: what `joules` shall count from."""
        with self._lock:
            missing = self._look()
            parts = self._parts()
            totals_j, losses = tuple(part.total_j for part in parts), tuple(part.losses for part in parts)
            moment = Moment(self._clock(), totals_j, losses, missing)
            if self._sources and self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._watch, name="flwr-splitkd-energy", daemon=True)
                self._thread.start()
        return moment

    def joules(self, since: Moment) -> Energy:
        """Return the joules from a moment until now; the span goes on."""
        if not self._sources:
            return Energy(joules=None, reason=self.reason)
        with self._lock:
            missing = since.reason or self._look()
            parts = self._parts()
            before = zip(parts, since.losses, strict=True)
            lost = missing or next((part.lost for part, losses in before if part.losses > losses), "")
            spent_j = [part.total_j - before_j for part, before_j in zip(parts, since.totals_j, strict=True)]
            stood = [part.quantity == "energy_j" and joules <= 0 for part, joules in zip(parts, spent_j, strict=True)]
            moved = [part for part, still in zip(parts, stood, strict=True) if not still]
            late = [part for part, still in zip(parts, stood, strict=True) if still and part.total_j > 0]
            if not lost and (late or sum(spent_j) <= 0):
                span_s, names = self._clock() - since.at_s, ", ".join(part.name for part in late or parts)
                lost = f"{names} did not move in {span_s:.3f} s: the span is shorter than their step"
        if lost:
            return Energy(joules=None, parts=self.parts, reason=lost)
        return Energy(joules=sum(spent_j), parts=tuple(part.name for part in moved))

    def close(self) -> None:
        """End the thread that samples."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> EnergyMeter:
        """Return the meter."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close it."""
        self.close()

    def _parts(self) -> list[_Part]:
        return [part for source in self._sources for part in source.parts.values()]

    def _look(self) -> str:
        """Look at everything now; why a part has no value, if one has none even after some tries."""
        missing = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_TRY_AGAIN_S)
            self._look_at(self._sources)
            missing = next((part.missing for part in self._parts() if part.missing), "")
            if not missing:
                break
        return missing

    def _watch(self) -> None:
        samples = any(source.samples for source in self._sources)
        while not self._stop.wait(self._interval_s if samples else _COUNTER_LOOK_S):
            with self._lock:
                due_s = self._clock() - _COUNTER_LOOK_S
                self._look_at([one for one in self._sources if one.samples or one.looked_s <= due_s])

    def _look_at(self, sources: Sequence[_Source]) -> None:
        for source in sources:
            source.look(self._clock, self._longest_gap_s)
        asleep_s = self._asleep()
        if asleep_s - self._asleep_s > _ASLEEP_S:
            for part in self._parts():
                part.lose(f"the machine slept for {asleep_s - self._asleep_s:.0f} s")
            self._asleep_s = asleep_s
