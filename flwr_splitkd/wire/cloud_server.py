"""The cloud's end of its streams: admits edges by name and secret. Torch-free."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.faults import RESTARTED, RESUMED
from flwr_splitkd.wire import handshake
from flwr_splitkd.wire.credentials import ResumeTokens, TlsFiles
from flwr_splitkd.wire.framing import Limits, WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.listener import Service, StreamServer, resume_link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.tally import Tally
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["CloudServer", "CloudSession"]

_SERVICE = Service(name="CloudPlane", method="Serve", peer="an edge that has not shaken hands")
_HOLDERS = 64
_NO_SECRET = b"\0" * 32
"""What the secret of an unknown edge is compared with, so that names cannot be probed for by time."""


@dataclass(slots=True)
class CloudSession:
    """One edge that is served one task.

    A connection that was lost resumes the same session; an edge's process that was started again opens another one, which
    takes the place of the first. Should that one live on, it is told, and does not get in again. A session that only reads
    stands beside all others, and takes nobody's place.
    """

    edge: str
    task: str
    hello: pb.CloudHello = field(repr=False)
    link: Link
    first_token: bytes = field(default=b"", repr=False)
    resume_tokens: ResumeTokens = field(default_factory=ResumeTokens, repr=False)

    @property
    def place(self) -> tuple[str, str] | None:
        """What only one session at a time has: an edge and the task that it trains; None for one that only reads."""
        return None if self.hello.reads_only else (self.edge, self.task)


class CloudServer:
    """Listens for edges; every one that has shown its secret is handed to `serve` on a thread of its own.

    Parameters
    ----------
    edges
        Secret of each edge, by its name.
    check
        Raises a SplitKDError to refuse an edge that has shown its secret, for example for a task that is not there.
    codecs
        Those that an edge must know.
    data_address, advertised_address, tls, insecure, software, max_streams, handshake_timeout_s, grace_period_s, limits
        As in `DataPlaneServer`.

    Raises
    ------
    ConfigError
        If the address is malformed or taken, or plaintext would leave this machine unasked.
    """

    def __init__(
        self,
        *,
        edges: Mapping[str, bytes],
        check: Callable[[pb.CloudHello], None],
        codecs: tuple[int, ...] = (),
        data_address: str = "127.0.0.1:0",
        advertised_address: str | None = None,
        tls: TlsFiles | None = None,
        insecure: bool = False,
        software: str = "",
        max_streams: int = 64,
        handshake_timeout_s: float = 5.0,
        grace_period_s: float = 15.0,
        limits: Limits | None = None,
    ) -> None:
        self._edges, self._check, self._codecs = dict(edges), check, codecs
        self._software, self._grace_period_s = software, grace_period_s
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._sessions: dict[str, CloudSession] = {}
        self._holders: dict[tuple[str, str], list[str]] = {}  # of an edge and task: ids of links, the one in force last
        self._serve: Callable[[CloudSession], None] | None = None
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

    def start(self, serve: Callable[[CloudSession], None]) -> None:
        """Begin to admit edges; `serve` gets each session, and ends when the session does."""
        self._serve = serve
        self._server.start()

    def stop(self) -> None:
        """Tell every edge, close the port, and end the threads."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.link.fail(PeerLostError("The cloud is being shut down."))
        self._server.stop()

    # ---- gRPC's threads

    def _admit(self, stream: Stream, message: WireMessage) -> Callable[[], None]:
        """Attach an edge's stream to its session's link; see `Admission`."""
        if message.kind not in ("CloudHello", "Resume"):
            raise ProtocolError(f"{stream.peer} sent {message.kind}; expected CloudHello or Resume.")
        handshake.check_version(message.body)
        with self._lock:
            if message.kind == "CloudHello":
                session = self._greet(stream, message.body)
                return partial(session.resume_tokens.settle, session.first_token)
            known = self._sessions.get(message.body.session_id)
            if known is None:
                raise handshake.wrong_token(message.body.session_id)
            token = resume_link(stream, message.body, known.link, known.resume_tokens)
            self.tally.fault(RESUMED)
            return partial(known.resume_tokens.settle, token)

    def _greet(self, stream: Stream, hello: pb.CloudHello) -> CloudSession:
        secret = self._edges.get(hello.edge)
        if not hmac.compare_digest(secret or _NO_SECRET, hello.token) or secret is None:
            raise handshake.wrong_secret(hello.edge)
        handshake.check_codecs(hello.codecs, self._codecs)
        self._check(hello)
        holders = self._holders.setdefault((hello.edge, hello.task), [])
        if hello.link_id in holders[:-1] and not hello.reads_only:
            raise handshake.place_taken(hello.edge, hello.task)
        if self._serve is None:
            raise SplitKDError("The cloud has not started.")
        link = Link(
            peer=f"edge {hello.edge}", limits=self._limits, grace_period_s=self._grace_period_s, hears_last=True
        )
        session = CloudSession(edge=hello.edge, task=hello.task, hello=hello, link=link)
        session.first_token = session.resume_tokens.renew()
        welcome = pb.Welcome(
            protocol_version=handshake.PROTOCOL_VERSION,
            software=self._software,
            resume_token=session.first_token,
            grace_period_s=self._grace_period_s,
        )
        self._forget(session)
        if hello.link_id not in holders and not hello.reads_only:
            holders[:] = [*holders[-_HOLDERS:], hello.link_id]
        if hello.session_id in self._sessions:
            raise ProtocolError(
                f"The session of edge {hello.edge} is named {handshake.clean_name(hello.session_id)!r}, as another one is; "
                "expected a name of its own."
            )
        stream.attach(link, answer=welcome)
        self._sessions[hello.session_id] = session
        threading.Thread(target=self._serve, args=(session,), name=f"splitkd-edge-{hello.edge}", daemon=True).start()
        return session

    def _forget(self, new: CloudSession) -> None:
        """Drop sessions that are over, and the one whose place the new one takes."""
        for session_id, session in list(self._sessions.items()):
            same = new.place is not None and session.place == new.place
            if same:
                if not session.link.done:
                    same_process = session.hello.link_id == new.hello.link_id
                    self.tally.fault(RESUMED if same_process else RESTARTED)
                session.link.give_up(handshake.place_taken(new.edge, new.task))
            if same or session.link.done:
                del self._sessions[session_id]
