"""One side of a turn, as the computing thread sees it: send and receive whole messages. Torch-free.

The computing thread calls `send` and `receive`; the transport's threads take what is sent and deliver what arrives. So a
slow forward pass never blocks the transport, and the transport never runs a forward pass.

A link outlives the connections that carry it. What was sent is kept until the other side has acknowledged it; when a
connection is lost and another one takes its place, it goes on from the first message that the other side lacks. So every
message arrives exactly once, in order, and the computing thread notices nothing but the time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from flwr_splitkd.errors import PeerLostError, PeerTimeoutError, ProtocolError, SplitKDError
from flwr_splitkd.wire.failures import error_from, failure_from
from flwr_splitkd.wire.framing import Limits, WireMessage
from flwr_splitkd.wire.tensors import EncodedTensor

__all__ = ["Link"]

_INBOX_MESSAGES = 4
"""Received messages that may wait for the computing thread; beyond them, flow control stops the peer."""
_LOOK_S = 0.5
"""Seconds between two looks whether a peer without a stream has been gone for too long."""
_LAST_WORD_S = 2.0
"""Seconds that the other side has to take the last message before the connection is closed."""
_FRUITLESS_STREAMS = 10
"""Streams in a row over which no message got through, after which the peer is given up."""


class Link:
    """A message queue in each direction between the computing thread and whatever stream carries it.

    States: *open* with a stream, *open* without one (for at most the grace period), and *closed* (nothing more may be
    sent, what was sent is drained). The first error, from either side, is what `send` raises from then on, and `receive`
    once the messages that came before it are taken.

    Parameters
    ----------
    peer
        Name of the other side in errors.
    limits
        Bounds on what may wait here, and on how slow the peer may be.
    grace_period_s
        Seconds without a stream after which the peer is given up.
    admitted
        Whether the peer may send tensors already; else once `admit` is called.
    hears_last
        Whether this side stays until the other one has its last message; of two sides, one does.

    Notes
    -----
    The methods for streams get the stream that calls, and only ask whether it is the one that carries the link now: what
    an earlier one still says is of no interest.
    """

    def __init__(
        self,
        *,
        peer: str,
        limits: Limits | None = None,
        grace_period_s: float = 0.0,
        admitted: bool = True,
        hears_last: bool = False,
    ) -> None:
        self.peer = peer
        self.grace_period_s = grace_period_s
        self.admitted = admitted
        self.bytes_sent = 0
        self.bytes_received = 0
        self.payload_bytes_received, self.receive_s = 0, 0.0
        self.received = 0
        self.num_resumed = 0
        self._limits = limits or Limits()
        self._hears_last = hears_last
        self._changed = threading.Condition()  # guards what follows
        self._outbox: deque[tuple[Any, Mapping[str, EncodedTensor]]] = deque()  # from the first unacknowledged one on
        self._acknowledged = 0
        self._inbox: deque[WireMessage] = deque()
        self._closed = False
        self._peer_done = self._peer_left = False
        self._error: SplitKDError | None = None
        self._stream: object | None = None
        self._lost_s: float | None = None
        self.lost_reason = ""
        self._fruitless = 0

    # ---- the computing thread's side

    def admit(self) -> None:
        """Let the peer send tensors from now on."""
        self.admitted = True

    def send(self, body: Any, tensors: Mapping[str, EncodedTensor] | None = None) -> None:
        """Queue a message; returns at once. The tensors' memory must stay unchanged until the peer has answered.

        Raises
        ------
        SplitKDError
            If the turn is over: why it ended.
        """
        with self._changed:
            if self._closed:
                raise self._error or PeerLostError(f"The stream to {self.peer} is closed; nothing can be sent.")
            self._outbox.append((body, tensors or {}))
            self._changed.notify_all()

    def receive(self, expected: str, timeout_s: float) -> WireMessage:
        """Wait for the next message, which must be of kind `expected`, e.g. ``"Forward"``; ``"A|B"`` allows two.

        Raises
        ------
        PeerTimeoutError
            If less than the slowest rate has moved in either direction for `timeout_s` seconds. A large message on a slow link
            takes longer than `timeout_s`, and may.
        PeerLostError
            If the peer is gone and has not come back within the grace period.
        ProtocolError
            If the message is of another kind, or the peer's bytes broke the protocol.
        SplitKDError
            Whatever the peer reported in a Failure.
        """
        message = self._take(expected, timeout_s)
        if message.kind not in expected.split("|"):
            raise ProtocolError(f"{self.peer} sent {message.kind}; expected {expected}.")
        return message

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return, or raise, at once."""
        with self._changed:
            self._check_grace()
            return bool(self._inbox) or self._error is not None

    def wait_message(self, timeout_s: float) -> bool:
        """Wait until `has_message`, but no longer than this; return whether it is so."""
        due_s = time.monotonic() + timeout_s
        while not self.has_message:
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return False
            with self._changed:
                self._changed.wait_for(lambda: bool(self._inbox) or self._error is not None, min(left_s, _LOOK_S))
        return True

    def poll(self, expected: str) -> WireMessage | None:
        """The next message if it is here already, else None; `expected` and errors as of `receive`."""
        return self.receive(expected, 0.0) if self.has_message else None

    def count_anew(self) -> None:
        """Count bytes and seconds from here on: a turn's are its own, whatever went before it on the same connection."""
        self.bytes_sent = self.bytes_received = self.payload_bytes_received = 0
        self.receive_s = 0.0

    def wait_heard(self, timeout_s: float) -> None:
        """Wait until the peer has everything that was sent: after the last message, until it has ended the stream.

        Raises
        ------
        PeerLostError
            As `receive`.
        SplitKDError
            Whatever ended the turn before.
        """
        with self._changed:
            self._wait(lambda: not self._outbox, "an acknowledgement", timeout_s)

    def fail(self, error: BaseException) -> None:
        """Tell the peer why this side gives up, then close. Safe to call on a link that is over."""
        with self._changed:
            if not self._closed:
                self._outbox.append((failure_from(error), {}))
            self.close()

    def give_up(self, error: SplitKDError) -> None:
        """As `fail`, and whoever waits for the peer here hears of it too."""
        with self._changed:
            self._error = self._error or error
            self.fail(error)

    def close(self) -> None:
        """Send nothing more; what was queued is still drained."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether this side has closed, or the peer is given up."""
        with self._changed:
            self._check_grace()
            return self._closed

    @property
    def attached(self) -> bool:
        """Whether a stream carries this link now."""
        return self._stream is not None

    def is_carried_by(self, stream: object) -> bool:
        """Whether `stream` carries this link now."""
        return self._stream is stream

    @property
    def done(self) -> bool:
        """Whether this side has closed and the other one has, or needs, nothing more of it."""
        with self._changed:
            return self._closed and (self._peer_done or not self._outbox)

    @property
    def left(self) -> bool:
        """Whether the peer has ended the stream on purpose."""
        return self._peer_left

    @property
    def error(self) -> SplitKDError | None:
        """The first error of the turn, if it had one."""
        return self._error

    # ---- the streams' side

    def attach(self, stream: object, received: int) -> None:
        """Take `stream` instead of the one before; the peer has `received` messages of this side.

        Raises
        ------
        ProtocolError
            If it claims messages that were never sent.
        """
        with self._changed:
            self._drop_acknowledged(received)
            self.num_resumed += self._stream is not None or self._lost_s is not None
            self._stream, self._lost_s = stream, None
            self._changed.notify_all()

    @property
    def first_to_send(self) -> int:
        """Number of the first message that the peer lacks, from 0."""
        return self._acknowledged

    def take(self, stream: object, number: int) -> tuple[Any, Mapping[str, EncodedTensor]] | None:
        """Wait for message `number` to put on the wire; None when `stream` has nothing more to carry."""
        with self._changed:
            while True:
                position = number - self._acknowledged
                if self._stream is not stream or position < 0:
                    return None
                if position < len(self._outbox):
                    return self._outbox[position]
                if self._closed:
                    if self._hears_last:
                        self._changed.wait_for(
                            lambda: self._peer_done or not self._outbox or self._stream is not stream, _LAST_WORD_S
                        )
                    return None
                self._changed.wait()

    def moved(self, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes on the wire."""
        self.bytes_sent += sent
        self.bytes_received += received

    def timed(self, message: WireMessage) -> None:
        """Count a message's payload, and the seconds from its headers to its end."""
        if message.num_bytes:
            self.payload_bytes_received += message.num_bytes
            self.receive_s += message.receive_s

    def acknowledge(self, stream: object, count: int) -> None:
        """Forget the first `count` messages of this side: the peer has them.

        Raises
        ------
        ProtocolError
            If it claims messages that were never sent.
        """
        with self._changed:
            if self._stream is stream:
                self._drop_acknowledged(count)

    def deliver(self, stream: object, message: WireMessage) -> bool:
        """Wait for room in the inbox and put a message there; whether more may come."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._stream is not stream or self._has_room(message))
            if self._stream is not stream or not self._has_room(message):
                return False
            self.received += 1
            self._fruitless = 0
            if message.kind == "Failure":
                self._finish(error_from(message.body, self.peer))
            else:
                self._inbox.append(message)
            self._changed.notify_all()
            return True

    def ended(self, stream: object) -> None:
        """The peer has ended `stream` on purpose."""
        with self._changed:
            if self._stream is stream:
                self._peer_done = self._peer_left = True
                self._finish(PeerLostError(f"{self.peer} ended the stream."))

    def broken(self, stream: object, error: SplitKDError) -> None:
        """The peer's frames broke the protocol: tell it, and give it up."""
        with self._changed:
            if self._stream is stream:
                self._peer_done = True
                self.give_up(error)

    def lost(self, stream: object, reason: str) -> None:
        """`stream` is gone; wait for another one, if there is a grace period. Never blocks."""
        with self._changed:
            if self._stream is not stream:
                return
            self._stream, self._lost_s, self.lost_reason = None, time.monotonic(), reason
            self._fruitless += 1
            if self._fruitless > _FRUITLESS_STREAMS:
                self._finish(PeerLostError(f"{self.peer} was lost {self._fruitless} times in a row: {reason}"))
            self._check_grace()
            self._changed.notify_all()

    def abandon(self, error: SplitKDError) -> None:
        """Give the peer up; nothing is sent to it any more."""
        with self._changed:
            self._stream = None
            self._finish(error)

    # ---- with the lock held

    def _take(self, expected: str, timeout_s: float) -> WireMessage:
        with self._changed:
            self._wait(lambda: bool(self._inbox), expected, timeout_s)
            message = self._inbox.popleft()
            self._changed.notify_all()
            return message

    def _wait(self, ready: Callable[[], bool], expected: str, timeout_s: float) -> None:
        since_s, before = time.monotonic(), self._moved
        while not ready():
            self._check_grace()
            if self._error is not None:
                raise self._error
            now_s = time.monotonic()
            if self._stream is None:
                since_s, before = now_s, self._moved
                self._changed.wait(self._grace_left_s(now_s))
                continue
            if now_s - since_s >= timeout_s:
                self._check_rate(expected, timeout_s, self._moved - before)
                since_s, before = now_s, self._moved
            self._changed.wait(since_s + timeout_s - now_s)

    @property
    def _moved(self) -> int:
        return self.bytes_sent + self.bytes_received

    def _check_rate(self, expected: str, timeout_s: float, moved: int) -> None:
        if moved == 0:
            raise PeerTimeoutError(
                f"{self.peer} sent nothing for {timeout_s:g} s; expected {expected}. Check that it is alive and "
                "its link is up, or raise the timeout if its hardware is that slow."
            )
        if moved < self._limits.min_bytes_per_s * timeout_s:
            raise PeerTimeoutError(
                f"{moved} bytes moved between here and {self.peer} in {timeout_s:g} s; expected at least "
                f"{self._limits.min_bytes_per_s:g} bytes/s while waiting for {expected}. Check its link."
            )

    def _has_room(self, message: WireMessage) -> bool:
        waiting = sum(item.num_bytes for item in self._inbox)
        fits = waiting + message.num_bytes <= self._limits.max_message_bytes
        return not self._inbox or (len(self._inbox) < _INBOX_MESSAGES and fits)

    def _drop_acknowledged(self, count: int) -> None:
        sent = self._acknowledged + len(self._outbox)
        if count > sent:
            raise ProtocolError(
                f"{self.peer} acknowledges {count} messages; expected at most the {sent} that were sent."
            )
        while self._acknowledged < count:
            self._outbox.popleft()
            self._acknowledged += 1
            self._fruitless = 0
            self._changed.notify_all()

    def _grace_left_s(self, now_s: float) -> float:
        lost_s = now_s if self._lost_s is None else self._lost_s
        return lost_s + self.grace_period_s - now_s

    def _check_grace(self) -> None:
        if self._stream is None and self._lost_s is not None and self._grace_left_s(time.monotonic()) <= 0:
            patience = f"; it did not come back within {self.grace_period_s:g} s" if self.grace_period_s else ""
            self._finish(PeerLostError(f"{self.peer} is lost: {self.lost_reason}{patience}"))

    def _finish(self, error: SplitKDError) -> None:
        self._error = self._error or error
        self.close()
