"""Where metrics are served, and to whom: an address, and certificates if there are any. Torch-free."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.address import is_loopback, parse_listen_address

__all__ = ["MetricsAddress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsAddress:
    """An address for Prometheus to read from. Nothing but numbers can be had there, and nothing can be changed.

    Parameters
    ----------
    address
        ``host:port``; port 0 for any that is free.
    certificate, private_key
        PEM files; without them the numbers travel in the clear.
    client_ca
        PEM file of an authority: only who has a certificate of it may read.

    Raises
    ------
    ConfigError
        If the address is malformed, or one file is named without another that it needs.
    """

    address: str
    certificate: str | Path | None = None
    private_key: str | Path | None = None
    client_ca: str | Path | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything."""
        wrong = ConfigError(
            f"`metrics address` is {self.address!r}; expected host:port, e.g. '127.0.0.1:9464', or port 0 for any that is free."
        )
        try:
            listen = parse_listen_address(self.address)
        except ConfigError as error:
            raise wrong from error
        if len(listen.ports) != 1:  # Prometheus has to know it
            raise wrong
        if bool(self.certificate) != bool(self.private_key) or (self.client_ca and not self.certificate):
            files = (str(self.certificate or ""), str(self.private_key or ""), str(self.client_ca or ""))
            raise ConfigError(
                f"The files for metrics (certificate, private key, client's authority) are {files}; expected certificate and "
                "private key together, and the authority only with them. Name both, or leave all out for plaintext."
            )

    @property
    def host(self) -> str:
        """Where to listen."""
        return parse_listen_address(self.address).host

    @property
    def port(self) -> int:
        """The port on it."""
        return parse_listen_address(self.address).ports[0]

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches this machine can read: beyond loopback, and without certificates of clients."""
        return not is_loopback(self.host) and not self.client_ca

    def tls(self) -> ssl.SSLContext | None:
        """Read the files; None for plaintext.

        Raises
        ------
        ConfigError
            If a file cannot be read, or is not what it should be.
        """
        if not self.certificate or not self.private_key:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With a password that is wrong for any: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.private_key, password="")
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"The files for metrics are certificate {str(self.certificate)!r}, private key {str(self.private_key)!r} and "
                f"client's authority {str(self.client_ca or '')!r}, which cannot be used: {error}. Expected readable PEM files, "
                "certificate and private key of one pair."
            ) from error
        return context
