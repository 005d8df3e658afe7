"""Metrics of a cloud, for as long as it lives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from flwr_splitkd.report.prometheus.callback import require_library, say_where
from flwr_splitkd.wire.metrics_address import MetricsAddress

if TYPE_CHECKING:
    from flwr_splitkd.tiers.cloud.counters import CloudReading

__all__ = ["CloudEndpoint"]

_log = logging.getLogger(__name__)

_PACKAGES = ("flwr_splitkd", "torch", "transformers", "peft", "grpcio")


class CloudEndpoint:
    """Serves the metrics of a `CloudService` over HTTP until it is closed.

    Parameters
    ----------
    where
        The address; it is bound at once, so that one which is taken shows before a model is loaded.

    Raises
    ------
    ConfigError
        If the address is taken, a file cannot be used, or the library is not installed.
    """

    def __init__(self, where: MetricsAddress) -> None:
        require_library()
        from flwr_splitkd.report.prometheus.cloud_metrics import cloud_metrics
        from flwr_splitkd.report.prometheus.families import Asked, new_registry
        from flwr_splitkd.report.prometheus.server import MetricsServer

        self._read: Callable[[], CloudReading] | None = None
        registry = new_registry(_versions())
        registry.register(Asked(lambda: cloud_metrics(self._read() if self._read is not None else None)))
        self._server = MetricsServer(where, registry)
        self.address = self._server.address
        say_where(self._server.url, where, _log)

    def watch(self, read: Callable[[], CloudReading]) -> None:
        """From now on there is a cloud; `read` is `CloudService.reading`."""
        self._read = read

    def close(self) -> None:
        """Close the port."""
        self._server.close()
        self._read = None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
