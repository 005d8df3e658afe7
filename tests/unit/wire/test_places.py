"""Who holds a place on the server, without a server."""

from __future__ import annotations

import pytest

from flwr_splitkd.errors import PeerLostError, ProtocolError
from flwr_splitkd.wire import places
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.places import Places
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


def _stranger() -> Stream:
    return Stream(pb.DownlinkFrame, peer="a stranger")


def _device() -> tuple[Stream, Link]:
    stream, link = Stream(pb.DownlinkFrame, peer="a device"), Link(peer="device seven", hears_last=True)
    stream.attach(link)
    return stream, link


def test_the_oldest_stranger_makes_room() -> None:
    held = Places(8)  # crowded from 6 on
    device, _ = _device()
    strangers = [_stranger() for _ in range(7)]
    for stream in (device, *strangers):
        held.take(stream, list)
    assert [stream.displaced for stream in strangers] == [True, True, False, False, False, False, False]
    assert not device.displaced


def test_whoever_has_left_needs_no_room() -> None:
    held = Places(8)
    strangers = [_stranger() for _ in range(20)]
    for stream in strangers:
        held.take(stream, list)
        held.leave(stream)
        held.leave(stream)
    assert not any(stream.displaced for stream in strangers)


def test_devices_make_no_room() -> None:
    held = Places(2)
    devices = [_device()[0] for _ in range(4)]
    for stream in devices:
        held.take(stream, list)
    assert not any(stream.displaced for stream in devices)


def test_whoever_was_answered_is_no_stranger() -> None:
    stream = _stranger()
    stream.refuse(ProtocolError("no"))
    stream.displace()
    assert not stream.displaced
    assert [frame.failure.message for frame in stream.outgoing()] == ["no"]


def test_a_stranger_that_was_displaced_ends_without_a_word() -> None:
    stream = _stranger()
    stream.displace()
    assert stream.displaced and list(stream.outgoing()) == []


def test_a_stream_that_was_displaced_takes_no_link() -> None:
    stream, link = _stranger(), Link(peer="device seven")
    stream.displace()
    with pytest.raises(PeerLostError, match="device seven ended before it was let in"):
        stream.attach(link)
    stream.refuse(ProtocolError("no"))
    assert not link.attached and list(stream.outgoing()) == []


@pytest.mark.parametrize("end", [Link.close, lambda link: link.fail(ProtocolError("no"))])
def test_a_stream_that_is_over_and_stands_still_is_cut_off(end: object) -> None:
    assert callable(end)
    held, cancelled = Places(8), []
    stream, link = _device()
    held.take(stream, lambda: cancelled.append(stream))
    link.send(pb.Update(step=1))
    link.send(pb.Update(step=2))
    frames = stream.outgoing()
    for now_s in (0.0, 100.0, 200.0):  # its turn may take as long as it likes
        held.sweep(now_s)
    end(link)
    held.sweep(300.0)
    held.sweep(300.0 + places._LINGER_S - 1)
    next(frames)  # the peer took one more
    held.sweep(300.0 + places._LINGER_S + 1)
    held.sweep(300.0 + 2 * places._LINGER_S)
    assert not cancelled
    held.sweep(300.0 + 2 * places._LINGER_S + 2)
    assert cancelled == [stream]


def test_a_stream_whose_link_went_on_without_it_is_cut_off() -> None:
    held, cancelled = Places(8), []
    stream, link = _device()
    held.take(stream, lambda: cancelled.append(stream))
    held.sweep(0.0)
    Stream(pb.DownlinkFrame, peer="the next one").attach(link)
    held.sweep(1.0)
    held.sweep(1.0 + places._LINGER_S)
    assert cancelled == [stream]
