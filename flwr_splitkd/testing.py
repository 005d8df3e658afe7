"""Public fakes for your own tests: an in-memory data plane. Torch-free.

Two `Link`s, one a side, joined by threads instead of gRPC. Frames are serialized and parsed on their way, so
that what passes here passes on the wire, and a `Tamper` may alter, drop, repeat or hold them back::

    with connected_links(tamper_uplink=lambda frame: [frame, frame]) as (edge, device):
        device.send(pb.TurnDone())
        with pytest.raises(ProtocolError, match="duplicated"):
            edge.receive("TurnDone", timeout_s=5)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr_splitkd.wire.chunk_frame import ChunkFrame, Frame, parse_frame
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Tamper", "connected_links"]

Tamper = Callable[[Frame], Iterable[Frame]]
"""Gets each frame in order; what it returns travels instead. It may change frames, or keep some for later."""

_JOIN_S = 10.0


@contextmanager
def connected_links(
    *,
    limits: Limits | None = None,
    tamper_uplink: Tamper | None = None,
    tamper_downlink: Tamper | None = None,
) -> Iterator[tuple[Link, Link]]:
    """Join an edge's and a device's end of one stream; both are closed at the end of the ``with`` block.

    There is no handshake: the first message is the one that you send.

    Parameters
    ----------
    limits
        Of both sides.
    tamper_uplink, tamper_downlink
        What happens to the device's frames, and to the edge's.

    Yields
    ------
    tuple of Link
        The edge's side and the device's.
    """
    edge = Link(peer="the device", limits=limits, hears_last=True)
    device = Link(peer="the edge", limits=limits)
    up = Stream(pb.UplinkFrame, peer="the edge", limits=limits)
    down = Stream(pb.DownlinkFrame, peer="the device", limits=limits)
    uplink = _carried(up, pb.UplinkFrame, tamper_uplink)
    downlink = _carried(down, pb.DownlinkFrame, tamper_downlink)
    for stream, link in ((up, device), (down, edge)):
        stream.attach(link)
    pumps = [
        threading.Thread(target=_pump, args=(stream, frames), daemon=True)
        for stream, frames in ((down, uplink), (up, downlink))
    ]
    for pump in pumps:
        pump.start()
    try:
        yield edge, device
    finally:
        device.close()
        edge.close()
        for pump in pumps:
            pump.join(_JOIN_S)


def _pump(receiver: Stream, frames: Iterator[Frame | ChunkFrame]) -> None:
    receiver.carry(frames)
    if receiver.corrupt:
        receiver.end("its bytes were corrupt")


def _carried(sender: Stream, frame_type: type[Frame], tamper: Tamper | None) -> Iterator[Frame | ChunkFrame]:
    for frame in sender.outgoing():
        serialized = frame.SerializeToString()
        if tamper is None:
            yield parse_frame(frame_type, serialized)
            continue
        for carried in tamper(frame_type.FromString(serialized)):
            yield parse_frame(frame_type, carried.SerializeToString())
