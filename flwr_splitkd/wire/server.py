"""The edge's end of the data plane: admits devices and hands their links over. Torch-free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.faults import RESTARTED, RESUMED
from flwr_splitkd.wire import handshake
from flwr_splitkd.wire.credentials import ResumeTokens, Ticket, TlsFiles
from flwr_splitkd.wire.framing import Limits, WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.listener import Service, StreamServer, resume_link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.tally import Tally
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["SESSION_STATES", "DataPlaneServer", "Session"]

SESSION_STATES = ("called", "waiting", "serving", "away")
"""What `DataPlaneServer.sessions` tells apart: devices that have not come yet, that wait for their turn, that have it (or send
ahead for the teacher), and whose connection is lost for the moment."""

_SERVICE = Service(name="DataPlane", method="Turn", peer="a device that has not shaken hands")


@dataclass(slots=True)
class Session:
    """One expected turn: first a ticket, then, once the device has shaken hands, a link.

    States: *expected* (`link` is None), *connected*, *ended* (`server.end` was called). A device that lost its connection
    resumes its link; one whose process was started again gets another one, also after `server.reopen`.
    """

    ticket: Ticket
    link: Link | None = None
    hello: pb.Hello | None = field(default=None, repr=False)
    used: bool = field(default=False, repr=False)
    ended_s: float | None = None
    resume_tokens: ResumeTokens = field(default_factory=ResumeTokens, repr=False)

    @property
    def connected(self) -> bool:
        """Whether the device has shaken hands and its stream is open."""
        return self.link is not None and self.link.attached and not self.link.closed

    @property
    def state(self) -> str:
        """One of `SESSION_STATES`; an empty string once it is over."""
        link = self.link
        if self.ended_s is not None or (link is not None and link.closed):
            return ""
        if link is None:
            return "called"
        return "away" if not link.attached else "serving" if link.admitted else "waiting"


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
        self.changed = threading.Condition()
        self._limits = limits or Limits()
        self._software = software
        self._grace_period_s = grace_period_s
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._model: pb.ModelFingerprint | None = None
        self._codecs: tuple[int, ...] = ()
        self._server = StreamServer(
            _SERVICE,
            self._admit,
            data_address=data_address,
            advertised_address=advertised_address,
            tls=tls,
            insecure=insecure,
            max_streams=max_streams,
            handshake_timeout_s=handshake_timeout_s,
            limits=self._limits,
        )
        self.address, self.root_certificate = self._server.address, self._server.root_certificate

    @property
    def num_streams(self) -> int:
        """Streams that are open, those that have not shaken hands included."""
        return self._server.num_streams

    @property
    def tally(self) -> Tally:
        """What the streams have carried, and what went wrong with them."""
        return self._server.tally

    def sessions(self) -> dict[str, int]:
        """How many sessions are in each of `SESSION_STATES` now."""
        with self.changed:
            sessions = list(self._sessions.values())
        found = dict.fromkeys(SESSION_STATES, 0)
        for session in sessions:
            if state := session.state:
                found[state] += 1
        return found

    def start(self, *, model: pb.ModelFingerprint, codecs: tuple[int, ...]) -> None:
        """Begin to admit devices whose student is `model` and that know all of `codecs`."""
        self._model, self._codecs = model, codecs
        self._server.start()

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
        self._server.stop()

    # ---- gRPC's threads

    def _admit(self, stream: Stream, message: WireMessage) -> Callable[[], None]:
        """Attach a device's stream to its session's link; see `Admission`."""
        if message.kind not in ("Hello", "Resume"):
            raise ProtocolError(f"{stream.peer} sent {message.kind}; expected Hello or Resume.")
        handshake.check_version(message.body)
        with self.changed:
            self._forget_ended()
            session = self._sessions.get(message.body.session_id)
            if session is None:
                raise handshake.wrong_token(message.body.session_id)
            if message.kind == "Hello":
                token = self._greet(stream, message.body, session)
            else:
                token = resume_link(stream, message.body, session.link, session.resume_tokens)
                self.tally.fault(RESUMED)
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
        stream.attach(link, answer=welcome)  # if it has ended by now, the device comes again with the same ticket
        session.used = True
        before, session.hello, session.link = session.link, hello, link  # a link means connected
        if comes_back:
            self.tally.fault(RESTARTED)
        if before is not None:
            before.abandon(PeerLostError(f"{link.peer} is lost: its process was started again"))
        return welcome.resume_token

    def _forget_ended(self) -> None:
        """Drop sessions that nobody can come back to."""
        now_s = self._clock()
        for session_id, session in list(self._sessions.items()):
            if session.ended_s is None:
                continue
            heard = session.link is None or session.link.done
            if heard or now_s - session.ended_s > self._grace_period_s:
                del self._sessions[session_id]
