"""Where an edge finds its cloud, and how it may be reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.address import is_loopback
from flwr_splitkd.wire.codec import CodecName, codec_code

__all__ = ["CloudAccess"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAccess:
    """Where the cloud is, and who asks.

    Parameters
    ----------
    address
        ``host:port`` of the cloud.
    edge, token
        This edge's name and secret, as in the cloud's configuration.
    task
        Which module this edge trains and uses.
    root_certificate
        PEM of the authority that signed the cloud's certificate; plaintext when empty.
    insecure
        Whether plaintext may leave this machine; secret, intermediate data and answers are then in the clear.
    patience_s
        Seconds that the cloud may be away before a round is given up.
    connect_timeout_s
        Seconds of one attempt to reach it.
    codec
        For intermediate data on the way up.
    reads_only
        Only asks: the session stands beside the one with which this edge trains, and cannot change the module.

    Raises
    ------
    ConfigError
        If a setting is out of range, or plaintext would leave this machine unasked.
    """

    address: str
    edge: str
    token: bytes = field(repr=False)
    task: str
    root_certificate: bytes = field(default=b"", repr=False)
    patience_s: float = 300.0
    connect_timeout_s: float = 20.0
    codec: CodecName = "none"
    reads_only: bool = False
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without the cloud."""
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(
                f"`address` of the cloud is {self.address!r}; expected host:port, e.g. 'cloud.example.com:9096'."
            )
        if not self.edge or not self.task:
            raise ConfigError(
                f"`edge` is {self.edge!r} and `task` is {self.task!r}; expected the names of both in the cloud's configuration."
            )
        if not self.token:
            raise ConfigError(
                f"`token` of edge {self.edge!r} has 0 bytes; expected the secret that the cloud has for it. Check its file."
            )
        if not self.patience_s >= 0:
            raise ConfigError(f"`patience_s` is {self.patience_s}; expected at least 0 seconds.")
        if not self.connect_timeout_s > 0:
            raise ConfigError(f"`connect_timeout_s` is {self.connect_timeout_s}; expected more than 0 seconds.")
        codec_code(self.codec)
        if not self.root_certificate and not self.insecure and not is_loopback(host.strip("[]")):
            raise ConfigError(
                f"`address` of the cloud is {self.address!r} without a root certificate; expected one (`root_certificate`) where "
                "traffic leaves this machine. Pass `insecure=True` to send secret, intermediate data and answers in the clear."
            )
