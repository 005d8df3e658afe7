"""A peer that has nothing but the proto's generated code, over gRPC: what is laid out by hand is the same protocol, both ways."""

from __future__ import annotations

import queue
import random
import zlib
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from flwr_splitkd.wire.chunk_frame import ChunkFrame, parse_frame
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.framing import Assembler, Limits, to_frames
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from flwr_splitkd.wire.v1 import dataplane_pb2_grpc as pb_grpc

WAIT_S = 10.0
MODEL = pb.ModelFingerprint(architecture="x", num_blocks=4, dtype="float32", digest="abc")
PAYLOAD = random.Random(0).randbytes(2_500_000)
TENSOR = EncodedTensor(pb.DTYPE_UINT8, (len(PAYLOAD),), pb.CODEC_NONE, PAYLOAD)
CHUNK_BYTES = 1_000_000


def _headed(body: pb.Forward | pb.Backward) -> pb.Forward | pb.Backward:
    body.tensors.add(
        name="t",
        dtype=pb.DTYPE_UINT8,
        shape=[len(PAYLOAD)],
        codec=pb.CODEC_NONE,
        total_bytes=len(PAYLOAD),
        num_chunks=3,
    )
    return body


def _chunks() -> list[pb.TensorChunk]:
    parts = [PAYLOAD[start : start + CHUNK_BYTES] for start in range(0, len(PAYLOAD), CHUNK_BYTES)]
    return [pb.TensorChunk(index=index, data=part, crc32=zlib.crc32(part)) for index, part in enumerate(parts)]


def _check_chunks(chunks: list[pb.TensorChunk]) -> None:
    assert all(zlib.crc32(chunk.data) == chunk.crc32 for chunk in chunks)
    assert b"".join(chunk.data for chunk in chunks) == PAYLOAD


@pytest.fixture
def hello() -> Iterator[tuple[DataPlaneServer, pb.Hello]]:
    server = DataPlaneServer()
    server.start(model=MODEL, codecs=())
    ticket = new_ticket(run_id=10, node_id=20, server_round=3, expires_s=1e9)
    server.expect(ticket)
    try:
        yield (
            server,
            pb.Hello(
                protocol_version=PROTOCOL_VERSION,
                session_id=ticket.session_id,
                token=ticket.token,
                run_id=10,
                node_id=20,
                server_round=3,
                student=MODEL,
            ),
        )
    finally:
        server.stop()


def test_our_edge_and_a_plain_device(hello: tuple[DataPlaneServer, pb.Hello]) -> None:
    server, greeting = hello
    outbox: queue.Queue[pb.UplinkFrame | None] = queue.Queue()
    with grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", 8 << 20)]) as channel:
        call = pb_grpc.DataPlaneStub(channel).Turn(iter(outbox.get, None), timeout=WAIT_S)
        outbox.put(pb.UplinkFrame(hello=greeting))
        assert next(call).HasField("welcome")
        (session,) = server._sessions.values()
        assert session.link is not None
        session.link.admit()
        outbox.put(pb.UplinkFrame(sequence=1, forward=_headed(pb.Forward())))
        for sequence, chunk in enumerate(_chunks(), start=2):
            outbox.put(pb.UplinkFrame(sequence=sequence, chunks=[chunk]))
        assert bytes(session.link.receive("Forward", WAIT_S).tensors["t"].payload) == PAYLOAD
        session.link.send(pb.Backward(), {"t": TENSOR})
        frames: list[pb.DownlinkFrame] = []
        while sum(len(chunk.data) for frame in frames for chunk in frame.chunks) < len(PAYLOAD):
            frames.append(next(call))
        assert frames[0].backward.tensors[0].total_bytes == len(PAYLOAD)
        assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
        assert frames[-1].acknowledged == 1
        _check_chunks([chunk for frame in frames for chunk in frame.chunks])
        outbox.put(None)


class _PlainEdge(pb_grpc.DataPlaneServicer):
    """Lets anyone in, and answers a Forward with the same bytes."""

    def __init__(self) -> None:
        self.chunks: list[pb.TensorChunk] = []

    def Turn(
        self, request_iterator: Iterator[pb.UplinkFrame], context: grpc.ServicerContext
    ) -> Iterator[pb.DownlinkFrame]:
        assert next(request_iterator).HasField("hello")
        yield pb.DownlinkFrame(welcome=pb.Welcome(protocol_version=PROTOCOL_VERSION, grace_period_s=1.0))
        assert next(request_iterator).HasField("forward")
        while sum(len(chunk.data) for chunk in self.chunks) < len(PAYLOAD):
            self.chunks += next(request_iterator).chunks
        yield pb.DownlinkFrame(sequence=1, acknowledged=1, backward=_headed(pb.Backward()))
        yield pb.DownlinkFrame(sequence=2, chunks=_chunks())
        yield pb.DownlinkFrame(sequence=3, last=True)


def test_our_device_and_a_plain_edge() -> None:
    edge, pool = _PlainEdge(), futures.ThreadPoolExecutor(2)
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", 8 << 20)])
    pb_grpc.add_DataPlaneServicer_to_server(edge, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with connect(f"127.0.0.1:{port}", pb.Hello(session_id="s"), timeout_s=WAIT_S) as device:
            device.send(pb.Forward(), {"t": TENSOR})
            assert bytes(device.receive("Backward", WAIT_S).tensors["t"].payload) == PAYLOAD
        _check_chunks(edge.chunks)
    finally:
        server.stop(1.0).wait()
        pool.shutdown()


def test_what_a_plain_peer_sends_takes_the_short_way() -> None:
    """Else the tests above would show nothing of it."""
    serialized = pb.UplinkFrame(sequence=2, chunks=_chunks()).SerializeToString()
    frames = list(to_frames(pb.UplinkFrame, pb.Forward(), {"t": TENSOR}, Limits(chunk_bytes=len(PAYLOAD))))
    assert isinstance(frames[1], ChunkFrame)
    assembler = Assembler(Limits(), "x")
    body = pb.UplinkFrame(sequence=0, forward=_headed(pb.Forward()))
    assembler.feed(body)
    frame = parse_frame(pb.UplinkFrame, serialized)
    assert isinstance(frame, ChunkFrame)
    frame.sequence = 1
    message = assembler.feed(frame)
    assert message is not None and bytes(message.tensors["t"].payload) == PAYLOAD
