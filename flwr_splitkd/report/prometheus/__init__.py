"""Metrics for operators, as Prometheus reads them; docs/how-to/metrics.md lists them.

=================  ===========================================================
``callback``       `PrometheusEndpoint`: serves a run for as long as it lasts
``cloud``          `CloudEndpoint`: serves a cloud for as long as it lives
``server``         HTTP: one address, nothing but numbers
``run_metrics``    what a run tells, as metrics
``cloud_metrics``  what a cloud's service has counted, as metrics
``families``       what both have in common
=================  ===========================================================

Needs the ``prometheus`` extra: ``pip install 'flwr_splitkd[prometheus]'``.
"""

from __future__ import annotations

from flwr_splitkd.report.prometheus.callback import PrometheusEndpoint
from flwr_splitkd.report.prometheus.cloud import CloudEndpoint
from flwr_splitkd.wire.metrics_address import MetricsAddress

__all__ = ["CloudEndpoint", "MetricsAddress", "PrometheusEndpoint"]
