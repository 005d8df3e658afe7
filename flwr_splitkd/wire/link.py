"""One side of a stream, as the computing thread sees it: send and receive whole messages. Torch-free.

The computing thread calls `send` and `receive`; the transport's threads drain `outgoing` and fill `incoming`.
So a slow forward pass never blocks the transport, and the transport never runs a forward pass.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.wire.failures import error_from, failure_from
from flwr_splitkd.wire.framing import Assembler, Frame, Limits, WireMessage, to_frames
from flwr_splitkd.wire.tensors import EncodedTensor

__all__ = ["Link"]

_INBOX_MESSAGES = 4
"""Received messages that may wait for the computing thread; beyond them, flow control stops the peer."""


class Link:
    """A message queue in each direction between the computing thread and a transport.

    States: *open*, *closing* (nothing more may be sent, what was sent is drained) and *closed*. The first
    error of the stream, from either side, is what `send` raises from then on, and `receive` once the messages
    that came before it are taken.

    Parameters
    ----------
    frame_type
        The frames that this side sends: ``pb.DeviceFrame`` or ``pb.EdgeFrame``.
    peer
        Name of the other side in errors.
    limits
        Bounds on what is received; and the chunk size that is sent.
    admitted
        Whether the peer may send tensors already; a stranger may not, until `admit` is called.
    """

    def __init__(
        self, frame_type: type[Frame], *, peer: str, limits: Limits | None = None, admitted: bool = True
    ) -> None:
        self.peer = peer
        self.bytes_sent = 0
        self.bytes_received = 0
        self._frame_type = frame_type
        self._limits = limits or Limits()
        self._assembler = Assembler(self._limits, peer, admitted=admitted)
        self._outbox: queue.SimpleQueue[tuple[Any, Mapping[str, EncodedTensor]] | None] = queue.SimpleQueue()
        self._inbox: deque[WireMessage] = deque()
        self._changed = threading.Condition()  # guards inbox, closed and error
        self._closed = False
        self._error: SplitKDError | None = None
        self._progress_s = time.monotonic()

    # ---- the computing thread's side

    def admit(self, peer: str) -> None:
        """Let the peer, by its name from now on, send tensors."""
        self.peer = peer
        self._assembler.admit(peer)

    def send(self, body: Any, tensors: Mapping[str, EncodedTensor] | None = None) -> None:
        """Queue a message; returns at once. The tensors' memory must stay unchanged until it is sent.

        Raises
        ------
        SplitKDError
            If the stream is over: why it ended.
        """
        with self._changed:
            if self._closed:
                raise self._error or PeerLostError(f"The stream to {self.peer} is closed; nothing can be sent.")
            self._outbox.put((body, tensors or {}))

    def receive(self, expected: str, timeout_s: float) -> WireMessage:
        """Wait for the next message, which must be of kind `expected`, e.g. ``"Forward"``; ``"A|B"`` allows two.

        Raises
        ------
        PeerLostError
            If nothing has moved in either direction for `timeout_s` seconds, or the stream has ended. A large
            message on a slow link takes longer than that, and may.
        ProtocolError
            If the message is of another kind, or the peer's bytes broke the protocol.
        SplitKDError
            Whatever the peer reported in a Failure.
        """
        message = self._take(expected, timeout_s)
        if message.kind not in expected.split("|"):
            raise ProtocolError(f"{self.peer} sent {message.kind}; expected {expected}.")
        return message

    def fail(self, error: BaseException) -> None:
        """Tell the peer why this side gives up, then close. Safe to call on a stream that is over."""
        with self._changed:
            if not self._closed:
                self._outbox.put((failure_from(error), {}))
            self.close()

    def close(self) -> None:
        """Send nothing more; what was queued is still drained."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._outbox.put(None)
                self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether this side has closed, or the stream has ended."""
        return self._closed

    @property
    def error(self) -> SplitKDError | None:
        """The first error of the stream, if it had one."""
        return self._error

    # ---- the transport's side

    def outgoing(self) -> Iterator[Frame]:
        """Frames to put on the wire, in order, until this side closes."""
        sequence = 0
        while (item := self._outbox.get()) is not None:
            for frame in to_frames(self._frame_type, *item, self._limits):
                frame.sequence = sequence
                sequence += 1
                self.bytes_sent += frame.ByteSize()
                yield frame
                self._progress_s = time.monotonic()

    def incoming(self, frames: Iterable[Frame]) -> None:
        """Take frames off the wire until they end; returns when the stream is over.

        Whatever the frames contain is no reason to raise here; only the transport's own iterator may.
        """
        try:
            for frame in frames:
                self.bytes_received += frame.ByteSize()
                self._progress_s = time.monotonic()
                message = self._assembler.feed(frame)
                if message is None:
                    continue
                if message.kind == "Failure":
                    self._finish(error_from(message.body, self.peer))
                    return
                if not self._deliver(message):
                    return
            self._assembler.end()
            self._finish(PeerLostError(f"{self.peer} ended the stream."))
        except SplitKDError as error:
            self._finish(error, tell_peer=True)

    def lost(self, reason: str) -> None:
        """Take the transport's word that the stream is gone. Never blocks: it is called on the transport's threads."""
        self._finish(PeerLostError(f"{self.peer} is lost: {reason}"))

    def _take(self, expected: str, timeout_s: float) -> WireMessage:
        asked_s = time.monotonic()
        with self._changed:
            while not self._inbox:
                if self._error is not None:
                    raise self._error
                left_s = max(asked_s, self._progress_s) + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise PeerLostError(
                        f"{self.peer} sent nothing for {timeout_s:g} s; expected {expected}. Check that it is alive and "
                        "its link is up, or raise the timeout if its hardware is that slow."
                    )
                self._changed.wait(left_s)
            message = self._inbox.popleft()
            self._changed.notify_all()
            return message

    def _deliver(self, message: WireMessage) -> bool:
        """Wait for room in the inbox; whether there was any before the stream closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._inbox) < _INBOX_MESSAGES)
            if len(self._inbox) >= _INBOX_MESSAGES:
                return False
            self._inbox.append(message)
            self._changed.notify_all()
            return True

    def _finish(self, error: SplitKDError, *, tell_peer: bool = False) -> None:
        with self._changed:
            self._error = self._error or error
            if tell_peer:
                self.fail(error)
            else:
                self.close()
            self._changed.notify_all()
