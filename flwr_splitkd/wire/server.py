"""The edge's end of the data plane: a gRPC server that admits devices and hands their links over. Torch-free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc

from flwr_splitkd.errors import ConfigError, SplitKDError
from flwr_splitkd.wire import handshake
from flwr_splitkd.wire.address import ListenAddress, address_to_dial, is_loopback, parse_listen_address
from flwr_splitkd.wire.channel import channel_options
from flwr_splitkd.wire.credentials import Ticket, TlsFiles
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from flwr_splitkd.wire.v1 import dataplane_pb2_grpc as pb_grpc

__all__ = ["DataPlaneServer", "Session"]

_STOP_GRACE_S = 2.0
_MAX_NAME = 64
"""Characters of a device's own name that go into errors and logs."""


@dataclass(slots=True)
class Session:
    """One expected turn: first a ticket, then, once the device has shaken hands, a link.

    States: *expected* (`link` is None), *connected*, *ended* (`server.end` was called).
    """

    ticket: Ticket
    link: Link | None = None
    hello: pb.Hello | None = None
    used: bool = field(default=False, repr=False)

    @property
    def connected(self) -> bool:
        """Whether the device has shaken hands and its stream is open."""
        return self.link is not None and not self.link.closed


class DataPlaneServer:
    """Listens for devices, checks their Hello and keeps their links until the edge serves them.

    Parameters
    ----------
    data_address
        Where to listen: ``host:port``, ``host:first-last`` (the first free port) or ``host:0`` (any port).
    advertised_address
        What devices dial, ``host:port`` or a host alone; the listening address when not given.
    tls
        Certificate files; plaintext without them.
    insecure
        Allow plaintext on an address that is not loopback.
    software
        A line about this side for the device's log.
    max_sessions
        Streams that may be open at once.
    handshake_timeout_s
        Seconds that a new stream has for its Hello.
    clock
        Monotonic seconds, for the expiry of tickets.

    Raises
    ------
    ConfigError
        If the address is malformed or taken, or plaintext would leave this machine unasked.
    """

    def __init__(
        self,
        *,
        data_address: str = "127.0.0.1:0",
        advertised_address: str | None = None,
        tls: TlsFiles | None = None,
        insecure: bool = False,
        software: str = "",
        max_sessions: int = 64,
        handshake_timeout_s: float = 10.0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        listen = parse_listen_address(data_address)
        if tls is None and not insecure and not is_loopback(listen.host):
            raise ConfigError(
                f"`data_address` is {data_address!r} without TLS; expected certificate files (`tls`) where traffic "
                "leaves this machine. Pass `insecure=True` to send activations and weights in the clear."
            )
        self.changed = threading.Condition()
        self._limits = limits or Limits()
        self._software = software
        self._handshake_timeout_s = handshake_timeout_s
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._model: pb.ModelFingerprint | None = None
        self._codecs: tuple[int, ...] = ()
        self._pool = futures.ThreadPoolExecutor(max_sessions, thread_name_prefix="splitkd-data-plane")
        self._server = grpc.server(
            self._pool,
            options=channel_options(self._limits),
            maximum_concurrent_rpcs=max_sessions,
        )
        pb_grpc.add_DataPlaneServicer_to_server(_Servicer(self._serve), self._server)
        port = self._bind(listen, tls)
        self.address = address_to_dial(advertised_address, listen, port)
        self.root_certificate = tls.root() if tls else b""

    def start(self, *, model: pb.ModelFingerprint, codecs: tuple[int, ...]) -> None:
        """Begin to admit devices whose student is `model` and that know all of `codecs`."""
        self._model, self._codecs = model, codecs
        self._server.start()

    def expect(self, ticket: Ticket) -> Session:
        """Admit the ticket's holder, once."""
        session = Session(ticket)
        with self.changed:
            self._sessions[ticket.session_id] = session
        return session

    def end(self, session: Session) -> None:
        """Forget a session; its token opens nothing any more."""
        with self.changed:
            self._sessions.pop(session.ticket.session_id, None)
        if session.link is not None:
            session.link.close()

    def stop(self) -> None:
        """Close every stream and the port, and end the threads."""
        with self.changed:
            sessions = list(self._sessions.values())
        for session in sessions:
            self.end(session)
        # Not without a bound: after bytes that are no frame, gRPC (1.85) sometimes never calls a server stopped.
        self._server.stop(_STOP_GRACE_S).wait(2 * _STOP_GRACE_S)
        self._pool.shutdown(wait=False)  # gRPC leaves that to whoever made the pool

    def _bind(self, listen: ListenAddress, tls: TlsFiles | None) -> int:
        for port in listen.ports:
            try:
                if tls is None:
                    bound = self._server.add_insecure_port(listen.join(port))
                else:
                    bound = self._server.add_secure_port(listen.join(port), tls.server_credentials())
            except RuntimeError:  # gRPC's word for a port that is taken
                continue
            if bound:
                return int(bound)
        raise ConfigError(
            f"`data_address` is {listen.host} with the ports {listen.ports[0]}-{listen.ports[-1]}; none can be bound. "
            "Choose a free port, a range such as 9095-9105, or 0; check that the host is this machine's"
            + (", and that certificate and private key are PEM files of one pair." if tls else ".")
        )

    def _serve(self, frames: Iterator[pb.DeviceFrame], context: grpc.ServicerContext) -> Iterator[pb.EdgeFrame]:
        link = Link(pb.EdgeFrame, peer="a device that has not shaken hands", limits=self._limits, admitted=False)
        # Called when the stream ends in any way; without it a vanished peer would hold this thread forever.
        if not context.add_callback(lambda: link.lost("its stream ended")):
            return
        threading.Thread(target=_read, args=(link, frames), name="splitkd-reader", daemon=True).start()
        try:
            hello = link.receive("Hello", self._handshake_timeout_s).body
            self._admit(hello, link)
        except SplitKDError as error:
            link.fail(error)
        yield from link.outgoing()

    def _admit(self, hello: pb.Hello, link: Link) -> None:
        handshake.check_version(hello)
        with self.changed:
            session = self._sessions.get(hello.session_id)
            handshake.check_ticket(
                hello,
                session.ticket if session else None,
                used=session is not None and session.used,
                now_s=self._clock(),
            )
            if session is None or self._model is None:  # check_ticket refuses the former; start() sets the latter
                raise SplitKDError(f"Session {hello.session_id[:64]!r} cannot be served.")
            handshake.check_model(hello.student, self._model)
            handshake.check_codecs(hello.codecs, self._codecs)
            session.used = True
            # It goes into logs and files, and comes from outside.
            printable = "".join(char for char in hello.device_name if char.isprintable())
            hello.device_name = printable[:_MAX_NAME] or str(hello.node_id)
            link.admit(f"device {hello.device_name}")
            link.send(pb.Welcome(protocol_version=handshake.PROTOCOL_VERSION, software=self._software))
            session.hello, session.link = hello, link  # in this order: a link means connected
            self.changed.notify_all()


class _Servicer(pb_grpc.DataPlaneServicer):
    """Adapts the generated service to a function."""

    def __init__(
        self, serve: Callable[[Iterator[pb.DeviceFrame], grpc.ServicerContext], Iterator[pb.EdgeFrame]]
    ) -> None:
        self._serve = serve

    def Turn(self, request_iterator: Iterator[pb.DeviceFrame], context: grpc.ServicerContext) -> Iterator[pb.EdgeFrame]:
        """Serve one turn of one device."""
        return self._serve(request_iterator, context)


def _read(link: Link, frames: Iterator[pb.DeviceFrame]) -> None:
    try:
        link.incoming(frames)
    except grpc.RpcError:
        link.lost("its stream was cancelled or its connection dropped")
