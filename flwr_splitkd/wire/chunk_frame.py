"""Frames that carry chunks alone, laid out as protobuf lays them out, with one copy of the payload. Torch-free.

protobuf copies a chunk into the message, from the message into its own buffer and from there into bytes; and back again twice.
Here the chunk stays where it is until all of a frame is joined, and a received chunk is a view of the bytes that came.

On the wire nothing is different. What is written here is, byte for byte, what ``pb.UplinkFrame`` would have written. What is
read here is only that form: anything else that protobuf may mean (unknown fields, another order, a body) is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Chunk", "ChunkFrame", "Frame", "parse_frame", "serialize_frame"]

# Tags: field number << 3 | wire type (0 varint, 2 length, 5 four bytes). The two kinds of frames have the same ones here.
_SEQUENCE, _ACKNOWLEDGED, _CHUNKS = 1 << 3, 14 << 3, 15 << 3 | 2
_TENSOR, _INDEX, _DATA, _CRC32 = 1 << 3, 2 << 3, 3 << 3 | 2, 4 << 3 | 5

_LEAST_BYTES = 4096
"""Bytes of a chunk from which a view of it saves something. An object for each smaller one would cost a hostile peer's frame of
empty chunks' receiver ten times the memory that protobuf takes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """As `pb.TensorChunk`, whose comments say what the fields are; the data stay where they lie."""

    tensor: int
    index: int
    data: memoryview = field(repr=False)
    crc32: int


@dataclass(slots=True)
class ChunkFrame:
    """A frame of either direction without a body: what of protobuf's frames its senders and receivers need.

    Parameters
    ----------
    sequence, acknowledged
        As in the proto.
    chunks
        In the order in which they travel.
    """

    sequence: int = 0
    acknowledged: int = 0
    chunks: Sequence[Chunk] = ()

    @property
    def last(self) -> bool:
        """A frame with chunks never ends a stream."""
        return False

    def WhichOneof(self, oneof_group: str) -> None:
        """None: it has no body."""

    def ByteSize(self) -> int:
        """Bytes on the wire."""
        return sum(map(len, self._pieces()))

    def SerializeToString(self) -> bytes:
        """Return what protobuf would write for the same frame; the one place where the payload is copied."""
        return b"".join(self._pieces())

    def _pieces(self) -> list[bytes | memoryview]:
        pieces: list[bytes | memoryview] = [
            _number(_SEQUENCE, self.sequence),
            _number(_ACKNOWLEDGED, self.acknowledged),
        ]
        for chunk in self.chunks:
            before = _number(_TENSOR, chunk.tensor) + _number(_INDEX, chunk.index)
            if len(chunk.data):
                before += _number(_DATA, len(chunk.data))
            after = bytes([_CRC32]) + chunk.crc32.to_bytes(4, "little") if chunk.crc32 else b""
            size = len(before) + len(chunk.data) + len(after)
            pieces += [bytes([_CHUNKS]) + _varint(size) + before, chunk.data, after]
        return pieces


Frame = pb.UplinkFrame | pb.DownlinkFrame


def parse_frame(frame_type: type[Frame], serialized: bytes) -> Frame | ChunkFrame:
    """Parse a frame; where it has the form above, its chunks are views of `serialized`.

    Raises
    ------
    google.protobuf.message.DecodeError
        If the bytes are no frame.
    """
    if len(serialized) >= _LEAST_BYTES:
        try:
            frame = _parse(memoryview(serialized))
        except IndexError:
            frame = None
        if frame is not None:
            return frame
    parsed: Frame = frame_type.FromString(serialized)
    return parsed


def serialize_frame(frame: Frame | ChunkFrame) -> bytes:
    """Return a frame's bytes: what gRPC is given, since protobuf's own method takes protobuf's own messages alone."""
    return frame.SerializeToString()


def _parse(view: memoryview) -> ChunkFrame | None:
    """None, or an IndexError, where it has another form."""
    sequence, at = _read(view, 0, _SEQUENCE)
    acknowledged, at = _read(view, at, _ACKNOWLEDGED)
    chunks = []
    while at < len(view):
        if view[at] != _CHUNKS:
            return None
        size, at = _read(view, at, _CHUNKS)
        chunk = _parse_chunk(view[at : at + size], size)
        if chunk is None:
            return None
        chunks.append(chunk)
        at += size
    return ChunkFrame(sequence, acknowledged, chunks)


def _parse_chunk(view: memoryview, size: int) -> Chunk | None:
    if len(view) != size or size < _LEAST_BYTES:
        return None
    tensor, at = _read(view, 0, _TENSOR)
    index, at = _read(view, at, _INDEX)
    num_bytes, at = _read(view, at, _DATA)
    end = at + num_bytes
    after = view[end:]
    if num_bytes < _LEAST_BYTES or max(tensor, index) >= 1 << 32 or len(after) != 5 or after[0] != _CRC32:
        return None
    return Chunk(tensor, index, view[at:end], int.from_bytes(after[1:], "little"))


def _read(view: memoryview, at: int, tag: int) -> tuple[int, int]:
    """The number after a one-byte tag, 0 where another tag stands; and where to go on."""
    if view[at] != tag:
        return 0, at
    value = 0
    for shift in range(0, 64, 7):
        at += 1
        byte = view[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    if byte >= 0x80 or value >= 1 << 64 or (shift and not byte):
        raise IndexError  # more than a number holds, or longer than it need be: protobuf's to judge
    return value, at + 1


def _number(tag: int, value: int) -> bytes:
    """A field as proto3 writes it: not at all where it is 0."""
    return bytes([tag]) + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
