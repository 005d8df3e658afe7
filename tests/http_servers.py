"""HTTP servers for tests: with a clock of their own, and such as describe themselves like a SuperLink."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["serving"]


@contextmanager
def serving(pages: dict[str, Any], *, ahead_s: float | None = 0.0, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve pages on loopback; yields the port.

    Parameters
    ----------
    pages
        What is sent as JSON, by path; other paths are not found.
    ahead_s
        Of this machine's clock; None for a server that does not tell its time.
    tls
        With certificate and key.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in pages
            body = json.dumps(pages[self.path]).encode() if known else b""
            self.send_response_only(200 if known else 404)
            if ahead_s is not None:
                self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
