"""Mutated turns fed to a stream in memory: whatever comes, it ends in an error of ours, soon, and within bounds."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from hostile_frames import BYTES, LIMITS, STRUCTURE, mutate_bytes, mutate_structure, turn

from flwr_splitkd.errors import CorruptFrameError, PeerLostError, SplitKDError
from flwr_splitkd.wire import chunk_frame
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.tensors import payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

PER_STRUCTURE = 400  # for each of two ways to read a frame
PER_BYTES = 800
_LONGEST_S = 20.0  # a thousand times as long as on a quiet machine: what must not be is that it hangs
_MOST_MB = 100.0
_ENDED = "ended the stream"


@pytest.fixture(params=[pytest.param("protobuf", marks=pytest.mark.slow), "by hand"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """These frames are so small that protobuf reads them all; what reads large ones must stand the same."""
    name: str = request.param
    if name == "by hand":
        monkeypatch.setattr(chunk_frame, "_LEAST_BYTES", 1)
    return name


def _fed(pool: ThreadPoolExecutor, serialized: Iterable[bytes]) -> tuple[list[WireMessage], SplitKDError]:
    """What the computing thread gets of a stream's bytes, and the error that ends it."""
    link, stream = Link(peer="the device", limits=LIMITS), Stream(pb.DownlinkFrame, peer="the device", limits=LIMITS)
    stream.attach(link)
    link.send(pb.Update(step=1))
    carried = pool.submit(stream.carry, stream.parsed(serialized))
    messages: list[WireMessage] = []
    try:
        while True:
            messages.append(link.receive("Hello|Resume|Forward|GradientNorms|TurnDone|Checkpoint", _LONGEST_S))
    except SplitKDError as error:
        carried.result(_LONGEST_S)
        assert len(list(stream.outgoing())) <= 3  # it ends too: the update, a failure, the end
        assert link.closed
        return messages, error


def _check(messages: list[WireMessage], error: SplitKDError) -> None:
    assert len(str(error)) < 3_000
    for message in messages:
        assert message.num_bytes <= LIMITS.max_message_bytes
        for tensor in message.tensors.values():
            assert len(tensor.payload) == payload_bytes(tensor.dtype, tensor.shape, tensor.codec)


class _Bounds:
    """Time and memory of many cases."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.longest_s, self.most_mb = 0.0, 0.0

    def measure(
        self, case: Callable[[], tuple[list[WireMessage], SplitKDError]]
    ) -> tuple[list[WireMessage], SplitKDError]:
        started_s = time.monotonic()
        result = case()
        self.longest_s = max(self.longest_s, time.monotonic() - started_s)
        self.most_mb = max(self.most_mb, (self._process.memory_info().rss - self._before) / 1e6)
        return result

    def check(self) -> None:
        assert self.longest_s < _LONGEST_S
        assert self.most_mb < _MOST_MB

    def __str__(self) -> str:
        return f"longest {self.longest_s:.3f} s, memory grew by at most {self.most_mb:.1f} MB"


def test_an_unharmed_turn_passes() -> None:
    """What the other tests lean on."""
    with ThreadPoolExecutor(1) as pool:
        for seed in range(50):
            frames = turn(random.Random(seed))
            messages, error = _fed(pool, [frame.SerializeToString() for frame in frames])
            assert _ENDED in str(error)
            assert [message.kind for message in messages[-2:]] == ["GradientNorms", "TurnDone"]
            sent = b"".join(chunk.data for frame in frames for chunk in frame.chunks)
            assert sent == b"".join(bytes(t.payload) for message in messages for t in message.tensors.values())


def test_mutated_frames(covered: Callable[[str, object], None], read: str) -> None:
    before, bounds, refused, rng = set(threading.enumerate()), _Bounds(), Counter[str](), random.Random(1)
    with ThreadPoolExecutor(1) as pool:
        for name, (_, must_be_noticed) in STRUCTURE.items():
            for _ in range(PER_STRUCTURE):
                frames = mutate_structure(rng, turn(rng), name)
                serialized = [frame.SerializeToString() for frame in frames]
                messages, error = bounds.measure(lambda data=serialized: _fed(pool, data))  # type: ignore[misc]
                _check(messages, error)
                refused[name] += _ENDED not in str(error)
                assert not must_be_noticed or _ENDED not in str(error), f"{name} was not noticed: {frames}"
    assert all(refused[name] for name in STRUCTURE), refused
    bounds.check()
    assert set(threading.enumerate()) <= before
    total = PER_STRUCTURE * len(STRUCTURE)
    covered(
        f"mutated turns in memory, read by {read.removeprefix('by ')}",
        f"{total}, of which {refused.total()} were refused; {bounds}",
    )


def test_mutated_bytes(covered: Callable[[str, object], None], read: str) -> None:
    before, bounds, ends, rng = set(threading.enumerate()), _Bounds(), Counter[str](), random.Random(2)
    with ThreadPoolExecutor(1) as pool:
        for name in BYTES:
            for _ in range(PER_BYTES):
                serialized = mutate_bytes(rng, [frame.SerializeToString() for frame in turn(rng)], name)
                messages, error = bounds.measure(lambda data=serialized: _fed(pool, data))  # type: ignore[misc]
                _check(messages, error)
                lost = isinstance(error, PeerLostError)
                ends["passed" if _ENDED in str(error) else "to be sent again" if lost else "refused"] += 1
    assert min(ends["refused"], ends["to be sent again"], ends["passed"]) > 100
    bounds.check()
    assert set(threading.enumerate()) <= before
    covered(f"turns with mutated bytes in memory, read by {read.removeprefix('by ')}", f"{dict(ends)}; {bounds}")


def test_bytes_that_are_no_frame_are_to_be_sent_again() -> None:
    link, stream = Link(peer="the device"), Stream(pb.DownlinkFrame, peer="the device")
    stream.attach(link)
    stream.carry(stream.parsed([b"\xff" * 9]))
    assert isinstance(stream.corrupt, CorruptFrameError)
