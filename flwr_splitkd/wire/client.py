"""The dialling end of a stream: a device's to the edge, or an edge's to the cloud. Torch-free.

A thread dials, shakes hands and reads. When a connection is lost it dials again and resumes, within the grace period that
the other side names, while the computing thread waits for its answer and notices nothing but the time.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import grpc

from flwr_splitkd.errors import HandshakeError, PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.wire.channel import channel_options
from flwr_splitkd.wire.chunk_frame import parse_frame, serialize_frame
from flwr_splitkd.wire.failures import error_from
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Opening", "connect"]

_log = logging.getLogger(__name__)

Opening = pb.Hello | pb.CloudHello
"""Who dials, and therefore which service: a device the edge's, an edge the cloud's."""

_METHODS: dict[type[Opening], str] = {
    pb.Hello: "/flwr_splitkd.wire.v1.DataPlane/Turn",
    pb.CloudHello: "/flwr_splitkd.wire.v1.CloudPlane/Serve",
}

_SILENT = {
    "edge": "Has the run ended? Else check `advertised_address`.",
    "cloud": "Start it with `flwr-splitkd cloud`, or check its address.",
}

_NO_ANSWER = {
    "edge": "this address is reachable from here (`advertised_address`, firewall)",
    "cloud": "the cloud's address is reachable from here (firewall)",
}

_DRAIN_S = 5.0
"""Seconds that the last queued frames have to leave before the channel closes."""
_ATTEMPT_S = 5.0
"""Seconds of one attempt to resume; a fresh attempt gets through sooner than an old one after a network has come back."""
_PAUSE_S = 0.25
"""Seconds between two attempts to reach the edge."""
_REFUSED_S = 1.5
"""Seconds of refused connections after which the edge's process is taken to have ended.

A lost network does not answer at all; a machine that refuses is there, and nobody listens on it any more.
"""


@contextmanager
def connect(
    address: str,
    hello: Opening,
    *,
    root_certificate: bytes = b"",
    timeout_s: float = 20.0,
    limits: Limits | None = None,
    on_token: Callable[[bytes], None] | None = None,
) -> Iterator[Link]:
    """Open a stream and shake hands; the link is closed at the end of the ``with`` block.

    Parameters
    ----------
    address
        ``host:port`` of the edge, or of the cloud.
    hello
        What a device says of itself to the edge, or an edge to the cloud.
    root_certificate
        PEM of the authority that signed the other side's certificate; plaintext when empty.
    timeout_s
        Seconds for the connection and for the handshake, each.
    on_token
        Told each new resume token, for a process that comes back in place of this one.

    Raises
    ------
    PeerLostError
        If the other side cannot be reached.
    HandshakeError
        If it refuses this one; the message says why.
    """
    connection = _Connection(address, hello, root_certificate, timeout_s, limits or Limits(), on_token)
    try:
        connection.open()
        yield connection.link
    except BaseException as error:
        connection.link.fail(error)
        raise
    finally:
        connection.close()


class _Connection:
    """A link with the thread that keeps a stream under it."""

    def __init__(
        self,
        address: str,
        hello: Opening,
        root_certificate: bytes,
        timeout_s: float,
        limits: Limits,
        on_token: Callable[[bytes], None] | None,
    ) -> None:
        self._whose = "cloud" if isinstance(hello, pb.CloudHello) else "edge"
        self.link = Link(peer=f"the {self._whose} at {address}", limits=limits)
        self.resume_token = b""
        self._on_token = on_token
        self._address, self._hello = address, hello
        self._root_certificate, self._timeout_s, self._limits = root_certificate, timeout_s, limits
        self._opened = threading.Event()
        self._closing = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="splitkd-connection", daemon=True)

    def open(self) -> None:
        """Wait until the other side has let this one in."""
        self._thread.start()
        self._opened.wait()
        if not self.resume_token and self.link.error is not None:
            raise self.link.error

    def close(self) -> None:
        """Let what was queued leave, then end the thread."""
        self.link.close()
        self._closing.set()
        self._thread.join(_DRAIN_S)
        if self._thread.is_alive() and self._call is not None:
            self._call.cancel()
            self._thread.join(_DRAIN_S)

    # ---- the thread

    def _run(self) -> None:
        try:
            self._open_first()
            while not self.link.closed:
                self._reopen()
        except _Unreachable as error:
            self.link.abandon(PeerLostError(str(error)))
        except SplitKDError as error:
            self.link.abandon(error)
        except Exception as error:  # nobody else would hear of it, and the computing thread would wait
            self.link.abandon(
                SplitKDError(f"The connection to the {self._whose} failed: {type(error).__name__}: {error}")
            )
        finally:
            self._opened.set()

    def _open_first(self) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            self._wait_listening()
            try:
                return self._stream(self._hello, self._timeout_s)
            except _Busy:
                if time.monotonic() >= deadline_s:
                    raise
                self._closing.wait(_PAUSE_S)

    def _reopen(self) -> None:
        """Open another stream for a link that has lost its own, or give the other side up."""
        grace_period_s = self.link.grace_period_s
        deadline_s = time.monotonic() + grace_period_s
        _log.warning(
            "%s is lost: %s; dialling again for up to %g s", self.link.peer, self.link.lost_reason, grace_period_s
        )
        while not self._closing.is_set() and not self.link.closed:
            self._wait_listening()
            try:
                left_s = max(deadline_s - time.monotonic(), _PAUSE_S)
                return self._stream(self._resume(), min(left_s, _ATTEMPT_S))
            except _Unreachable as error:
                _log.info("%s", error)
            except HandshakeError as error:
                raise PeerLostError(f"{self.link.peer} has given this turn up: {error}") from error
            self._closing.wait(_PAUSE_S)
        return None

    def _wait_listening(self) -> None:
        """Wait while the machine says that nobody listens there; not for long, since an edge listens before it calls."""
        started_s = time.monotonic()
        while _is_refused(self._address):
            if time.monotonic() - started_s >= _REFUSED_S:
                raise PeerLostError(f"{self.link.peer} is lost: nobody listens at this address. {_SILENT[self._whose]}")
            if self._closing.wait(_PAUSE_S):
                return

    def _resume(self) -> pb.Resume:
        return pb.Resume(
            protocol_version=PROTOCOL_VERSION,
            session_id=self._hello.session_id,
            token=self.resume_token,
            received=self.link.received,
        )

    def _stream(self, opening: Opening | pb.Resume, timeout_s: float) -> None:
        """Dial, shake hands and carry the link's messages until the stream has ended in whatever way.

        Raises
        ------
        _Unreachable
            If it could not be opened.
        HandshakeError
            If it was refused.
        """
        options = channel_options(self._limits)
        if self._root_certificate:
            channel = grpc.secure_channel(self._address, grpc.ssl_channel_credentials(self._root_certificate), options)
        else:
            channel = grpc.insecure_channel(self._address, options)
        with channel:
            self._wait_ready(channel, timeout_s)
            stream = Stream(pb.UplinkFrame, peer=self.link.peer, limits=self._limits)
            stream.open(opening)
            # Not the generated stub, by which protobuf would copy every chunk four times.
            turn = channel.stream_stream(
                _METHODS[type(self._hello)],
                request_serializer=serialize_frame,
                response_deserializer=partial(parse_frame, pb.DownlinkFrame),
            )
            call = turn(stream.outgoing())
            self._call = call
            self._shake_hands(stream, call, timeout_s)
            self._opened.set()
            try:
                stream.carry(call)
                call.cancel()  # of no effect on a call that is over
            except grpc.RpcError as error:
                if (
                    call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                ):  # a frame beyond the other side's limit, now and the next time
                    raise PeerLostError(f"{self.link.peer} is lost: {_words(error)}") from error
                stream.end(_words(error))

    def _shake_hands(self, stream: Stream, call: grpc.Call, timeout_s: float) -> None:
        watchdog = threading.Timer(timeout_s, call.cancel)
        watchdog.start()
        try:
            self._attach(stream, stream.first(call).body)
        except grpc.RpcError as error:
            stream.end("it was not let in")
            if call.code() == grpc.StatusCode.CANCELLED:
                raise _Unreachable(
                    f"{self.link.peer} sent nothing for {timeout_s:g} s; expected Welcome or Resumed."
                ) from error
            kind = _Busy if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else _Unreachable
            raise kind(f"{self.link.peer} is lost: {_words(error)}") from error
        except BaseException:
            stream.end("it was not let in")
            raise
        finally:
            watchdog.cancel()

    def _attach(self, stream: Stream, answer: pb.Welcome | pb.Resumed | pb.Failure) -> None:
        if isinstance(answer, pb.Failure):
            raise error_from(answer, self.link.peer)
        if not isinstance(answer, pb.Welcome | pb.Resumed):
            raise ProtocolError(f"{self.link.peer} sent {answer.DESCRIPTOR.name}; expected Welcome or Resumed.")
        self.resume_token = answer.resume_token
        if self._on_token:
            self._on_token(self.resume_token)
        if isinstance(answer, pb.Welcome):
            self.link.grace_period_s = answer.grace_period_s
            stream.attach(self.link)
        else:
            stream.attach(self.link, answer.received)

    def _wait_ready(self, channel: grpc.Channel, timeout_s: float) -> None:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            certificate = (
                "its certificate names this host and is signed by the root certificate that this side knows (`tls`)"
                if self._root_certificate
                else f"the {self._whose} has no TLS: this side was given no root certificate, and a side with TLS does not answer "
                "one without"
            )
            raise _Unreachable(
                f"The {self._whose} at {self._address} did not answer for {timeout_s:g} s. Check that "
                f"{_NO_ANSWER[self._whose]}, and that {certificate}."
            ) from None


class _Unreachable(Exception):
    """A stream could not be opened; the next attempt may do better."""


class _Busy(_Unreachable):
    """The other side has no room for another stream just now."""


def _words(error: grpc.RpcError) -> str:
    return f"{error.code()}: {error.details()}" if isinstance(error, grpc.Call) else str(error)


def _is_refused(address: str) -> bool:
    """Whether the machine is there and nobody listens on the port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
