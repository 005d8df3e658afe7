"""A cloud's service as metrics: what it has counted, asked for when somebody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics_core import Metric

from flwr_splitkd.faults import FAULTS, RESTARTED, RESUMED
from flwr_splitkd.report.prometheus.families import counters, gauges
from flwr_splitkd.tiers.cloud.counters import CloudReading, TaskReading

__all__ = ["cloud_metrics"]

_FAULTS = (
    *(("stream", kind) for kind in ("corrupt", "handshake", "protocol", "timeout", RESUMED, RESTARTED)),
    *((where, kind) for where in ("session", "request") for kind in FAULTS),
)
_OF_TASKS: tuple[tuple[str, str, Callable[[TaskReading], float | None]], ...] = (
    ("next_step", "Steps of the module in its life, less those that were taken back.", lambda one: one.next_step),
    ("uncommitted_steps", "Steps that are not durable yet.", lambda one: one.uncommitted_steps),
    ("waiting_gradients", "Gradients that wait for a step.", lambda one: one.waiting_gradients),
    ("loss", "Of the newest batch that trained.", lambda one: one.loss),
)
_SUMS_OF_TASKS: tuple[tuple[str, str, Callable[[TaskReading], float]], ...] = (
    ("steps", "Steps of the module.", lambda one: one.num_steps),
    ("commits", "Times that the module was made durable.", lambda one: one.num_commits),
    ("tokens", "Labels that counted in training.", lambda one: one.num_tokens),
)


def cloud_metrics(reading: CloudReading | None) -> Iterator[Metric]:
    """Metrics of one moment; of a cloud that is still loading its model there is but one."""
    yield gauges("splitkd_cloud_ready", "1 once edges can come.", [], {(): float(reading is not None)})
    if reading is None:
        return
    sessions: dict[Any, float] = {**reading.sessions}
    yield gauges("splitkd_cloud_sessions", "Edges that are connected.", ["task", "edge", "purpose"], sessions)
    yield gauges("splitkd_cloud_open_streams", "Connections of edges.", [], {(): reading.num_streams})
    moved: dict[Any, float] = {"uplink": reading.received_bytes, "downlink": reading.sent_bytes}
    yield counters("splitkd_cloud_bytes", "From and to edges.", ["direction"], moved)
    faults: dict[Any, float] = {**dict.fromkeys(_FAULTS, 0), **reading.faults}
    yield counters("splitkd_cloud_faults", "What went wrong, and what was overcome.", ["where", "kind"], faults)
    tasks = reading.tasks
    requests: dict[Any, float] = {
        (task, *labels): count for task, one in tasks.items() for labels, count in one.requests.items()
    }
    yield counters("splitkd_cloud_requests", "What edges asked for.", ["task", "request", "outcome"], requests)
    stages_s: dict[Any, float] = {
        (task, stage): seconds for task, one in tasks.items() for stage, seconds in one.stages_s.items()
    }
    yield counters("splitkd_cloud_stage_seconds", "In the queue, and computing.", ["task", "stage"], stages_s)
    for name, text, total in _SUMS_OF_TASKS:
        yield counters(f"splitkd_cloud_{name}", text, ["task"], {task: total(one) for task, one in tasks.items()})
    for name, text, value in _OF_TASKS:
        found = {task: known for task, one in tasks.items() if (known := value(one)) is not None}
        yield gauges(f"splitkd_cloud_{name}", text, ["task"], found)
