"""Frames of a turn and what may be wrong with them, drawn from a seeded generator. Torch-free."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from flwr_splitkd.wire.credentials import Ticket, new_ticket
from flwr_splitkd.wire.framing import Limits, to_frames
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = [
    "BYTES",
    "LIMITS",
    "MODEL",
    "STRUCTURE",
    "hello",
    "mutate_bytes",
    "mutate_structure",
    "numbered",
    "ticket",
    "turn",
]

LIMITS = Limits(max_message_bytes=1 << 20, chunk_bytes=64, max_tensors=50)
MODEL = pb.ModelFingerprint(
    architecture="LlamaForCausalLM", num_blocks=4, hidden_size=32, vocab_size=96, dtype="float32", digest="abc"
)
Frames = list[pb.UplinkFrame]
_HUGE = (0, 1, 7, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_HUGE_64 = (*_HUGE, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXTS = ("", "weight/x", "é" * 300, "\0\n\x1b[2J", "x" * 5_000, "x" * 200_000)


def ticket(node_id: int = 20, expires_s: float = 1e9) -> Ticket:
    return new_ticket(run_id=10, node_id=node_id, server_round=3, expires_s=expires_s)


def hello(of: Ticket, **changes: object) -> pb.Hello:
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "session_id": of.session_id,
        "token": of.token,
        "run_id": of.run_id,
        "node_id": of.node_id,
        "server_round": of.server_round,
        "device_name": f"node-{of.node_id}",
        "student": MODEL,
    }
    return pb.Hello(**{**fields, **changes})  # type: ignore[arg-type]


def numbered(frames: Frames, first: int = 0) -> Frames:
    for sequence, frame in enumerate(frames, start=first):
        frame.sequence = sequence
    return frames


def turn(rng: random.Random, *, first: int = 0) -> Frames:
    """What a device sends in a short turn, without its Hello; tensors in several chunks."""
    frames: Frames = []
    for step in range(rng.randint(1, 2)):
        frames += to_frames(pb.UplinkFrame, pb.Forward(step=step, num_microbatches=1), _tensors(rng), LIMITS)
    frames += to_frames(pb.UplinkFrame, pb.GradientNorms(norms=[1.0, 2.0]), {}, LIMITS)
    frames += to_frames(pb.UplinkFrame, pb.TurnDone(num_steps=2), _tensors(rng), LIMITS)
    return numbered([*frames, pb.UplinkFrame(last=True)], first)


def _tensors(rng: random.Random) -> dict[str, EncodedTensor]:
    sizes = {"smashed": rng.randint(1, 300), "labels": 8 * rng.randint(1, 20), "empty": 0}
    return {n: EncodedTensor(pb.DTYPE_UINT8, (size,), pb.CODEC_NONE, rng.randbytes(size)) for n, size in sizes.items()}


# ---- structure: the frames are still frames


def _drop(rng: random.Random, frames: Frames) -> None:
    del frames[rng.randrange(len(frames) - 1)]  # without the last one it is a lost connection


def _duplicate(rng: random.Random, frames: Frames) -> None:
    at = rng.randrange(len(frames) - 1)
    frames.insert(at, _copy(frames[at]))


def _swap(rng: random.Random, frames: Frames) -> None:
    at = rng.randrange(len(frames) - 1)
    frames[at], frames[at + 1] = frames[at + 1], frames[at]


def _end_early(rng: random.Random, frames: Frames) -> None:
    del frames[rng.randrange(len(frames)) :]


def _sequence(rng: random.Random, frames: Frames) -> None:
    at = rng.randrange(len(frames))
    frames[at].sequence = rng.choice([n for n in _HUGE_64 if n != frames[at].sequence])


def _acknowledged(rng: random.Random, frames: Frames) -> None:
    rng.choice(frames).acknowledged = rng.choice([n for n in _HUGE_64 if n > 1])


def _last(rng: random.Random, frames: Frames) -> None:
    frame = rng.choice(frames)
    frame.last = not frame.last


def _headed(rng: random.Random, frames: Frames) -> pb.TensorHeader:
    headers = [h for frame in frames for h in [*frame.forward.tensors, *frame.turn_done.tensors]]
    return rng.choice([header for header in headers if header.total_bytes])


def _header_total(rng: random.Random, frames: Frames) -> None:
    header = _headed(rng, frames)
    header.total_bytes = rng.choice([n for n in _HUGE_64 if n != header.total_bytes])


def _header_shape(rng: random.Random, frames: Frames) -> None:
    header = _headed(rng, frames)
    del header.shape[:]
    header.shape.extend(rng.choice(_HUGE_64) for _ in range(rng.randint(1, 12)))
    header.shape.append(1009)  # a prime that no payload here is long enough for


def _header_codes(rng: random.Random, frames: Frames) -> None:
    header = _headed(rng, frames)
    header.dtype = rng.choice([0, 1, 4, 5, 99])  # type: ignore[assignment]
    header.codec = rng.choice([0, 2, 4, 99])  # type: ignore[assignment]


def _header_chunks(rng: random.Random, frames: Frames) -> None:
    header = _headed(rng, frames)
    header.num_chunks = rng.choice([n for n in _HUGE if n != header.num_chunks])


def _header_name(rng: random.Random, frames: Frames) -> None:
    _headed(rng, frames).name = rng.choice(_TEXTS)


def _many_headers(rng: random.Random, frames: Frames) -> None:
    frame = rng.choice([frame for frame in frames if frame.HasField("forward")])
    for position in range(rng.choice([1, 60, 5_000])):
        frame.forward.tensors.add(
            name=str(position), dtype=pb.DTYPE_UINT8, shape=[1], codec=pb.CODEC_NONE, total_bytes=1
        )


def _chunked(rng: random.Random, frames: Frames) -> pb.TensorChunk:
    return rng.choice([chunk for frame in frames for chunk in frame.chunks])


def _chunk_place(rng: random.Random, frames: Frames) -> None:
    chunk = _chunked(rng, frames)
    name = rng.choice(["tensor", "index"])
    setattr(chunk, name, rng.choice([n for n in _HUGE if n != getattr(chunk, name)]))


def _chunk_crc(rng: random.Random, frames: Frames) -> None:
    _chunked(rng, frames).crc32 ^= 1 << rng.randrange(32)


def _chunk_bit(rng: random.Random, frames: Frames) -> None:
    chunk = _chunked(rng, frames)
    altered = bytearray(chunk.data)
    altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    chunk.data = bytes(altered)


def _chunk_length(rng: random.Random, frames: Frames) -> None:
    """With the right CRC: whoever does this means it."""
    chunk = _chunked(rng, frames)
    chunk.data = chunk.data[:-1] if rng.random() < 0.5 else chunk.data + rng.randbytes(rng.choice([1, 100, 100_000]))
    chunk.crc32 = zlib.crc32(chunk.data)


def _many_chunks(rng: random.Random, frames: Frames) -> None:
    rng.choice(frames[:-1]).chunks.extend([pb.TensorChunk()] * rng.choice([1, 50, 5_000]))


def _other_body(rng: random.Random, frames: Frames) -> None:
    at = rng.randrange(len(frames) - 1)
    bodies: list[dict[str, object]] = [
        {"hello": hello(ticket())},
        {"resume": pb.Resume(received=rng.choice(_HUGE_64), token=rng.randbytes(32))},
        {"failure": pb.Failure(code=rng.choice([0, 3, 99]), message=rng.choice(_TEXTS))},  # type: ignore[arg-type]
        {"checkpoint": pb.Checkpoint(num_steps=rng.choice(_HUGE_64))},
        {"forward": pb.Forward(step=rng.choice(_HUGE_64))},
        {},
    ]
    frames.insert(at, pb.UplinkFrame(**rng.choice(bodies)))  # type: ignore[arg-type]
    first = frames[1].sequence if at == 0 else frames[0].sequence
    numbered(frames, first)


STRUCTURE: dict[str, tuple[Callable[[random.Random, Frames], None], bool]] = {
    "a frame dropped": (_drop, True),
    "a frame twice": (_duplicate, True),
    "two frames swapped": (_swap, True),
    "the end cut off": (_end_early, True),
    "sequence": (_sequence, True),
    "acknowledged": (_acknowledged, True),
    "last": (_last, False),
    "total_bytes": (_header_total, True),
    "shape": (_header_shape, True),
    "dtype and codec": (_header_codes, True),
    "num_chunks": (_header_chunks, True),
    "name": (_header_name, False),
    "many headers": (_many_headers, True),
    "place of a chunk": (_chunk_place, True),
    "crc32": (_chunk_crc, True),
    "a bit of a chunk": (_chunk_bit, True),
    "length of a chunk": (_chunk_length, True),
    "many chunks": (_many_chunks, True),
    "another body": (_other_body, False),
}
"""Mutations by name, and whether each of them must be noticed; the others may make another valid turn."""


def mutate_structure(rng: random.Random, frames: Frames, name: str) -> Frames:
    """A mutated copy."""
    copies = [_copy(frame) for frame in frames]
    STRUCTURE[name][0](rng, copies)
    return copies


def _copy(frame: pb.UplinkFrame) -> pb.UplinkFrame:
    return pb.UplinkFrame.FromString(frame.SerializeToString())


# ---- bytes: the frames need not be frames any more


def _flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice([1, 4, 64, 20_000]))


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 40)] * rng.choice([1, 3, 200])


def _replace(rng: random.Random, data: bytearray) -> None:
    data[:] = rng.randbytes(rng.choice([1, 20, 300, 100_000]))


BYTES: dict[str, Callable[[random.Random, bytearray], None]] = {
    "bits flipped": _flip_bits,
    "truncated": _truncate,
    "bytes inserted": _insert,
    "bytes repeated": _repeat,
    "random bytes": _replace,
}


def mutate_bytes(rng: random.Random, serialized: list[bytes], name: str) -> list[bytes]:
    """A copy with one of the frames mutated."""
    copies = list(serialized)
    at = rng.randrange(len(copies))
    altered = bytearray(copies[at] or b"\0")
    BYTES[name](rng, altered)
    copies[at] = bytes(altered)
    return copies
