"""Frames laid out by hand: the same bytes as protobuf's, and nothing is read that protobuf would read otherwise."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError

from flwr_splitkd.wire.chunk_frame import Chunk, ChunkFrame, Frame, parse_frame, serialize_frame
from flwr_splitkd.wire.framing import Limits, to_frames
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

FRAME_TYPES: list[type[Frame]] = [pb.UplinkFrame, pb.DownlinkFrame]
NUMBERS = [0, 1, 127, 128, 16_383, 16_384, (1 << 32) - 1]
NUMBERS_64 = [*NUMBERS, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]
SIZES = [1, 63, 127, 128, 4_096, 5_000, 1 << 20]


def _random_frame(rng: random.Random, sizes: list[int]) -> ChunkFrame:
    chunks = []
    for _ in range(rng.randint(1, 4)):
        data = rng.randbytes(rng.choice(sizes))
        chunks.append(Chunk(rng.choice(NUMBERS), rng.choice(NUMBERS), memoryview(data), zlib.crc32(data)))
    return ChunkFrame(rng.choice(NUMBERS_64), rng.choice(NUMBERS_64), chunks)


def _by_protobuf(frame_type: type[Frame], frame: ChunkFrame) -> Frame:
    message = frame_type(sequence=frame.sequence, acknowledged=frame.acknowledged)
    for chunk in frame.chunks:
        message.chunks.add(tensor=chunk.tensor, index=chunk.index, data=bytes(chunk.data), crc32=chunk.crc32)
    return message


@pytest.mark.parametrize("frame_type", FRAME_TYPES)
def test_the_bytes_are_protobufs_in_both_directions(frame_type: type[Frame]) -> None:
    rng = random.Random(1)
    for _ in range(200):
        frame = _random_frame(rng, SIZES)
        theirs = _by_protobuf(frame_type, frame)
        serialized = theirs.SerializeToString()
        assert serialize_frame(frame) == serialized
        assert frame.ByteSize() == len(serialized)
        got = parse_frame(frame_type, serialized)
        assert frame_type.FromString(got.SerializeToString()) == theirs
        assert not got.last and got.WhichOneof("body") is None


def test_large_chunks_are_views_of_what_came() -> None:
    rng = random.Random(2)
    frame = _random_frame(rng, [4_096, 1 << 20])
    serialized = serialize_frame(frame)
    got = parse_frame(pb.UplinkFrame, serialized)
    assert isinstance(got, ChunkFrame)
    assert all(isinstance(chunk.data, memoryview) and chunk.data.obj is serialized for chunk in got.chunks)
    assert got == frame


@pytest.mark.parametrize("chunk", [Chunk(0, 0, memoryview(b""), 0), Chunk(3, 0, memoryview(b""), 7)])
def test_what_is_zero_or_empty_is_left_out(chunk: Chunk) -> None:
    frame = ChunkFrame(chunks=[chunk])
    assert serialize_frame(frame) == _by_protobuf(pb.UplinkFrame, frame).SerializeToString()


def test_a_frame_of_many_small_chunks_is_protobufs() -> None:
    """It holds less memory then."""
    serialized = pb.UplinkFrame(chunks=[pb.TensorChunk()] * 10_000).SerializeToString()
    assert isinstance(parse_frame(pb.UplinkFrame, serialized), pb.UplinkFrame)


LARGE = random.Random(3).randbytes(5_000)


def _length(size: int) -> bytes:
    return bytes([size & 0x7F | 0x80, size >> 7])


_DATA = b"\x1a" + _length(5_000) + LARGE
_CRC = b"\x25" + zlib.crc32(LARGE).to_bytes(4, "little")


def _chunk(content: bytes) -> bytes:
    return b"\x7a" + _length(len(content)) + content


@pytest.mark.parametrize(
    "serialized",
    [
        _chunk(_DATA + _CRC) + b"\x68\x01",  # last
        _chunk(_DATA + _CRC) + b"\x08\x05",  # the sequence after it
        b"\x08\x05\x08\x06" + _chunk(_DATA + _CRC),  # twice
        b"\x70\x05\x08\x06" + _chunk(_DATA + _CRC),  # the other order
        b"\x08\x85\x00" + _chunk(_DATA + _CRC),  # longer than it need be
        b"\x08" + b"\xff" * 9 + b"\x7f" + _chunk(_DATA + _CRC),  # beyond 64 bits
        _chunk(_CRC + _DATA),
        _chunk(_DATA),
        _chunk(_DATA + b"\x25\0\0\0\0" + _CRC),
        _chunk(b"\x08\x80\x80\x80\x80\x10" + _DATA + _CRC),  # a tensor beyond 32 bits
        _chunk(_DATA + _CRC + b"\x50\x01"),  # a field that this version does not know
        b"\x52\x01x" + _chunk(_DATA + _CRC),
        pb.UplinkFrame(forward=pb.Forward(step=1), chunks=[pb.TensorChunk(data=LARGE)]).SerializeToString(),
    ],
)
def test_another_form_is_left_to_protobuf(serialized: bytes) -> None:
    try:
        expected: object = pb.UplinkFrame.FromString(serialized)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_frame(pb.UplinkFrame, serialized)
        return
    got = parse_frame(pb.UplinkFrame, serialized)
    assert isinstance(got, pb.UplinkFrame) and got == expected


def _flip(rng: random.Random, data: bytearray) -> None:
    # Near an end, where everything but the payload is.
    at = rng.randrange(24)
    data[at if rng.random() < 0.7 else -1 - at] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[-rng.randint(1, 20) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(24)
    data[at:at] = rng.randbytes(rng.randint(1, 12))


def _remove(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(24)
    del data[at : at + rng.randint(1, 12)]


@pytest.mark.parametrize("mutate", [_flip, _cut, _insert, _remove])
def test_mutated_bytes_mean_what_protobuf_takes_them_for(mutate: Callable[[random.Random, bytearray], None]) -> None:
    rng, by_hand, refused = random.Random(4), 0, 0
    for _ in range(4_000):
        altered = bytearray(serialize_frame(_random_frame(rng, [4_096, 5_000])))
        mutate(rng, altered)
        serialized = bytes(altered)
        try:
            expected = pb.UplinkFrame.FromString(serialized)
        except DecodeError:
            refused += 1
            with pytest.raises(DecodeError):
                parse_frame(pb.UplinkFrame, serialized)
            continue
        got = parse_frame(pb.UplinkFrame, serialized)
        by_hand += isinstance(got, ChunkFrame)
        assert pb.UplinkFrame.FromString(got.SerializeToString()) == expected
    assert refused > 100
    assert by_hand > 20 or mutate is _cut  # so that there was something to compare


def test_an_endless_number_is_given_up_soon() -> None:
    """Else its value would be built bit by bit, and megabytes of them would take minutes."""
    with pytest.raises(DecodeError):
        parse_frame(pb.UplinkFrame, b"\x08" + b"\xff" * (8 << 20))


def test_a_message_of_tensors_is_what_protobuf_makes_of_it() -> None:
    rng = random.Random(5)
    tensors = {
        str(size): EncodedTensor(pb.DTYPE_UINT8, (size,), pb.CODEC_NONE, bytearray(rng.randbytes(size)))
        for size in (0, 3, 10_000, 70_000)
    }
    frames = list(to_frames(pb.UplinkFrame, pb.Forward(step=1), tensors, Limits(chunk_bytes=30_000)))
    parsed = [pb.UplinkFrame.FromString(serialize_frame(frame)) for frame in frames]
    assert [frame.WhichOneof("body") for frame in parsed] == ["forward", None, None, None, None]
    payload = b"".join(chunk.data for frame in parsed for chunk in frame.chunks)
    assert payload == b"".join(tensor.payload for tensor in tensors.values())
