"""The edge's end of the data plane: a gRPC server that admits devices and hands their links over. Torch-free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial

import grpc

from flwr_splitkd.errors import ConfigError, CorruptFrameError, PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.wire import handshake
from flwr_splitkd.wire.address import ListenAddress, address_to_dial, is_loopback, parse_listen_address
from flwr_splitkd.wire.channel import channel_options
from flwr_splitkd.wire.credentials import ResumeTokens, Ticket, TlsFiles
from flwr_splitkd.wire.framing import Limits, WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.places import Places
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["DataPlaneServer", "Session"]

_SERVICE = pb.DESCRIPTOR.services_by_name["DataPlane"].full_name
_STOP_GRACE_S = 2.0
_SWEEP_S = 1.0


@dataclass(slots=True)
class Session:
    """One expected turn: first a ticket, then, once the device has shaken hands, a link.

    States: *expected* (`link` is None), *connected*, *ended* (`server.end` was called). A device that lost its connection
    resumes its link; one whose process was started again gets another one, also after `server.reopen`.
    """

    ticket: Ticket
    link: Link | None = None
    hello: pb.Hello | None = None
    used: bool = field(default=False, repr=False)
    ended_s: float | None = None
    resume_tokens: ResumeTokens = field(default_factory=ResumeTokens, repr=False)

    @property
    def connected(self) -> bool:
        """Whether the device has shaken hands and its stream is open."""
        return self.link is not None and self.link.attached and not self.link.closed


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
    max_streams
        Streams that may be open at once, those that have not shaken hands included.
    handshake_timeout_s
        Seconds that a new stream has for its Hello.
    grace_period_s
        Seconds that a device which has lost its connection has to resume its turn.
    limits
        Bounds on what devices send.
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
        max_streams: int = 128,
        handshake_timeout_s: float = 5.0,
        grace_period_s: float = 15.0,
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
        self._handshake_timeout_s, self._grace_period_s = handshake_timeout_s, grace_period_s
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._model: pb.ModelFingerprint | None = None
        self._codecs: tuple[int, ...] = ()
        self._places = Places(max_streams)
        self._stopped = threading.Event()
        self._pool = futures.ThreadPoolExecutor(max_streams, thread_name_prefix="splitkd-data-plane")
        self._server = grpc.server(
            self._pool,
            options=channel_options(self._limits),
            maximum_concurrent_rpcs=max_streams,
        )
        # Not the generated service: it parses on gRPC's own thread, whatever the size, and logs what is no frame.
        turn = grpc.stream_stream_rpc_method_handler(self._serve, response_serializer=pb.EdgeFrame.SerializeToString)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Turn": turn}),))
        port = self._bind(listen, tls)
        self.address = address_to_dial(advertised_address, listen, port)
        self.root_certificate = tls.root() if tls else b""

    def start(self, *, model: pb.ModelFingerprint, codecs: tuple[int, ...]) -> None:
        """Begin to admit devices whose student is `model` and that know all of `codecs`."""
        self._model, self._codecs = model, codecs
        self._server.start()
        threading.Thread(target=self._sweep, name="splitkd-sweeper", daemon=True).start()

    def expect(self, ticket: Ticket) -> Session:
        """Admit the ticket's holder, once."""
        session = Session(ticket)
        with self.changed:
            self._forget_ended()
            self._sessions[ticket.session_id] = session
        return session

    def end(self, session: Session) -> None:
        """Close a session: its token opens nothing any more.

        If the connection is lost before the device has the last message, it may still resume to get that.
        """
        with self.changed:
            session.ended_s = self._clock()
            if session.link is not None:
                session.link.close()
            self._forget_ended()

    def reopen(self, session: Session) -> None:
        """Keep a session whose turn was lost: a process that was started again may come back with its resume token."""
        with self.changed:
            link, session.link = session.link, None
            if link is not None:
                link.close()

    def stop(self) -> None:
        """Close every stream and the port, and end the threads."""
        with self.changed:
            sessions = list(self._sessions.values())
        for session in sessions:
            self.end(session)
        # Not without a bound: after bytes that are no frame, gRPC (1.85) sometimes never calls a server stopped.
        self._server.stop(_STOP_GRACE_S).wait(2 * _STOP_GRACE_S)
        self._stopped.set()
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

    # ---- gRPC's threads

    def _serve(self, serialized: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[pb.EdgeFrame]:
        stream = Stream(pb.EdgeFrame, peer="a device that has not shaken hands", limits=self._limits)
        self._places.take(stream, context.cancel)
        # Called when the stream ends in any way; without it a vanished peer would hold this thread forever.
        if not context.add_callback(lambda: self._leave(stream)):
            return self._leave(stream)
        threading.Thread(
            target=self._read, args=(stream, stream.parsed(serialized)), name="splitkd-reader", daemon=True
        ).start()
        yield from stream.outgoing(self._handshake_timeout_s)
        if stream.corrupt:  # otherwise the device would take the stream's end for an answer
            context.abort(grpc.StatusCode.DATA_LOSS, str(stream.corrupt))
        if stream.displaced:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{stream.peer} said nothing, and another one needed its place"
            )

    def _leave(self, stream: Stream) -> None:
        self._places.leave(stream)
        stream.end("its connection dropped")

    def _sweep(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self._places.sweep(time.monotonic())

    def _read(self, stream: Stream, frames: Iterator[pb.DeviceFrame]) -> None:
        try:
            settle = self._admit(stream, stream.first(frames))
            stream.carry(_noticed(frames, settle))
        except CorruptFrameError as error:
            stream.corrupt = error
            stream.end(str(error))
        except SplitKDError as error:
            stream.refuse(error)
        except grpc.RpcError:
            stream.end("its connection dropped")

    def _admit(self, stream: Stream, message: WireMessage) -> Callable[[], None]:
        """Judge a stream's first message, answer it, and attach the stream to its session's link.

        What is returned is to be called when the device has said something more: then it has the token that came with the
        answer.
        """
        if message.kind not in ("Hello", "Resume"):
            raise ProtocolError(f"{stream.peer} sent {message.kind}; expected Hello or Resume.")
        handshake.check_version(message.body)
        with self.changed:
            self._forget_ended()
            session = self._sessions.get(message.body.session_id)
            if session is None:
                raise handshake.wrong_token(message.body.session_id)
            answer = self._greet if message.kind == "Hello" else self._resume
            token = answer(stream, message.body, session)
            self.changed.notify_all()
        return partial(session.resume_tokens.settle, token)

    def _greet(self, stream: Stream, hello: pb.Hello, session: Session) -> bytes:
        comes_back = session.resume_tokens.opened_by(hello.token)
        if not comes_back:
            handshake.check_ticket(hello, session.ticket, used=session.used, now_s=self._clock())
        handshake.check_holder(hello, session.ticket)
        if self._model is None:
            raise SplitKDError("The data plane has not started.")
        handshake.check_model(hello.student, self._model)
        handshake.check_codecs(hello.codecs, self._codecs)
        session.used = True
        hello.device_name = handshake.clean_name(hello.device_name) or str(hello.node_id)
        link = Link(
            peer=f"device {hello.device_name}",
            limits=self._limits,
            grace_period_s=self._grace_period_s,
            admitted=False,
            hears_last=True,
        )
        welcome = pb.Welcome(
            protocol_version=handshake.PROTOCOL_VERSION,
            software=self._software,
            resume_token=session.resume_tokens.renew(),
            grace_period_s=self._grace_period_s,
        )
        stream.attach(link, answer=welcome)
        before, session.hello, session.link = session.link, hello, link  # a link means connected
        if before is not None:
            before.abandon(PeerLostError(f"{link.peer} is lost: its process was started again"))
        return welcome.resume_token

    def _resume(self, stream: Stream, resume: pb.Resume, session: Session) -> bytes:
        if session.link is None or not session.resume_tokens.opened_by(resume.token):
            raise handshake.wrong_token(resume.session_id)
        if session.link.closed and (session.link.done or session.link.error):
            raise handshake.given_up(session.link.error)
        resumed = pb.Resumed(received=session.link.received, resume_token=session.resume_tokens.renew())
        stream.attach(session.link, resume.received, answer=resumed)
        return resumed.resume_token

    def _forget_ended(self) -> None:
        """Drop sessions that nobody can come back to."""
        now_s = self._clock()
        for session_id, session in list(self._sessions.items()):
            if session.ended_s is None:
                continue
            heard = session.link is None or session.link.done
            if heard or now_s - session.ended_s > self._grace_period_s:
                del self._sessions[session_id]


def _noticed(frames: Iterator[pb.DeviceFrame], notice: Callable[[], None]) -> Iterator[pb.DeviceFrame]:
    """The same frames; `notice` is called with the first one."""
    for position, frame in enumerate(frames):
        if position == 0:
            notice()
        yield frame
