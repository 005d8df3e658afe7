"""A turn's spans as trace events, for ui.perfetto.dev and chrome://tracing.

The format is Chrome's Trace Event Format in its array form, of which the closing bracket may be missing: so a run can append to
its trace, and one that was killed has left a trace that opens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from flwr_splitkd.telemetry.spans import LocatedSpan

__all__ = ["trace_events"]

_LANES = {"compute": 1, "uplink": 2, "downlink": 3}


def trace_events(spans: Iterable[LocatedSpan], *, device: str, pid: int, began_s: float) -> Iterator[dict[str, Any]]:
    """Events of one turn: a process for the edge and one for each device, with a lane for computing and one for what arrives.

    Parameters
    ----------
    spans
        By seconds from the turn's begin.
    device
        Its name.
    pid
        Number of the device's process in the trace, at least 1; the edge's is 0.
    began_s
        Seconds from the run's begin to the turn's.
    """
    for number, name in ((0, "edge"), (pid, f"device {device}")):
        yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}
        for lane, tid in _LANES.items():
            yield {"ph": "M", "name": "thread_name", "pid": number, "tid": tid, "args": {"name": lane}}
    for span in spans:
        yield {
            "ph": "X",
            "name": span.stage,
            "cat": span.where,
            "pid": 0 if span.where == "edge" else pid,
            "tid": _LANES[_lane(span)],
            "ts": round((began_s + span.start_s) * 1e6, 3),
            "dur": round(span.duration_s * 1e6, 3),
            "args": {"step": span.step, "microbatch": span.microbatch, "device": device},
        }


def _lane(span: LocatedSpan) -> str:
    """Where a message's tensors are received is the far end of its way."""
    if span.stage != "receive":
        return "compute"
    return "uplink" if span.where == "edge" else "downlink"
