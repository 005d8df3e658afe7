"""Links over the in-memory transport: whole messages, the first error, and flow control without deadlocks."""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Iterator

import pytest

from flwr_splitkd.errors import DataError, NonFiniteError, PeerLostError, ProtocolError, TensorError
from flwr_splitkd.testing import Tamper, connected_links
from flwr_splitkd.wire.framing import Frame, Limits
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 10.0
SMALL = Limits(chunk_bytes=8, min_bytes_per_s=1.0)


def _attached(frame_type: type[Frame], peer: str, grace_period_s: float = 0.0) -> tuple[Link, Stream]:
    link, stream = Link(peer=peer, grace_period_s=grace_period_s), Stream(frame_type, peer=peer)
    stream.attach(link)
    return link, stream


def _bytes(content: bytes) -> EncodedTensor:
    return EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)


def test_messages_in_both_directions_with_tensors() -> None:
    content = bytes(range(100))
    with connected_links(limits=SMALL) as (edge, device):
        device.send(pb.Forward(step=4, num_microbatches=1), {"smashed": _bytes(content), "empty": _bytes(b"")})
        forward = edge.receive("Forward", WAIT_S)
        assert forward.body.step == 4
        assert bytes(forward.tensors["smashed"].payload) == content
        assert bytes(forward.tensors["empty"].payload) == b""
        edge.send(pb.Backward(step=4), {"gradient": _bytes(content[::-1])})
        assert bytes(device.receive("Backward", WAIT_S).tensors["gradient"].payload) == content[::-1]
        assert device.bytes_sent == edge.bytes_received > 100
        _until(lambda: edge.bytes_sent == device.bytes_received > 100)


def test_two_kinds_may_be_expected() -> None:
    with connected_links() as (edge, device):
        device.send(pb.TurnDone(num_steps=2))
        assert edge.receive("Forward|TurnDone", WAIT_S).body.num_steps == 2
        device.send(pb.GradientNorms())
        with pytest.raises(ProtocolError, match="the device sent GradientNorms; expected Forward|TurnDone"):
            edge.receive("Forward|TurnDone", WAIT_S)


def test_failure_reaches_the_other_side_as_itself() -> None:
    with connected_links() as (edge, device):
        edge.fail(NonFiniteError("`loss` is nan"))
        with pytest.raises(NonFiniteError, match="the edge reported: `loss` is nan"):
            device.receive("Backward", WAIT_S)


def test_after_a_failure_both_receive_and_send_name_it() -> None:
    """Also when the failure arrives while this side computes and asks for nothing."""
    with connected_links() as (edge, device):
        edge.fail(DataError("the labels are out of range"))
        _until(lambda: device.closed)
        with pytest.raises(DataError, match="the labels are out of range"):
            device.send(pb.GradientNorms())
        for _ in range(3):
            with pytest.raises(DataError, match="the labels are out of range"):
                device.receive("Update", WAIT_S)


def test_messages_before_a_failure_are_still_received() -> None:
    with connected_links() as (edge, device):
        edge.send(pb.Update(step=1))
        edge.fail(DataError("later"))
        _until(lambda: device.closed)
        assert device.receive("Update", WAIT_S).body.step == 1
        with pytest.raises(DataError, match="later"):
            device.receive("Update", WAIT_S)


def test_a_closed_peer() -> None:
    with connected_links() as (edge, device):
        device.close()
        with pytest.raises(PeerLostError, match="the device ended the stream"):
            edge.receive("Forward", WAIT_S)
        with pytest.raises(PeerLostError, match="the device ended the stream"):
            edge.send(pb.Update())


def test_everything_was_heard_once_the_other_side_has_ended_the_stream() -> None:
    with connected_links() as (edge, device):
        edge.send(pb.RoundOver(), {"layers": _bytes(bytes(1000))})
        with pytest.raises(PeerLostError, match="sent nothing for 0.1 s; expected an acknowledgement"):
            edge.wait_heard(0.1)
        device.receive("RoundOver", WAIT_S)
        device.close()
        edge.wait_heard(WAIT_S)
        assert edge.bytes_sent > 1000


def test_a_silent_peer() -> None:
    with connected_links() as (edge, _device):
        started_s = time.monotonic()
        with pytest.raises(PeerLostError, match=re.escape("the device sent nothing for 0.2 s; expected Forward")):
            edge.receive("Forward", 0.2)
        assert 0.2 <= time.monotonic() - started_s < 5


def test_a_slow_message_is_not_silence() -> None:
    """A hand-over of gigabytes takes longer than any answer: what counts is that bytes still come."""

    def slowly(frame: Frame) -> Iterator[Frame]:
        time.sleep(0.1)
        yield frame

    content = bytes(80)
    with connected_links(limits=SMALL, tamper_uplink=slowly) as (edge, device):
        started_s = time.monotonic()
        device.send(pb.TurnDone(), {"weight": _bytes(content)})
        assert bytes(edge.receive("TurnDone", 0.5).tensors["weight"].payload) == content
        assert time.monotonic() - started_s > 0.8
    with connected_links(limits=SMALL, tamper_uplink=slowly) as (edge, device):
        device.send(pb.TurnDone(), {"weight": _bytes(content)})
        with pytest.raises(PeerLostError, match="sent nothing for 0.5 s"):  # but in the end the answer must come
            device.receive("TurnResult", 0.5)


def test_a_flood_stops_at_the_inbox_and_loses_nothing() -> None:
    with connected_links() as (edge, device):
        for step in range(50):
            device.send(pb.Forward(step=step))
        time.sleep(0.1)
        assert [edge.receive("Forward", WAIT_S).body.step for _ in range(50)] == list(range(50))


def test_the_end_of_a_flooding_peer_is_noticed_while_nobody_reads() -> None:
    """The transport's thread that reports a lost stream must not wait for the computing thread."""
    edge, stream = _attached(pb.DownlinkFrame, "the device")
    flood = [pb.UplinkFrame(sequence=i, forward=pb.Forward(step=i)) for i in range(20)]
    reader = threading.Thread(target=stream.carry, args=(flood,), daemon=True)
    reader.start()
    time.sleep(0.05)
    assert reader.is_alive()  # held back by the full inbox
    started_s = time.monotonic()
    stream.end("its stream ended")
    assert time.monotonic() - started_s < 1
    assert edge.closed
    reader.join(WAIT_S)
    assert not reader.is_alive()
    assert list(stream.outgoing()) == []
    received = []
    with pytest.raises(PeerLostError, match="the device is lost: its stream ended"):
        while True:
            received.append(edge.receive("Forward", WAIT_S).body.step)
    assert received == list(range(len(received)))


def test_fail_and_close_are_safe_on_a_stream_that_is_over() -> None:
    device, stream = _attached(pb.UplinkFrame, "the edge")
    device.send(pb.TurnDone(num_steps=3))
    device.close()
    device.close()
    device.fail(DataError("too late"))
    assert [frame.WhichOneof("body") for frame in stream.outgoing()] == ["turn_done", None]  # what was queued is sent
    with pytest.raises(PeerLostError, match="The stream to the edge is closed; nothing can be sent"):
        device.send(pb.TurnDone())


# ---- faults


class _Holding:
    """Keeps the first frame back until the second has gone."""

    def __init__(self) -> None:
        self._held: list[Frame] = []
        self._done = False

    def __call__(self, frame: Frame) -> Iterator[Frame]:
        if not self._done and not self._held:
            self._held.append(frame)
            return
        self._done = True
        yield frame
        yield from self._held
        self._held = []


def _drop_second(frame: Frame) -> list[Frame]:
    return [] if frame.sequence == 1 else [frame]


def _alter_total(frame: Frame) -> list[Frame]:
    if isinstance(frame, pb.UplinkFrame) and frame.HasField("forward"):
        frame.forward.tensors[0].total_bytes += 1
    return [frame]


def _cut_chunk(frame: Frame) -> list[Frame]:
    for chunk in frame.chunks:
        chunk.data = chunk.data[:-1]
        chunk.crc32 = zlib.crc32(chunk.data)
    return [frame]


def _flip_a_bit(frame: Frame) -> list[Frame]:
    for chunk in frame.chunks:
        chunk.data = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]
    return [frame]


def _forget_body(frame: Frame) -> list[Frame]:
    frame.ClearField("forward" if isinstance(frame, pb.UplinkFrame) else "backward")
    return [frame]


@pytest.mark.parametrize(
    ("tamper", "kind", "message"),
    [
        (lambda frame: [frame, frame], ProtocolError, "Frame sequence is 0; expected 1: a frame was duplicated"),
        (_drop_second, ProtocolError, "Frame sequence is 2; expected 1: a frame was lost or reordered"),
        (_Holding(), ProtocolError, "Frame sequence is 1; expected 0: a frame was lost or reordered"),
        (_alter_total, TensorError, "'smashed' of Forward from the device announces 31 bytes; expected 30"),
        (_cut_chunk, TensorError, "'smashed' of Forward (chunk 4 of 4, 26 of 30 bytes) is truncated"),
        (_forget_body, ProtocolError, "A frame has neither a body nor chunks that were announced"),
    ],
)
def test_tampering_is_noticed_and_both_sides_are_told(tamper: Tamper, kind: type[ProtocolError], message: str) -> None:
    with connected_links(limits=SMALL, tamper_uplink=tamper) as (edge, device):
        device.send(pb.Forward(step=1), {"smashed": _bytes(bytes(30))})
        with pytest.raises(kind, match=re.escape(message)):
            edge.receive("Forward", WAIT_S)
        with pytest.raises(ProtocolError, match=re.escape(message)) as caught:
            device.receive("Backward", WAIT_S)
        assert str(caught.value).startswith("the edge reported: ")


def test_the_downlink_can_be_tampered_with_too() -> None:
    with connected_links(tamper_downlink=lambda frame: [frame, frame]) as (edge, device):
        edge.send(pb.Update(step=1))
        device.receive("Update", WAIT_S)
        with pytest.raises(ProtocolError, match="a frame was duplicated"):
            device.receive("Update", WAIT_S)


def test_a_stream_that_ends_within_a_message() -> None:
    frames = [pb.UplinkFrame(forward=pb.Forward())]
    frames[0].forward.tensors.add(
        name="smashed", dtype=pb.DTYPE_UINT8, shape=[9], codec=pb.CODEC_NONE, total_bytes=9, num_chunks=1
    )
    edge, stream = _attached(pb.DownlinkFrame, "the device")
    stream.carry([*frames, pb.UplinkFrame(sequence=1, last=True)])
    with pytest.raises(TensorError, match=re.escape("(chunk 0 of 1, 0 of 9 bytes) was truncated by the stream's end")):
        edge.receive("Forward", WAIT_S)


def test_no_thread_outlives_the_block() -> None:
    before = set(threading.enumerate())
    with connected_links() as (edge, device):
        for step in range(20):  # more than the inbox holds, and nobody reads
            device.send(pb.Forward(step=step))
            edge.send(pb.Update(step=step))
    _until(lambda: set(threading.enumerate()) <= before)


def _until(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)
