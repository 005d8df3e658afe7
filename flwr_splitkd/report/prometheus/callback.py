"""Metrics of a run, for as long as it lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flwr_splitkd.callbacks import Callback, LiveReading
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.metrics_address import MetricsAddress

if TYPE_CHECKING:
    from flwr_splitkd.report.prometheus.run_metrics import RunMetrics
    from flwr_splitkd.report.prometheus.server import MetricsServer
    from flwr_splitkd.store import RunFolder
    from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
    from flwr_splitkd.strategies.result import TurnRecord

__all__ = ["PrometheusEndpoint", "require_library", "say_where"]

_log = logging.getLogger("flwr")
"""Flower's own logger, where a run tells of itself."""


class PrometheusEndpoint(Callback):
    """Serves the metrics of a run of `SplitKD` or `SCCT` over HTTP, from its beginning to its end.

    ::

        SplitKD(..., callbacks=[*default_callbacks(), PrometheusEndpoint("127.0.0.1:9464")])

    Parameters
    ----------
    address
        ``host:port``, or a `MetricsAddress` for TLS. Whoever reaches it can read: names of devices, losses, how much travels and
        when.
    max_devices
        Devices that have series of their own: the first so many that a run meets. Of the others only the sums tell, and
        ``splitkd_devices_without_series`` how many they are. Each has five.

    Raises
    ------
    ConfigError
        If a setting is out of range, or the library is not installed; in `on_start`, which ends the run before its first
        turn, if the address is taken or a file cannot be used.
    """

    def __init__(
        self,
        address: str | MetricsAddress = "127.0.0.1:9464",
        *,
        max_devices: int = 128,
    ) -> None:
        self.where = MetricsAddress(address=address) if isinstance(address, str) else address
        if max_devices < 0:
            raise ConfigError(f"`max_devices` is {max_devices}; expected 0, for no series of devices, or more.")
        require_library()
        self._max_devices = max_devices
        self._metrics: RunMetrics | None = None
        self._server: MetricsServer | None = None

    @property
    def address(self) -> str | None:
        """Where it listens now; None before a run and after it."""
        return self._server.address if self._server is not None else None

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        """Begin to serve.

        Raises
        ------
        ConfigError
            If the address is taken or a file cannot be used.
        """
        from flwr_splitkd.report.prometheus.run_metrics import RunMetrics
        from flwr_splitkd.report.prometheus.server import MetricsServer

        self.on_end(None)  # of a run that ended without a word
        metrics = RunMetrics(run.path.name, config, max_devices=self._max_devices)
        self._server = MetricsServer(self.where, metrics.registry)
        self._metrics = metrics
        say_where(self._server.url, self.where, _log, "\t├──> ")

    def on_live(self, read: Callable[[], LiveReading]) -> None:
        """From now on sessions, bytes and faults of connections are known, too."""
        if self._metrics is not None:
            self._metrics.watch(read)

    def on_turn(self, turn: TurnRecord) -> None:
        """Count a turn."""
        if self._metrics is not None:
            self._metrics.turn(turn)

    def on_epoch(self, epoch: EpochRecord) -> None:
        """Count an epoch of the chain."""
        if self._metrics is not None:
            self._metrics.epoch(epoch)

    def on_device(self, device: DeviceRecord) -> None:
        """Count a device's part in a round of the chain."""
        if self._metrics is not None:
            self._metrics.device(device)

    def on_evaluation(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Show the newest evaluation."""
        if self._metrics is not None:
            self._metrics.evaluation(metrics)

    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Count a round."""
        if self._metrics is not None:
            self._metrics.round(server_round)

    def on_end(self, error: BaseException | None) -> None:
        """Close the port, and let go of the run."""
        server, self._server, self._metrics = self._server, None, None
        if server is not None:
            server.close()


def require_library() -> None:
    """Say what to install, if it is not there.

    Raises
    ------
    ConfigError
        If prometheus_client cannot be found.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigError(
            "Metrics were asked for and prometheus_client is not installed; expected it in this environment: "
            "pip install 'flwr_splitkd[prometheus]', or leave the address for metrics out."
        )


def say_where(url: str, where: MetricsAddress, log: logging.Logger, indent: str = "") -> None:
    """Log where metrics are, and who can read them if that may be more than was meant."""
    log.info("%sMetrics at %s", indent, url)
    if where.is_open:
        log.warning(
            "%sMetrics at %s can be read by whoever reaches this machine; keep the port to Prometheus in the firewall, or have it "
            "show a certificate",
            indent,
            url,
        )
