"""Metrics of several devices as one."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import MetricRecord, RecordDict

from flwr_splitkd.errors import ConfigError

__all__ = ["MetricsAggregator", "scalar_metrics", "weighted_mean"]

MetricsAggregator = Callable[[list[RecordDict], str], MetricRecord]
"""As in Flower's FedAvg: contents of the replies and the key of the weight, to one record."""


def weighted_mean(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Weighted mean of every scalar metric; lists are left out.

    Raises
    ------
    ConfigError
        If a reply lacks the weight, or the replies have different keys.
    """
    replies = [scalar_metrics(record) for content in contents for record in content.metric_records.values()]
    keys = set(replies[0]) if replies else set()
    for reply in replies:
        if set(reply) != keys or weighted_by_key not in reply:
            raise ConfigError(
                f"A reply has the metrics {sorted(reply)}; expected {sorted(keys | {weighted_by_key})} in every reply. "
                "Return what SplitKDClient returns, or add the same metrics on every device."
            )
    total = sum(reply[weighted_by_key] for reply in replies) or 1.0
    return MetricRecord(
        {
            key: sum(reply[weighted_by_key] * reply[key] for reply in replies) / total
            for key in sorted(keys - {weighted_by_key})
        }
    )


def scalar_metrics(metrics: MetricRecord | None) -> dict[str, float]:
    """The scalar metrics of a record, none of None."""
    return {key: float(value) for key, value in (metrics or {}).items() if isinstance(value, int | float)}
