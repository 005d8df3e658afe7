"""HTTP for Prometheus: one address, one registry, nothing but numbers."""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.address import ListenAddress
from flwr_splitkd.wire.metrics_address import MetricsAddress

__all__ = ["MetricsServer"]

_log = logging.getLogger(__name__)

_REQUEST_S = 10.0
"""Seconds that a reader has for each part of its request; Prometheus itself gives up after 10."""
_MOST_READERS = 16
"""At the same time: each holds a thread."""
_POLL_S = 0.1


class MetricsServer:
    """Serves a registry until it is closed.

    Parameters
    ----------
    where
        The address, and certificates if there are any.
    registry
        What is served.

    Attributes
    ----------
    address
        ``host:port``, with the port that was bound.

    Raises
    ------
    ConfigError
        If the address cannot be bound, or the certificates cannot be used.
    """

    def __init__(self, where: MetricsAddress, registry: CollectorRegistry) -> None:
        tls = where.tls()
        try:
            self._server = _Server(where.host, where.port, tls)
        except OSError as error:
            raise ConfigError(
                f"`metrics address` is {where.address!r}, which cannot be bound: {error.strerror or error}. Expected a free port "
                "of this machine; choose another one (0 for any), or end what listens there (`ss -ltnp` shows it)."
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self.address = ListenAddress(where.host, range(0)).join(self._server.server_port)
        self.url = f"{'http' if tls is None else 'https'}://{self.address}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="splitkd-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Close the port; the next one may listen there at once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each reader, so that one which stands still holds up nobody, the end of a run least of all.

    prometheus_client's own server shakes hands over TLS on the thread that accepts connections: whoever connects and says
    nothing would stop it, and `shutdown` would wait for ever.
    """

    daemon_threads = True
    request_queue_size = 2 * _MOST_READERS
    # Newer Pythons would let two servers share a port: half of the readings would be another run's.
    allow_reuse_port = False

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self._tls = tls
        self._places = threading.BoundedSemaphore(_MOST_READERS)
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]  # of IPv6 there is more, for links alone

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service who this is: for seconds, where there is none.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(_REQUEST_S)
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                request.do_handshake()
        except OSError as error:
            _log.debug("A reader of metrics from %s was not understood: %s", client_address, error)
            self.shutdown_request(request)
        else:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("A reader of metrics from %s got no answer", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Not on standard error, every few seconds."""
