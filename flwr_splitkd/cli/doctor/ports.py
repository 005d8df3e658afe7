"""Ports to listen on, and addresses to dial."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from flwr_splitkd.cli.doctor.finding import Finding, ok, wrong
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.address import ListenAddress, parse_listen_address

__all__ = ["Peer", "check_port", "check_reachable", "parse_peer", "parse_port"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Somebody to dial."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_peer(text: str) -> Peer:
    """Read ``host:port`` or ``[ipv6]:port``.

    Raises
    ------
    ConfigError
        If it is none.
    """
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or "/" in bare or (":" in bare and bare == host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"The address is {text!r}; expected host:port, such as edge.local:8000 or [fd00::10]:8000.")
    return Peer(host=bare, port=int(port))


def parse_port(text: str) -> ListenAddress:
    """Read ``9095``, ``9095-9105``, or the same with a host before it.

    Raises
    ------
    ConfigError
        If it is none.
    """
    return parse_listen_address(text if ":" in text else f"0.0.0.0:{text}")


def check_port(address: ListenAddress) -> Finding:
    """Whether something can listen there: on one port of a range, as the data plane takes the first that is free.

    Parameters
    ----------
    address
        As `data_address`; port 0 is always free.
    """
    ports = f"{address.ports[0]}-{address.ports[-1]}" if len(address.ports) > 1 else str(address.ports[0])
    name = f"port {address.host}:{ports}"
    taken: list[str] = []
    for port in address.ports:
        error = _bind(address.host, port)
        if error is None:
            return ok(name, "; ".join([*taken, f"{port or 'any'} is free"]), "a free port")
        if error.errno != errno.EADDRINUSE:
            return wrong(
                name, f"{error.strerror or error}", expected="a port to listen on", remedy=_why_not(error, port)
            )
        taken.append(f"{port} is taken by {_owner(port)}")
    return wrong(
        name,
        "; ".join(taken),
        expected="a free port",
        remedy="End that process if it is left over from a run, or choose another port or a range, such as 9095-9105 "
        "(`data_address`, `address` of a cloud).",
    )


def check_reachable(
    what: str, peer: Peer, *, timeout_s: float, tls: ssl.SSLContext | None, listens: str
) -> Iterator[Finding]:
    """Whether a connection can be made and, with TLS, whether the other side's certificate is trusted.

    Parameters
    ----------
    what
        Of the peer, such as ``"SuperLink"``.
    peer
        To dial.
    timeout_s
        For connecting, and for the handshake.
    tls
        Whom to trust; None connects without TLS.
    listens
        What makes the peer listen, for the remedy.
    """
    name = f"{what} {peer}"
    try:
        connection = socket.create_connection((peer.host, peer.port), timeout=timeout_s)
    except OSError as error:
        yield _unreachable(name, peer, error, timeout_s, listens)
        return
    with connection:
        where = connection.getpeername()[0]
        yield ok(name, f"reached{'' if where == peer.host else f' at {where}'}", "a connection")
        if tls is None:
            return
        try:
            with tls.wrap_socket(connection, server_hostname=peer.host) as secured:
                yield ok(
                    f"TLS of {name}", f"{secured.version()}, its certificate is trusted", "a certificate for this name"
                )
        except (OSError, ValueError) as error:
            yield _untrusted(f"TLS of {name}", peer, error)


def _unreachable(name: str, peer: Peer, error: OSError, timeout_s: float, listens: str) -> Finding:
    if isinstance(error, socket.gaierror):
        return wrong(
            name,
            f"{peer.host!r} cannot be resolved: {error.strerror}",
            expected="a name that this machine can resolve",
            remedy=f"Give {peer.host} an entry in the DNS or in /etc/hosts, or dial its address.",
        )
    if isinstance(error, TimeoutError):
        return wrong(
            name,
            f"no answer within {timeout_s:g} s",
            expected="a connection",
            remedy=f"Open port {peer.port} in {peer.host}'s firewall and in those between, and check the address.",
        )
    if isinstance(error, ConnectionRefusedError):
        return wrong(
            name,
            "closed: the machine answers, and nothing listens on that port",
            expected="a connection",
            remedy=f"{listens} Check the port; a process that listens on 127.0.0.1 alone is not seen from other machines.",
        )
    return wrong(
        name,
        error.strerror or str(error),
        expected="a connection",
        remedy="Check the address, this machine's network and its routes.",
    )


def _untrusted(name: str, peer: Peer, error: OSError | ValueError) -> Finding:
    if isinstance(error, ssl.SSLCertVerificationError):
        return wrong(
            name,
            error.verify_message,
            expected=f"a certificate for {peer.host}, in force, of an authority in the root certificate",
            remedy=f"flwr-splitkd certificates FOLDER --host {peer.host}, on the edge; give its ca.crt to the devices, and start "
            "what serves it anew.",
        )
    why = getattr(error, "reason", None) or str(error) or type(error).__name__
    return wrong(
        name,
        f"no handshake: {why}",
        expected="TLS",
        remedy="If that side is meant to be in the clear, leave out the root certificate; otherwise start it with its certificate.",
    )


def _bind(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what ended a minute ago is not in the way
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return error
    return None


def _why_not(error: OSError, port: int) -> str:
    if error.errno == errno.EACCES:
        return f"Ports below 1024 are for root; choose one above, such as 9095 in place of {port}."
    return "Choose an address of this machine, or 0.0.0.0 for all of them, with `advertised_address` for the devices."


def _owner(port: int) -> str:
    """Who listens there, as far as this user may know."""
    try:
        import psutil
    except ImportError:
        return "some process (psutil, which knows which, is not installed)"
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                this = ", this one" if connection.pid == os.getpid() else ""
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid}{this})"
    except (psutil.Error, OSError):
        pass  # it may have ended meanwhile, or macOS lets root alone look
    return "a process that this user may not see"
