"""Messages in frames: whatever is sent arrives whole, and whatever is wrong is refused before memory is spent."""

from __future__ import annotations

import re
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from flwr_splitkd.errors import CorruptFrameError, ProtocolError, TensorError
from flwr_splitkd.wire import framing
from flwr_splitkd.wire.framing import Assembler, Limits, WireMessage, parse_uplink_frame, to_frames
from flwr_splitkd.wire.tensors import ITEM_BYTES, EncodedTensor, payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

TIB = 1 << 40
DTYPES = sorted(ITEM_BYTES)


def _tensor(rng: np.random.Generator, shape: tuple[int, ...], dtype: int = pb.DTYPE_UINT8) -> EncodedTensor:
    return EncodedTensor(dtype, shape, pb.CODEC_NONE, rng.bytes(payload_bytes(dtype, shape, pb.CODEC_NONE)))


def _frames(messages: list[tuple[pb.Forward, dict[str, EncodedTensor]]], limits: Limits) -> list[pb.UplinkFrame]:
    """Serialized, parsed and numbered as on the wire."""
    frames = []
    for body, tensors in messages:
        for frame in to_frames(pb.UplinkFrame, body, tensors, limits):
            frame.sequence = len(frames)
            frames.append(pb.UplinkFrame.FromString(frame.SerializeToString()))
    return frames


def _assemble(frames: list[pb.UplinkFrame], limits: Limits | None = None) -> list[WireMessage]:
    assembler = Assembler(limits or Limits(), "device 3")
    last = type(frames[0])(sequence=len(frames), last=True)
    return [message for frame in [*frames, last] if (message := assembler.feed(frame))]


@pytest.mark.parametrize("chunk_bytes", [1, 3, 7, 64, 1000, 1 << 20])
def test_random_layouts_survive(chunk_bytes: int) -> None:
    limits = Limits(chunk_bytes=chunk_bytes)
    rng = np.random.default_rng(chunk_bytes)
    for _ in range(30):
        sent = []
        for step in range(int(rng.integers(1, 4))):
            tensors = {}
            for index in range(int(rng.integers(0, 6))):
                shape = tuple(int(size) for size in rng.integers(0, 6, size=int(rng.integers(0, 4))))
                tensors[f"{index}/{rng.integers(9)}"] = _tensor(rng, shape, int(rng.choice(DTYPES)))
            sent.append((pb.Forward(step=step, num_microbatches=2), tensors))
        frames = _frames(sent, limits)
        for frame in frames:
            assert sum(len(chunk.data) for chunk in frame.chunks) <= chunk_bytes
        received = _assemble(frames)
        assert len(received) == len(sent)
        for message, (body, tensors) in zip(received, sent, strict=True):
            assert (message.kind, message.body.step) == ("Forward", body.step)
            assert list(message.tensors) == list(tensors)
            for name, tensor in tensors.items():
                got = message.tensors[name]
                assert (got.dtype, got.shape, got.codec) == (tensor.dtype, tensor.shape, tensor.codec)
                assert bytes(got.payload) == bytes(tensor.payload)


def test_every_body_fits_a_frame_of_its_direction() -> None:
    for frame_type in (pb.UplinkFrame, pb.DownlinkFrame):
        for field in frame_type.DESCRIPTOR.oneofs_by_name["body"].fields:
            body = getattr(pb, field.message_type.name)()
            (frame,) = to_frames(frame_type, body, {}, Limits())
            assert frame.WhichOneof("body") == field.name
            message = Assembler(Limits(), "x").feed(frame)
            assert message is not None and message.kind == field.message_type.name


def _two_tensors(chunk_bytes: int = 4) -> list[pb.UplinkFrame]:
    """One message: "a" of 10 bytes in chunks 0, 1, 2 and "b" of 4 bytes in chunk 0; a frame for each chunk.

    The body shares the first one's frame, which is allowed too, so that each frame's number is its chunk's.
    """
    rng = np.random.default_rng(0)
    tensors = {"a": _tensor(rng, (10,)), "b": _tensor(rng, (4,))}
    frames = _frames([(pb.Forward(step=5), tensors)], Limits(chunk_bytes=chunk_bytes))
    assert [[(c.tensor, c.index) for c in f.chunks] for f in frames] == [[], [(0, 0)], [(0, 1)], [(0, 2)], [(1, 0)]]
    body = frames.pop(0)
    frames[0].forward.CopyFrom(body.forward)
    return _renumber(frames)


def _renumber(frames: list[pb.UplinkFrame]) -> list[pb.UplinkFrame]:
    out = []
    for sequence, frame in enumerate(frames):
        copy = pb.UplinkFrame()
        copy.CopyFrom(frame)
        copy.sequence = sequence
        out.append(copy)
    return out


def test_the_body_goes_first_and_alone() -> None:
    """So that the receiver knows when the payload began to arrive."""
    tensor = _tensor(np.random.default_rng(0), (10,))
    first, second = _frames([(pb.Forward(step=5), {"a": tensor})], Limits())
    assert first.WhichOneof("body") == "forward" and not first.chunks
    assert second.WhichOneof("body") is None and len(second.chunks) == 1


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 0, 1, 2, 3], "Frame sequence is 0; expected 1: a frame was duplicated"),
        ([0, 2, 1, 3], "Frame sequence is 2; expected 1: a frame was lost or reordered"),
        ([0, 1, 3], "Frame sequence is 3; expected 2: a frame was lost or reordered"),
        ([1], "Frame sequence is 1; expected 0"),
    ],
)
def test_frames_out_of_sequence(order: list[int], message: str) -> None:
    frames = _two_tensors()
    with pytest.raises(ProtocolError, match=re.escape(message)) as caught:
        _assemble([frames[index] for index in order])
    assert "device 3" in str(caught.value)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        # Renumbered, so that only the chunks themselves can tell.
        ([0, 1, 1, 2, 3], "got chunk (0, 1), expected (0, 2); a chunk was duplicated"),
        ([0, 2, 1, 3], "got chunk (0, 2), expected (0, 1); a chunk was lost or reordered"),
        ([0, 1, 3, 2], "got chunk (1, 0), expected (0, 2); a chunk was lost or reordered"),
        ([0, 1, 2, 2], "got chunk (0, 2), expected (1, 0); a chunk was duplicated"),
        ([0, 1], "Tensor 'a' of Forward (chunk 2 of 3, 8 of 10 bytes) was truncated by the stream's end"),
        ([0, 1, 2], "Tensor 'b' of Forward (chunk 0 of 1, 0 of 4 bytes) was truncated by the stream's end"),
        ([0, 1, 0], "Tensor 'a' of Forward (chunk 2 of 3, 8 of 10 bytes) was truncated by a new message"),
    ],
)
def test_chunks_out_of_order(order: list[int], message: str) -> None:
    frames = _two_tensors()
    with pytest.raises(TensorError, match=re.escape(message)):
        _assemble(_renumber([frames[index] for index in order]))


def test_a_chunk_beyond_the_last_tensor() -> None:
    frames = _two_tensors()
    frames[-1].chunks.add(tensor=1, index=1, data=b"more")
    with pytest.raises(TensorError, match="chunk 1 of tensor 1 beyond its last tensor"):
        _assemble(frames)


def test_a_frame_too_many() -> None:
    frames = _two_tensors()
    extra = pb.UplinkFrame()
    extra.chunks.add(tensor=1, index=1, data=b"more")
    with pytest.raises(ProtocolError, match="neither a body nor chunks that were announced"):
        _assemble(_renumber([*frames, extra]))


def test_an_empty_frame_within_a_message_is_no_progress() -> None:
    frames = _two_tensors()
    with pytest.raises(ProtocolError, match="neither a body nor chunks"):
        _assemble(_renumber([frames[0], pb.UplinkFrame()]))


@pytest.mark.parametrize(
    ("frame", "data", "message"),
    [
        (0, b"12345", "'a' of Forward (chunk 2 of 3, 9 of 10 bytes) is oversized: 11 bytes arrived"),
        (2, b"123", "'a' of Forward (chunk 2 of 3, 8 of 10 bytes) is oversized: 11 bytes arrived"),
        (2, b"1", "'a' of Forward (chunk 3 of 3, 9 of 10 bytes) is truncated: its last chunk has arrived"),
        (3, b"", "'b' of Forward (chunk 1 of 1, 0 of 4 bytes) is truncated"),
        (3, b"12345", "'b' of Forward (chunk 0 of 1, 0 of 4 bytes) is oversized: 5 bytes arrived"),
    ],
)
def test_a_chunk_of_another_size(frame: int, data: bytes, message: str) -> None:
    frames = _two_tensors()
    frames[frame].chunks[0].data = data
    frames[frame].chunks[0].crc32 = zlib.crc32(data)
    with pytest.raises(TensorError, match=re.escape(message)):
        _assemble(frames)


def test_bytes_that_were_altered() -> None:
    frames = _two_tensors()
    frames[2].chunks[0].data = bytes([frames[2].chunks[0].data[0] ^ 4]) + frames[2].chunks[0].data[1:]
    with pytest.raises(CorruptFrameError, match=re.escape("'a' of Forward (chunk 2 of 3, 8 of 10 bytes) has CRC-32")):
        _assemble(frames)


def _header(frame: pb.UplinkFrame) -> pb.TensorHeader:
    return frame.forward.tensors[0]


def _one_tib(header: pb.TensorHeader) -> None:
    header.shape[:] = [TIB]
    header.total_bytes, header.num_chunks = TIB, TIB >> 20


def _wrong_total(header: pb.TensorHeader) -> None:
    header.total_bytes = 11


def _wrong_shape(header: pb.TensorHeader) -> None:
    header.shape[:] = [2, 6]


def _many_dimensions(header: pb.TensorHeader) -> None:
    header.shape[:] = [1] * 9


def _no_chunks(header: pb.TensorHeader) -> None:
    header.num_chunks = 0


def _chunks_without_end(header: pb.TensorHeader) -> None:
    header.num_chunks = 11


def _impossible_shape(header: pb.TensorHeader) -> None:
    header.shape[:] = [0, 2**63]
    header.total_bytes, header.num_chunks = 0, 0


def _overflowing_shape(header: pb.TensorHeader) -> None:
    header.shape[:] = [2**33, 2**33]
    header.total_bytes, header.num_chunks = 4, 1  # what 32 bits would make of it


def _chunks_of_nothing(header: pb.TensorHeader) -> None:
    header.shape[:] = [0]
    header.total_bytes, header.num_chunks = 0, 1


def _unknown_dtype(header: pb.TensorHeader) -> None:
    header.dtype = 77  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (_one_tib, f"Tensor 'a' of Forward from device 3 has shape [{TIB}]; expected at most {64 << 30} values"),
        (_wrong_total, "Tensor 'a' of Forward from device 3 announces 11 bytes; expected 10 for shape [10]"),
        (_wrong_shape, "announces 10 bytes; expected 12 for shape [2, 6]"),
        (_many_dimensions, "has 9 dimensions; expected at most 8"),
        (_no_chunks, "announces 0 chunks; expected 1..10"),
        (_chunks_without_end, "announces 11 chunks; expected 1..10"),
        (_impossible_shape, f"has shape [0, {2**63}]; expected at most"),
        (_overflowing_shape, f"has shape [{2**33}, {2**33}]; expected at most"),
        (_chunks_of_nothing, "announces 1 chunks; expected 0..0"),
        (_unknown_dtype, "dtype code is 77"),
    ],
)
def test_headers_that_lie(lie: Callable[[pb.TensorHeader], None], message: str) -> None:
    frame = _two_tensors()[0]
    lie(_header(frame))
    tracemalloc.start()
    started_s = time.monotonic()
    with pytest.raises(TensorError, match=re.escape(message)):
        _assemble([frame])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    assert time.monotonic() - started_s < 1


def test_the_sum_of_all_tensors_is_bounded() -> None:
    limits = Limits(max_message_bytes=100)
    tensors = {str(index): _tensor(np.random.default_rng(0), (30,)) for index in range(4)}
    frames = _frames([(pb.Forward(), tensors)], Limits())
    with pytest.raises(TensorError, match="announces 120 bytes; expected at most 100. Raise `max_message_bytes`"):
        _assemble(frames, limits)


def test_the_number_of_tensors_is_bounded() -> None:
    tensors = {str(index): _tensor(np.random.default_rng(0), (1,)) for index in range(4)}
    frames = _frames([(pb.Forward(), tensors)], Limits())
    with pytest.raises(TensorError, match="announces 4 tensors; expected at most 3"):
        _assemble(frames, Limits(max_tensors=3))


def test_a_name_twice() -> None:
    frame = _two_tensors()[0]
    frame.forward.tensors[1].name = "a"
    with pytest.raises(TensorError, match="'a' of Forward from device 3 is announced twice"):
        _assemble([frame])


def test_a_promise_within_the_bounds_costs_nothing_until_bytes_arrive() -> None:
    """32 GiB are allowed; whoever announces them and sends one byte must not take 32 GiB of the edge's memory."""
    frame = _two_tensors()[0]
    header = _header(frame)
    header.shape[:] = [32 << 30]
    header.total_bytes, header.num_chunks = 32 << 30, 32 << 10
    tracemalloc.start()
    assert Assembler(Limits(), "device 3").feed(frame) is None
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_room_grows_with_what_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first to a multiple, later to twice as much; never beyond what was announced, and nothing is lost on the way."""
    monkeypatch.setattr(framing, "_MOST_AHEAD_BYTES", 1 << 20)
    total, chunk_bytes = 8 << 20, 60_000
    tensor = _tensor(np.random.default_rng(0), (total,))
    tracemalloc.start()
    assembler, message, arrived = Assembler(Limits(), "device 3"), None, 0
    for frame in _frames([(pb.Forward(), {"a": tensor})], Limits(chunk_bytes=chunk_bytes)):
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        message = assembler.feed(frame)
        arrived += sum(len(chunk.data) for chunk in frame.chunks)
        # A chunk of a message is a copy, too.
        most = max(min(16 * arrived, 1 << 20), 2 * arrived) + chunk_bytes + 20_000
        assert tracemalloc.get_traced_memory()[1] - held <= most
    tracemalloc.stop()
    assert message is not None and bytes(message.tensors["a"].payload) == tensor.payload


def test_a_stranger_may_not_send_tensors() -> None:
    frames = _two_tensors()
    stranger = Assembler(Limits(), "a stranger", admitted=False)
    with pytest.raises(ProtocolError, match="a stranger announces 2 tensors in a Forward; expected none before"):
        stranger.feed(frames[0])
    device = Assembler(Limits(), "a stranger", admitted=False)
    hello = pb.UplinkFrame(hello=pb.Hello(protocol_version=1))
    assert device.feed(hello) is not None
    device.peer, device.admitted = "device 3", True
    for frame in frames:
        frame.sequence += 1
    assert [device.feed(frame) for frame in frames][-1] is not None
    with pytest.raises(ProtocolError, match="The stream of device 3 was closed"):
        device.feed(frames[0])


# ---- from bytes


def test_bytes_that_are_no_frame() -> None:
    for garbage in (b"\xff" * 40, b"\x12\x7f", b"GET / HTTP/1.1\r\n\r\n"):
        with pytest.raises(CorruptFrameError, match=f"device 3 sent {len(garbage)} bytes that are no frame"):
            parse_uplink_frame(garbage, Limits(), "device 3", admitted=True)


def test_a_frame_is_small_before_its_turn() -> None:
    """Such as one of many empty chunks, which takes thirty times its bytes."""
    limits = Limits(max_opening_bytes=100)
    for size in (100, 102):
        serialized = pb.UplinkFrame(chunks=[pb.TensorChunk()] * (size // 2)).SerializeToString()
        assert len(serialized) == size
        assert len(parse_uplink_frame(serialized, limits, "device 3", admitted=True).chunks) == size // 2
    with pytest.raises(ProtocolError, match="device 3 sent a frame of 102 bytes; expected at most 100 before its turn"):
        parse_uplink_frame(serialized, limits, "device 3", admitted=False)
    assert len(parse_uplink_frame(serialized[2:], limits, "device 3", admitted=False).chunks) == 50


def test_a_long_name_does_not_get_into_errors() -> None:
    body = pb.Forward()
    body.tensors.add(name="x" * 100_000, dtype=99)
    with pytest.raises(TensorError, match="Forward of device 3 announces a tensor whose name has 100000 ch") as caught:
        Assembler(Limits(), "device 3").feed(pb.UplinkFrame(forward=body))
    assert len(str(caught.value)) < 200
