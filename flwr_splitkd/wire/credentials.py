"""Who may open a stream: one-turn tickets, and TLS from certificate files. Torch-free."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from flwr_splitkd.errors import ConfigError

__all__ = ["ResumeTokens", "Ticket", "TlsFiles", "new_ticket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The right of one node to one turn of one round of one run.

    Parameters
    ----------
    session_id
        Public name of the turn.
    token
        The secret; reaches the device through Flower's own channel and is never logged.
    run_id, node_id
        Flower's identifiers.
    server_round
        From 1.
    expires_s
        When the right ends, in seconds of the edge's monotonic clock.
    """

    session_id: str
    token: bytes = field(repr=False)
    run_id: int
    node_id: int
    server_round: int
    expires_s: float

    def opened_by(self, token: bytes) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.token, token)


def new_ticket(*, run_id: int, node_id: int, server_round: int, expires_s: float) -> Ticket:
    """Draw a ticket with an unguessable token."""
    return Ticket(
        session_id=secrets.token_hex(8),
        token=secrets.token_bytes(32),
        run_id=run_id,
        node_id=node_id,
        server_round=server_round,
        expires_s=expires_s,
    )


class ResumeTokens:
    """The secrets that open a turn's next stream, after one was lost; each is good for one stream.

    A new token may be lost with the connection that carried it. So the one before it stays good until the device has said
    something on the stream that brought the new one.
    """

    def __init__(self) -> None:
        self._valid: list[bytes] = []

    def renew(self) -> bytes:
        """Draw the next token."""
        token = secrets.token_bytes(32)
        self._valid = [*self._valid[-1:], token]
        return token

    def settle(self, token: bytes) -> None:
        """The device has this token: if it is the newest, no other one opens anything."""
        if self._valid[-1:] == [token]:
            self._valid = [token]

    def opened_by(self, token: bytes) -> bool:
        """Compare in constant time."""
        matches = [hmac.compare_digest(valid, token) for valid in self._valid]
        return any(matches)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files; the ones that the SuperLink was started with will do.

    Parameters
    ----------
    certificate
        The edge's certificate, valid for the advertised host name.
    private_key
        Its key.
    root_certificate
        The authority that signed it; sent to the devices through Flower so that they can check the edge.
    """

    certificate: str | Path
    private_key: str | Path
    root_certificate: str | Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Read the files for a gRPC server."""
        pair = (_read(self.private_key, "private_key"), _read(self.certificate, "certificate"))
        return grpc.ssl_server_credentials([pair])

    def root(self) -> bytes:
        """The authority's certificate, for the devices."""
        return _read(self.root_certificate, "root_certificate")


def _read(path: str | Path, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS `{name}` is {str(path)!r}; it cannot be read: {error.strerror}.") from error
