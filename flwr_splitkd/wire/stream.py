"""One connection of a turn: frames in both directions until it ends. Torch-free.

A `Stream` opens with one message each way (Hello and Welcome, or Resume and Resumed) and is then attached to a `Link`,
which outlives it: if the connection is lost, the next stream of the same turn is attached instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from flwr_splitkd.errors import CorruptFrameError, PeerLostError, PeerTimeoutError, SplitKDError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.wire.chunk_frame import ChunkFrame
from flwr_splitkd.wire.failures import failure_from
from flwr_splitkd.wire.framing import Assembler, Frame, Limits, WireMessage, parse_uplink_frame, to_frames
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tally import Tally
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Stream"]


class Stream:
    """Carries a link's messages over one connection.

    States: *opening*, *attached* (`attach` was called) and *ended*.

    Parameters
    ----------
    frame_type
        The frames that this side sends: ``pb.UplinkFrame`` or ``pb.DownlinkFrame``.
    peer
        Name of the other side in errors.
    limits
        Bounds on what is received; and the chunk size that is sent.
    tally
        Told of bytes and refusals.
    """

    def __init__(
        self, frame_type: type[Frame], *, peer: str, limits: Limits | None = None, tally: Tally | None = None
    ) -> None:
        self.peer = peer
        self._tally = tally or Tally()
        self.corrupt: CorruptFrameError | None = None
        self.displaced = False
        self._frame_type = frame_type
        self._limits = limits or Limits()
        self._assembler = Assembler(self._limits, peer, admitted=False)
        self._sequence = 0
        self._changed = threading.Condition()  # guards what follows
        self._opening: Any | None = None
        self._link: Link | None = None
        self._ended = False

    # ---- how it opens

    def open(self, body: Any) -> None:
        """Say the first message of this side; it has no tensors."""
        with self._changed:
            self._opening = body
            self._changed.notify_all()

    def refuse(self, error: BaseException) -> None:
        """Say why there will be no stream, if nothing was said yet and it goes on, and end."""
        with self._changed:
            if self._opening is None and not self._ended:
                self._opening = failure_from(error)
                if not isinstance(error, PeerLostError):  # who leaves before it has said who it is was not refused
                    self._tally.fault(fault_of(error))
        self.end("it was refused")

    @property
    def waits_for_opening(self) -> bool:
        """Whether the other side has said nothing yet that was understood."""
        return self._opening is None and self._link is None and not self._ended

    @property
    def over(self) -> bool:
        """Whether this side has nothing more to say on it than what is under way."""
        link = self._link
        return self._ended or (link is not None and (link.closed or not link.is_carried_by(self)))

    @property
    def frames_sent(self) -> int:
        """Frames that the transport has taken so far."""
        return self._sequence

    def displace(self) -> None:
        """End it in favour of another one, unless the other side has said something by now. Never blocks."""
        with self._changed:
            if not self.waits_for_opening:
                return
            self._ended = self.displaced = True
            self._changed.notify_all()

    def first(self, frames: Iterator[Frame | ChunkFrame]) -> WireMessage:
        """Wait for the other side's first message.

        Raises
        ------
        ProtocolError
            If its frames are no message, or it has tensors: whoever has shown no token must not make this side hold any.
        PeerLostError
            If the stream ends before.
        """
        for frame in frames:
            if message := self._assembler.feed(frame):
                return message
        raise PeerLostError(f"{self.peer} ended the stream before it said who it is.")

    def attach(self, link: Link, received: int = 0, *, answer: Any | None = None) -> None:
        """Carry this link's messages from now on, instead of any stream before.

        Parameters
        ----------
        received
            Messages of this side that the other one has.
        answer
            What this side says first, if the other one has opened the stream.

        Raises
        ------
        ProtocolError
            If the other side claims messages that were never sent.
        PeerLostError
            If it has ended in the meantime. The link is as it was: nobody would carry its messages.
        """
        with self._changed:  # a link takes its own lock within a stream's, never the other way round
            if self._ended:
                raise PeerLostError(f"The stream of {link.peer} ended before it was let in.")
            link.attach(self, received)
            self.peer = self._assembler.peer = link.peer
            self._link, self._opening = link, answer or self._opening
            self._changed.notify_all()

    # ---- the transport's threads

    def outgoing(self, opening_timeout_s: float | None = None) -> Iterator[Frame | ChunkFrame]:
        """Frames to put on the wire, in order, until this side has no more to say or the stream has ended.

        Parameters
        ----------
        opening_timeout_s
            Seconds to wait for what this side says first, if that is an answer.
        """
        opening = self._wait_opening(opening_timeout_s)
        if opening is not None:
            yield from self._frames(opening, {}, 0)
        with self._changed:
            self._changed.wait_for(lambda: self._link is not None or self._ended)
            link = self._link
        if link is None:
            return
        number = link.first_to_send
        while (item := link.take(self, number)) is not None:
            for frame in self._frames(*item, link.received):
                size = frame.ByteSize()
                link.moved(sent=size)
                self._tally.moved(sent=size)
                yield frame
            number += 1
        if link.closed and not self._ended:
            yield self._frame_type(sequence=self._sequence, acknowledged=link.received, last=True)

    def parsed(self, serialized: Iterable[bytes]) -> Iterator[pb.UplinkFrame | ChunkFrame]:
        """A device's frames, each parsed when it is asked for.

        Raises
        ------
        ProtocolError
            If one is larger than it may be before the device's turn.
        CorruptFrameError
            If one is no frame.
        """
        for one in serialized:
            admitted = self._link is not None and self._link.admitted
            yield parse_uplink_frame(one, self._limits, self.peer, admitted=admitted)

    def carry(self, frames: Iterable[Frame | ChunkFrame]) -> None:
        """Hand the other side's messages to the link until there are no more.

        Whatever the frames contain is no reason to raise here; only the transport's own iterator may.
        """
        link = self._link
        if link is None:
            raise ValueError("Only a stream that is attached can carry messages.")
        headers_s = 0.0
        try:
            for frame in frames:
                if frame.WhichOneof("body"):
                    headers_s = time.monotonic()
                size = frame.ByteSize()
                link.moved(received=size)
                self._tally.moved(received=size)
                link.acknowledge(self, frame.acknowledged)
                self._assembler.admitted = link.admitted
                message = self._assembler.feed(frame)
                if frame.last:
                    link.ended(self)
                    return
                if message is None:
                    continue
                now_s = time.monotonic()
                message = replace(message, receive_s=now_s - headers_s, arrived_s=now_s)
                link.timed(message)
                if not link.deliver(self, message):
                    return
            self.end("its connection dropped")
        except CorruptFrameError as error:  # the bytes, not the peer, are to blame: they are sent again
            self.corrupt = error
            self.end(str(error))
        except SplitKDError as error:
            link.broken(self, error)

    def end(self, reason: str) -> None:
        """Take the transport's word that the connection is gone. Never blocks: it is called on the transport's threads."""
        with self._changed:
            self._ended = True
            link = self._link
            self._changed.notify_all()
        if link is not None:
            link.lost(self, reason)

    def _wait_opening(self, timeout_s: float | None) -> Any | None:
        with self._changed:
            ready = self._changed.wait_for(lambda: self._opening or self._link or self._ended, timeout_s)
            if not ready:
                silence = PeerTimeoutError(f"{self.peer} sent nothing for {timeout_s:g} s; expected Hello or Resume.")
                self._opening, self._ended = failure_from(silence), True
                self._tally.fault(fault_of(silence))
            return self._opening

    def _frames(self, body: Any, tensors: Any, acknowledged: int) -> Iterator[Frame | ChunkFrame]:
        for frame in to_frames(self._frame_type, body, tensors, self._limits):
            frame.sequence = self._sequence
            frame.acknowledged = acknowledged
            self._sequence += 1
            yield frame
