"""Messages to frames and back, with every bound checked before a byte is allocated. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from flwr_splitkd.errors import CorruptFrameError, ProtocolError, TensorError
from flwr_splitkd.wire.checksum import crc32
from flwr_splitkd.wire.chunk_frame import Chunk, ChunkFrame, Frame, parse_frame
from flwr_splitkd.wire.tensors import EncodedTensor, payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Assembler", "Frame", "Limits", "WireMessage", "parse_uplink_frame", "to_frames"]

_BODY_FIELDS: dict[type[Frame], dict[str, str]] = {
    frame_type: {
        field_.message_type.name: field_.name for field_ in frame_type.DESCRIPTOR.oneofs_by_name["body"].fields
    }
    for frame_type in (pb.UplinkFrame, pb.DownlinkFrame)
}


_MAX_NAME = 512
"""Characters of a tensor's name: it comes from outside and goes into errors."""
_AHEAD = 16
"""Times what has arrived of a tensor for which there is room at once; until bytes arrive there the system gives no memory."""
_MOST_AHEAD_BYTES = 64 << 20
"""Room from which it only doubles: an address space has its end, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a receiver accepts from a peer.

    Parameters
    ----------
    max_message_bytes
        Payload bytes of one message, all tensors together.
    max_tensors
        Tensors in one message.
    max_dimensions
        Dimensions of one tensor.
    chunk_bytes
        Payload bytes that a sender puts into one frame.
    max_frame_bytes
        Serialized bytes of one frame; gRPC drops larger ones before they are read.
    max_opening_bytes
        Serialized bytes of one frame of a device that has not its turn yet: Hello is the largest.
    min_bytes_per_s
        Slowest rate at which a peer that is waited for may move its bytes.
    """

    max_message_bytes: int = 64 << 30
    max_tensors: int = 20_000
    max_dimensions: int = 8
    chunk_bytes: int = 1 << 20
    max_frame_bytes: int = 8 << 20
    max_opening_bytes: int = 256 << 10
    min_bytes_per_s: float = 4096.0


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A body with its tensors, in the order of the body's headers; the seconds in which they came, and when the last had."""

    body: Any  # one of the body messages of a Frame; protobuf has no common static type for them
    tensors: dict[str, EncodedTensor] = field(default_factory=dict)
    receive_s: float = 0.0
    arrived_s: float = 0.0

    @property
    def kind(self) -> str:
        """The body's message name, e.g. ``"Forward"``."""
        return str(self.body.DESCRIPTOR.name)

    @property
    def num_bytes(self) -> int:
        """Payload bytes of all its tensors."""
        return sum(len(tensor.payload) for tensor in self.tensors.values())


def to_frames(
    frame_type: type[Frame], body: Any, tensors: Mapping[str, EncodedTensor], limits: Limits
) -> Iterator[Frame | ChunkFrame]:
    """Lay a message out in frames of at most ``limits.chunk_bytes`` payload; sequence numbers are unset.

    The frames after the first refer to the tensors' memory; it is copied when they are serialized.

    The body goes first and alone: from its arrival to the last chunk's the receiver can tell the link's rate.
    """
    frame = frame_type()
    slot = getattr(frame, _BODY_FIELDS[frame_type][body.DESCRIPTOR.name])
    slot.CopyFrom(body)  # not the body itself, which may have to be sent again
    for name, tensor in tensors.items():
        total = len(tensor.payload)
        slot.tensors.add(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            codec=tensor.codec,
            total_bytes=total,
            num_chunks=-(-total // limits.chunk_bytes),
        )
    yield frame
    chunks: list[Chunk] = []
    room = limits.chunk_bytes
    for position, tensor in enumerate(tensors.values()):
        payload = memoryview(tensor.payload)
        for index, start in enumerate(range(0, len(payload), limits.chunk_bytes)):
            data = payload[start : start + limits.chunk_bytes]
            if len(data) > room:
                yield ChunkFrame(chunks=chunks)
                chunks, room = [], limits.chunk_bytes
            chunks.append(Chunk(position, index, data, crc32(data)))
            room -= len(data)
    if chunks:
        yield ChunkFrame(chunks=chunks)


def parse_uplink_frame(serialized: bytes, limits: Limits, peer: str, *, admitted: bool) -> pb.UplinkFrame | ChunkFrame:
    """Parse a frame whose sender need not be what it says.

    A frame of many small parts takes up to thirty times its bytes once it is parsed, so those before the device's turn must be
    small.

    Raises
    ------
    ProtocolError
        If the frame is larger than it may be before its device's turn.
    CorruptFrameError
        If the bytes are no frame: they were altered on their way, or come from something that is no device.
    """
    if not admitted and len(serialized) > limits.max_opening_bytes:
        raise ProtocolError(
            f"{peer} sent a frame of {len(serialized)} bytes; expected at most {limits.max_opening_bytes} before its turn."
        )
    try:
        return parse_frame(pb.UplinkFrame, serialized)
    except DecodeError:
        raise CorruptFrameError(
            f"{peer} sent {len(serialized)} bytes that are no frame; expected one of protocol flwr_splitkd.wire.v1."
        ) from None


class Assembler:
    """Puts one direction of a stream back together.

    States: *between messages* (the next frame must have a body) and *inside a message* (the next frames must
    carry the missing chunks, in order). Anything else is refused, and the stream is over. Until it is `admitted`,
    a peer may send bodies alone: whoever has shown no token, or has not its turn yet, must not make this side hold tensors.
    """

    def __init__(self, limits: Limits, peer: str, *, admitted: bool = True) -> None:
        self._limits = limits
        self.peer = peer
        self.admitted = admitted
        self._next_sequence = 0
        self._message: _Partial | None = None

    def feed(self, frame: Frame | ChunkFrame) -> WireMessage | None:
        """Take the next frame; return the message that it completes, if it completes one.

        Raises
        ------
        ProtocolError
            If the frame is out of sequence or has no place here.
        TensorError
            If a tensor is declared beyond the limits, truncated, oversized, duplicated or reordered.
        CorruptFrameError
            If bytes of a tensor were altered on their way.
        """
        self._check_sequence(frame)
        if frame.last:
            self._end()
            return None
        body_field = frame.WhichOneof("body")
        if body_field is not None:
            if self._message is not None:
                raise TensorError(f"{self._message.position()} was truncated by a new message. {self._blame()}")
            body = getattr(frame, body_field)
            if not self.admitted and len(getattr(body, "tensors", [])):
                raise ProtocolError(
                    f"{self.peer} announces {len(body.tensors)} tensors in a {body.DESCRIPTOR.name}; expected none "
                    "before its turn."
                )
            self._message = _Partial(body, self._limits, self.peer)
        elif self._message is None or not frame.chunks:
            raise ProtocolError(f"A frame has neither a body nor chunks that were announced. {self._blame()}")
        for chunk in frame.chunks:
            self._message.add(chunk)
        if not self._message.complete:
            return None
        message, self._message = self._message.finish(), None
        return message

    def _end(self) -> None:
        if self._message is not None:
            raise TensorError(f"{self._message.position()} was truncated by the stream's end. {self._blame()}")

    def _check_sequence(self, frame: Frame | ChunkFrame) -> None:
        expected, got = self._next_sequence, frame.sequence
        if got != expected:
            what = "duplicated" if got < expected else "lost or reordered"
            raise ProtocolError(f"Frame sequence is {got}; expected {expected}: a frame was {what}. {self._blame()}")
        self._next_sequence += 1

    def _blame(self) -> str:
        return f"The stream of {self.peer} was closed; nothing of this message was used."


class _Partial:
    """A message whose tensors are still arriving."""

    def __init__(self, body: Any, limits: Limits, peer: str) -> None:
        self._body = body
        self._kind = body.DESCRIPTOR.name
        self._headers = list(body.tensors) if "tensors" in body.DESCRIPTOR.fields_by_name else []
        self._check_headers(limits, peer)
        # Grown as bytes arrive: a header that promises much and sends little costs nothing.
        self._buffers = [np.empty(0, np.uint8) for _ in self._headers]
        self._tensor, self._chunk, self._filled = 0, 0, 0
        self._skip_empty()

    @property
    def complete(self) -> bool:
        return self._tensor == len(self._headers)

    def position(self) -> str:
        header = self._headers[self._tensor]
        return (
            f"Tensor {header.name!r} of {self._kind} (chunk {self._chunk} of {header.num_chunks}, "
            f"{self._filled} of {header.total_bytes} bytes)"
        )

    def add(self, chunk: pb.TensorChunk | Chunk) -> None:
        if self.complete:
            raise TensorError(
                f"{self._kind} carries chunk {chunk.index} of tensor {chunk.tensor} beyond its last tensor; "
                "expected none: it was oversized or a chunk was duplicated."
            )
        expected, got = (self._tensor, self._chunk), (chunk.tensor, chunk.index)
        if got != expected:
            what = "duplicated" if got < expected else "lost or reordered"
            raise TensorError(f"{self.position()}: got chunk {got}, expected {expected}; a chunk was {what}.")
        data = chunk.data  # once: a message makes a copy each time
        header, end = self._headers[self._tensor], self._filled + len(data)
        if end > header.total_bytes:
            raise TensorError(f"{self.position()} is oversized: {end} bytes arrived.")
        if (got_crc := crc32(data)) != chunk.crc32:
            raise CorruptFrameError(
                f"{self.position()} has CRC-32 {got_crc:08x}; expected {chunk.crc32:08x}: its bytes were altered on their way."
            )
        self._append(data, end, header.total_bytes)
        self._chunk, self._filled = self._chunk + 1, end
        if self._chunk == header.num_chunks:
            if self._filled != header.total_bytes:
                raise TensorError(f"{self.position()} is truncated: its last chunk has arrived.")
            self._tensor, self._chunk, self._filled = self._tensor + 1, 0, 0
            self._skip_empty()

    def finish(self) -> WireMessage:
        tensors = {
            header.name: EncodedTensor(header.dtype, tuple(header.shape), header.codec, buffer.data)
            for header, buffer in zip(self._headers, self._buffers, strict=True)
        }
        return WireMessage(self._body, tensors)

    def _append(self, data: bytes | memoryview, end: int, total: int) -> None:
        buffer = self._buffers[self._tensor]
        if end > len(buffer):
            room = max(min(_AHEAD * end, _MOST_AHEAD_BYTES), 2 * end)
            grown = np.empty(min(room, total), np.uint8)
            grown[: self._filled] = buffer[: self._filled]
            self._buffers[self._tensor] = buffer = grown
        buffer[self._filled : end] = np.frombuffer(data, np.uint8)

    def _skip_empty(self) -> None:
        while not self.complete and self._headers[self._tensor].total_bytes == 0:
            self._tensor += 1

    def _check_headers(self, limits: Limits, peer: str) -> None:
        """Refuse before allocating: counts, dimensions, sizes and names."""
        if len(self._headers) > limits.max_tensors:
            raise TensorError(
                f"{self._kind} of {peer} announces {len(self._headers)} tensors; expected at most {limits.max_tensors}."
            )
        names: set[str] = set()
        total = 0
        for header in self._headers:
            if len(header.name) > _MAX_NAME:
                raise TensorError(
                    f"{self._kind} of {peer} announces a tensor whose name has {len(header.name)} characters; expected at "
                    f"most {_MAX_NAME}."
                )
            what = f"Tensor {header.name!r} of {self._kind} from {peer}"
            if header.name in names:
                raise TensorError(f"{what} is announced twice; expected each name once.")
            names.add(header.name)
            if len(header.shape) > limits.max_dimensions:
                raise TensorError(
                    f"{what} has {len(header.shape)} dimensions; expected at most {limits.max_dimensions}."
                )
            # Zeros hide a shape that no tensor can have, such as [0, 2**63].
            spanned = math.prod(max(size, 1) for size in header.shape)
            if spanned > limits.max_message_bytes:
                raise TensorError(
                    f"{what} has shape {list(header.shape)}; expected at most {limits.max_message_bytes} values. "
                    "Raise `max_message_bytes` if the model is really that large."
                )
            implied = payload_bytes(header.dtype, header.shape, header.codec)
            if header.total_bytes != implied:
                raise TensorError(
                    f"{what} announces {header.total_bytes} bytes; expected {implied} for shape {list(header.shape)}."
                )
            if not min(implied, 1) <= header.num_chunks <= implied:
                raise TensorError(
                    f"{what} announces {header.num_chunks} chunks; expected {min(implied, 1)}..{implied}."
                )
            total += implied
        if total > limits.max_message_bytes:
            raise TensorError(
                f"{self._kind} of {peer} announces {total} bytes; expected at most {limits.max_message_bytes}. "
                "Raise `max_message_bytes` if the model is really that large."
            )
