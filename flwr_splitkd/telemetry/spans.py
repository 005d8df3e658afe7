"""Where the seconds of a turn's steps go: stages as spans, on a device and on the edge.

A recorder sums the seconds of each stage in any case. When it traces, it keeps every span as well, in the columns of a
``Spans`` message, by its machine's own monotonic clock. `clock_offset_s` tells how far two machines' clocks are apart.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["STAGES", "LocatedSpan", "Span", "SpanRecorder", "clock_offset_s", "locate_spans"]

STAGES = (
    "load",
    "forward",
    "encode",
    "wait",
    "backward",
    "optimizer",
    "teacher",
    "decode",
    "receive",
    "student",
)
"""Stages of a step. On a device: load, teacher, forward, encode, wait, decode, backward, optimizer. On the edge: wait, decode,
teacher, student (forward pass, loss and backward pass), encode, optimizer. On either: receive, a message's tensors on their
way to it."""

MOST_SPANS = 100_000
"""Spans that a recorder keeps of one turn; what comes after is counted alone."""


class Span(NamedTuple):
    """A stage of a micro-batch: `start_s` by the monotonic clock of the machine that recorded it."""

    stage: str
    step: int
    microbatch: int
    start_s: float
    duration_s: float


class LocatedSpan(NamedTuple):
    """A span with its place: ``"device"`` or ``"edge"``."""

    where: str
    stage: str
    step: int
    microbatch: int
    start_s: float
    duration_s: float


@dataclass
class SpanRecorder:
    """Sums seconds by stage, and keeps the spans when it traces.

    Parameters
    ----------
    tracing
        Whether to keep every span.
    first_step
        From which steps are counted in the columns.
    """

    tracing: bool = False
    first_step: int = 0

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()  # messages may be encoded on a thread of their own
        self.totals_s: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.num_dropped = 0
        self._stages, self._steps, self._microbatches = array("B"), array("L"), array("L")
        self._starts_s, self._durations_s = array("d"), array("d")

    @contextmanager
    def span(self, stage: str, step: int, microbatch: int = 0) -> Iterator[None]:
        """Time the ``with`` block."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, step, microbatch, started_s, time.monotonic() - started_s)

    def add(self, stage: str, step: int, microbatch: int, start_s: float, duration_s: float) -> None:
        """Take a span that was timed elsewhere."""
        with self._lock:
            self.totals_s[stage] += duration_s
            if not self.tracing:
                return
            if len(self._stages) >= MOST_SPANS:
                self.num_dropped += 1
                return
            self._stages.append(STAGES.index(stage))
            self._steps.append(step - self.first_step)
            self._microbatches.append(microbatch)
            self._starts_s.append(start_s)
            self._durations_s.append(duration_s)

    def spans(self) -> list[Span]:
        """Every span that was kept, in the order in which they ended."""
        columns = zip(self._stages, self._steps, self._microbatches, self._starts_s, self._durations_s, strict=True)
        return [
            Span(STAGES[stage], step + self.first_step, microbatch, start_s, duration_s)
            for stage, step, microbatch, start_s, duration_s in columns
        ]


def clock_offset_s(sent: Sequence[tuple[float, float]], answered: Sequence[tuple[float, float]]) -> float:
    """Seconds to add to a device's clock to have the edge's.

    Of every exchange the device knows when it sent and when it had the answer, and the edge when it had the message and when
    it answered. The exchange with the least time on its way says it best (Mills 1991, the clock filter of NTP): its two ways are
    taken to be of equal length, so the error is at most half of that time.

    Parameters
    ----------
    sent
        (sent by the device's clock, received by the edge's) of each message, in seconds.
    answered
        (sent by the edge's clock, received by the device's) of each answer, in the same order.

    Raises
    ------
    ValueError
        If there is no exchange.
    """
    exchanges = [
        (edge_out - edge_in, device_in - device_out, edge_in - device_out, edge_out - device_in)
        for (device_out, edge_in), (edge_out, device_in) in zip(sent, answered, strict=True)
    ]
    if not exchanges:
        raise ValueError("There are 0 exchanges; expected at least 1 to compare two clocks by.")
    best = min(exchanges, key=lambda item: item[1] - item[0])
    return (best[2] + best[3]) / 2


def locate_spans(edge: Sequence[Span], device: Sequence[Span], *, began_s: float) -> tuple[LocatedSpan, ...]:
    """Put both sides' spans on one clock: seconds from `began_s` of the edge's, in order.

    A micro-batch leaves the device when its smashed data are encoded and has come when they are received; its answer likewise.
    Without one such exchange the clocks cannot be compared, and the edge's spans are all there is.
    """
    left, came = _ends(device, "encode"), _ends(edge, "receive")
    answered, back = _ends(edge, "encode"), _ends(device, "receive")
    whole = sorted(left.keys() & came.keys() & answered.keys() & back.keys())
    located = [LocatedSpan("edge", *span._replace(start_s=span.start_s - began_s)) for span in edge]
    if whole:
        offset_s = clock_offset_s(
            [(left[key], came[key]) for key in whole], [(answered[key], back[key]) for key in whole]
        )
        located += [LocatedSpan("device", *span._replace(start_s=span.start_s + offset_s - began_s)) for span in device]
    return tuple(sorted(located, key=lambda span: span.start_s))


def _ends(spans: Sequence[Span], stage: str) -> dict[tuple[int, int], float]:
    """When the stage of each micro-batch ended, the last time."""
    return {(span.step, span.microbatch): span.start_s + span.duration_s for span in spans if span.stage == stage}
