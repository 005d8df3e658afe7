"""What an HTTP server says of itself: the time in its answer's head, and a SuperLink its version.

A SuperLink of Flower 1.41 speaks HTTP on its one port, and describes its API in ``/openapi.json``, which has its version. That of
Flower 1.30 speaks gRPC alone: it says neither version nor time.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

__all__ = ["Answer", "ask_http", "superlink_version"]

_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer.

    Parameters
    ----------
    status
        HTTP's.
    body
        At most 16 MiB of it.
    date_s
        What the server's clock said, in whole seconds since 1970, cut off; None if it did not say.
    before_s, after_s
        This machine's clock before it asked, and when the answer's head was there.
    """

    status: int
    body: bytes
    date_s: float | None
    before_s: float
    after_s: float


def ask_http(
    url: str, *, tls: ssl.SSLContext | None, timeout_s: float, clock: Callable[[], float] = time.time
) -> Answer:
    """Get a page, without proxies and redirections: it is this server whose answer counts.

    Parameters
    ----------
    url
        ``http`` or ``https``.
    tls
        Whom to trust with ``https``; the system's authorities when None.
    timeout_s
        For each step: connecting, each piece of the answer.
    clock
        Seconds since 1970.

    Raises
    ------
    OSError
        If there is no connection, no trust or no answer.
    http.client.HTTPException
        If the answer is not HTTP.
    """
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=timeout_s, context=tls or ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.connect()
        before_s = clock()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Cache-Control": "no-cache", "Connection": "close"})
        response = connection.getresponse()
        after_s = clock()
        body = response.read(_MOST_BYTES)
        date_s = _date(response.getheader("Date"))
        return Answer(status=response.status, body=body, date_s=date_s, before_s=before_s, after_s=after_s)
    finally:
        connection.close()


def superlink_version(base_url: str, *, tls: ssl.SSLContext | None, timeout_s: float) -> tuple[str | None, str]:
    """Ask a SuperLink for its version.

    Parameters
    ----------
    base_url
        Such as ``https://edge.local:8000``.
    tls, timeout_s
        As for `ask_http`.

    Returns
    -------
    version, why
        None, and why it is not known, if it does not say.
    """
    try:
        answer = ask_http(f"{base_url}/openapi.json", tls=tls, timeout_s=timeout_s)
    except (OSError, http.client.HTTPException) as error:
        return None, f"{base_url} does not say: {error or type(error).__name__}; that of Flower 1.30 speaks gRPC alone"
    try:
        about = json.loads(answer.body)["info"]
        if about["title"] != "SuperLink API":
            return None, f"{base_url} calls itself {about['title']!r}, not a SuperLink"
        return str(Version(about["version"])), ""
    except (ValueError, KeyError, TypeError, InvalidVersion):
        return None, f"{base_url} does not say: its /openapi.json is no description of an API (HTTP {answer.status})"


def _date(text: str | None) -> float | None:
    try:
        return None if text is None else parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
