"""Where the data plane listens and what devices dial: parsing and the rule for plaintext. Torch-free."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from flwr_splitkd.errors import ConfigError

__all__ = ["ListenAddress", "address_to_dial", "is_loopback", "is_on_this_machine", "parse_listen_address"]


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A host and the ports to try on it, in order; port 0 lets the system choose."""

    host: str
    ports: range

    def join(self, port: int) -> str:
        """The address with one port, IPv6 hosts in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def parse_listen_address(text: str) -> ListenAddress:
    """Parse ``host:port``, ``host:first-last`` or ``[ipv6]:port``.

    Raises
    ------
    ConfigError
        If host or ports are malformed.
    """
    host, separator, ports = text.rpartition(":")
    first, dash, last = ports.partition("-")
    last = last if dash else first
    if not separator or not host or not first.isdecimal() or not last.isdecimal():
        raise ConfigError(
            f"`data_address` is {text!r}; expected host:port, host:first-last or host:0, e.g. '0.0.0.0:9095-9105'."
        )
    low, high = int(first), int(last)
    if not low <= high <= 65535:
        raise ConfigError(f"`data_address` has the ports {low}-{high}; expected 0..65535, the lower one first.")
    return ListenAddress(host.strip("[]"), range(low, high + 1))


def address_to_dial(advertised: str | None, listen: ListenAddress, port: int) -> str:
    """What devices dial: the advertised host and port, with the bound port where it names none.

    Raises
    ------
    ConfigError
        If nothing is advertised and the listening address is a wildcard, which nobody can dial.
    """
    if advertised is None:
        if _is_wildcard(listen.host):
            raise ConfigError(
                f"`data_address` listens on {listen.host} and `advertised_address` is not given; expected the host name "
                "or address by which devices reach this machine. Pass `advertised_address`."
            )
        return listen.join(port)
    if advertised.count(":") > 1 and not advertised.startswith("["):  # a bare IPv6 address has no port
        return f"[{advertised}]:{port}"
    has_port = advertised.rpartition(":")[2].isdecimal()
    return advertised if has_port else f"{advertised}:{port}"


def is_loopback(host: str) -> bool:
    """Whether traffic to the host cannot leave this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_on_this_machine(address: str) -> bool:
    """Whether ``host:port`` is one of this machine's own addresses; a name that cannot be looked up is not."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if is_loopback(host):
        return True
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)  # of a datagram socket this sends nothing; it chooses the way
                if probe.getsockname()[0] == target[0]:
                    return True
    except (OSError, UnicodeError):  # a host that is no name
        return False
    return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
