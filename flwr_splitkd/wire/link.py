"""One side of a stream, as the computing thread sees it: send and receive whole messages. Torch-free.

The computing thread calls `send` and `receive`; the transport's threads drain `outgoing` and fill `incoming`.
So a slow forward pass never blocks the transport, and the transport never runs a forward pass.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.wire.failures import error_from, failure_from
from flwr_splitkd.wire.framing import Assembler, Frame, Limits, WireMessage, to_frames
from flwr_splitkd.wire.tensors import EncodedTensor

__all__ = ["Link"]

_INBOX_MESSAGES = 4
"""Received messages that may wait for the computing thread; beyond them, flow control stops the peer."""
_POLL_S = 0.5


class Link:
    """A message queue in each direction between the computing thread and a transport.

    States: *open*, *closing* (nothing more may be sent, what was sent is drained) and *closed*. The first
    error of the stream, from either side, is what `receive` raises from then on.

    Parameters
    ----------
    frame_type
        The frames that this side sends: ``pb.DeviceFrame`` or ``pb.EdgeFrame``.
    peer
        Name of the other side in errors.
    limits
        Bounds on what is received; and the chunk size that is sent.
    """

    def __init__(self, frame_type: type[Frame], *, peer: str, limits: Limits | None = None) -> None:
        self.peer = peer
        self.bytes_sent = 0
        self.bytes_received = 0
        self._frame_type = frame_type
        self._limits = limits or Limits()
        self._outbox: queue.SimpleQueue[tuple[Any, Mapping[str, EncodedTensor]] | None] = queue.SimpleQueue()
        self._inbox: queue.Queue[WireMessage | SplitKDError] = queue.Queue(_INBOX_MESSAGES)
        self._closed = threading.Event()
        self._error: SplitKDError | None = None

    # ---- the computing thread's side

    def send(self, body: Any, tensors: Mapping[str, EncodedTensor] | None = None) -> None:
        """Queue a message; returns at once. The tensors' memory must stay unchanged until it is sent.

        Raises
        ------
        PeerLostError
            If the stream is over.
        """
        if self._closed.is_set():
            raise self._error or PeerLostError(f"The stream to {self.peer} is closed; nothing can be sent.")
        self._outbox.put((body, tensors or {}))

    def receive(self, expected: str, timeout_s: float) -> WireMessage:
        """Wait for the next message, which must be of kind `expected`, e.g. ``"Forward"``; ``"A|B"`` allows two.

        Raises
        ------
        PeerLostError
            If nothing arrives within `timeout_s` seconds, or the stream has ended.
        ProtocolError
            If the message is of another kind, or the peer's bytes broke the protocol.
        SplitKDError
            Whatever the peer reported in a Failure.
        """
        try:
            item = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            raise PeerLostError(
                f"{self.peer} sent nothing for {timeout_s:g} s; expected {expected}. Check that it is alive and "
                "its link is up, or raise the timeout if its hardware is that slow."
            ) from None
        if isinstance(item, SplitKDError):
            self._inbox.put(item)  # for whoever asks next
            raise item
        if item.kind == "Failure":
            raise error_from(item.body, self.peer)
        if item.kind not in expected.split("|"):
            raise ProtocolError(f"{self.peer} sent {item.kind}; expected {expected}.")
        return item

    def fail(self, error: BaseException) -> None:
        """Tell the peer why this side gives up, then close. Safe to call on a stream that is over."""
        if not self._closed.is_set():
            self._outbox.put((failure_from(error), {}))
        self.close()

    def close(self) -> None:
        """Send nothing more; what was queued is still drained."""
        if not self._closed.is_set():
            self._closed.set()
            self._outbox.put(None)

    @property
    def closed(self) -> bool:
        """Whether this side has closed, or the stream has ended."""
        return self._closed.is_set()

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

    def incoming(self, frames: Iterable[Frame]) -> None:
        """Take frames off the wire until they end; returns when the stream is over, and never raises."""
        assembler = Assembler(self._limits, self.peer)
        try:
            for frame in frames:
                self.bytes_received += frame.ByteSize()
                message = assembler.feed(frame)
                if message is not None and not self._deliver(message):
                    return
            assembler.end()
            self._finish(PeerLostError(f"{self.peer} ended the stream."))
        except SplitKDError as error:
            self._finish(error, tell_peer=True)

    def lost(self, reason: str) -> None:
        """Take the transport's word that the stream is gone."""
        self._finish(PeerLostError(f"{self.peer} is lost: {reason}"))

    def _deliver(self, item: WireMessage | SplitKDError) -> bool:
        while True:
            try:
                self._inbox.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                if self._closed.is_set():
                    return False

    def _finish(self, error: SplitKDError, *, tell_peer: bool = False) -> None:
        self._error = self._error or error
        self._deliver(error)
        if tell_peer:
            self.fail(error)
        else:
            self.close()
