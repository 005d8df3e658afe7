"""What the metrics of an edge and of a cloud have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["Asked", "counters", "gauges", "new_registry", "number"]

Labels = TypeVar("Labels", bound="str | tuple[str, ...]")


class Asked(Collector):
    """Metrics that are worked out anew for each reader.

    Parameters
    ----------
    collect
        Works them out.
    """

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """None beforehand: nothing is looked at before somebody reads."""
        return ()


def new_registry(versions: Mapping[str, str]) -> CollectorRegistry:
    """A registry of its own, with what is the same for everybody: versions, and this process's memory and time."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    # A label cannot have every character that a package's name can.
    labels = {name.replace("-", "_"): version for name, version in versions.items()}
    Info("splitkd_build", "Versions of what runs here.", registry=registry).info(labels)
    return registry


def counters(name: str, text: str, labels: Iterable[str], values: Mapping[Labels, float]) -> CounterMetricFamily:
    """A family of counters, by the values of their labels."""
    family = CounterMetricFamily(name, text, labels=list(labels))
    for key, value in values.items():
        family.add_metric([key] if isinstance(key, str) else list(key), value)
    return family


def gauges(name: str, text: str, labels: Iterable[str], values: Mapping[Labels, float]) -> GaugeMetricFamily:
    """A family of gauges, by the values of their labels."""
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for key, value in values.items():
        family.add_metric([key] if isinstance(key, str) else list(key), value)
    return family


def number(value: object) -> float | None:
    """A value as a number; None if it is none, such as one that could not be measured."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
