"""What a server's streams count, over real gRPC on loopback: bytes, refusals, streams that were taken up again."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import grpc
import pytest
from relay import relayed
from test_data_plane_server import WAIT_S, _edge_of, _hello, _running, _ticket, _until

from flwr_splitkd.errors import HandshakeError, PeerLostError, PeerTimeoutError
from flwr_splitkd.faults import RESTARTED, RESUMED
from flwr_splitkd.testing import connected_links
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.tally import Tally, TallyReading
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

TURN = "/flwr_splitkd.wire.v1.DataPlane/Turn"
SIZE = 20_000


@pytest.fixture
def server() -> Iterator[DataPlaneServer]:
    with _running(handshake_timeout_s=0.2, grace_period_s=3.0, limits=Limits(chunk_bytes=1 << 12)) as running:
        yield running


def _forward() -> dict[str, EncodedTensor]:
    return {"smashed": EncodedTensor(pb.DTYPE_UINT8, (SIZE,), pb.CODEC_NONE, random.Random(0).randbytes(SIZE))}


def test_sums_of_many_threads() -> None:
    tally = Tally()

    def work() -> None:
        for _ in range(500):
            tally.moved(sent=1, received=2)
            tally.fault("lost")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.reading() == TallyReading(received_bytes=4000, sent_bytes=2000, faults={"lost": 2000})


def test_a_device_from_its_call_to_its_end(server: DataPlaneServer) -> None:
    assert server.sessions() == {"called": 0, "waiting": 0, "serving": 0, "away": 0}
    session = server.expect(_ticket())
    assert server.sessions()["called"] == 1
    with connect(server.address, _hello(session.ticket)) as device:
        assert server.sessions() == {"called": 0, "waiting": 1, "serving": 0, "away": 0}
        edge = _edge_of(session)
        assert server.sessions()["serving"] == 1
        device.send(pb.Forward(), _forward())
        edge.receive("Forward", WAIT_S)
        edge.send(pb.Update())
        device.receive("Update", WAIT_S)
        # By now everything is counted, but for acknowledgements that still come.
        assert server.tally.reading().sent_bytes == edge.bytes_sent > 0
        assert server.tally.reading().received_bytes >= SIZE
        edge.count_anew()  # a turn's bytes are its own; what the server has carried stays
        assert server.tally.reading().received_bytes >= SIZE and server.tally.reading().faults == {}
        server.end(session)
        assert sum(server.sessions().values()) == 0


def test_who_is_refused(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    other = pb.ModelFingerprint(architecture="GPT2LMHeadModel", num_blocks=4)
    for changes in ({"token": b"wrong"}, {"student": other}):
        with pytest.raises(HandshakeError), connect(server.address, _hello(session.ticket, **changes)):
            pytest.fail("it was let in")
    assert server.tally.reading() == TallyReading(faults={"handshake": 2})
    assert server.sessions()["called"] == 1


def test_who_says_nothing(server: DataPlaneServer) -> None:
    stop = threading.Event()

    def silent() -> Iterator[bytes]:
        stop.wait(WAIT_S)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        answers = channel.stream_stream(TURN)(silent())
        assert "sent nothing for 0.2 s" in pb.DownlinkFrame.FromString(next(answers)).failure.message
        stop.set()
        list(answers)
        list(channel.stream_stream(TURN)(iter(())))  # who only looks whether there is somebody
    assert server.tally.reading().faults == {"timeout": 1}


def test_a_connection_that_is_lost_and_comes_back(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        relay.refusing = True
        relay.cut()
        _until(lambda: server.sessions()["away"] == 1)
        relay.refusing = False
        device.send(pb.GradientNorms())
        edge.receive("GradientNorms", WAIT_S)
        assert server.tally.reading().faults == {RESUMED: 1} and server.sessions()["serving"] == 1


def test_altered_bytes(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        relay.corrupt_uplink(9_000)
        device.send(pb.Forward(), _forward())
        edge.receive("Forward", WAIT_S)
        _until(lambda: server.tally.reading().faults == {"corrupt": 1, RESUMED: 1})
        # What came before the altered byte is counted, and what was sent again.
        assert server.tally.reading().received_bytes > SIZE


def test_a_process_that_was_started_again(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    tokens: list[bytes] = []
    with connect(server.address, _hello(session.ticket), on_token=tokens.append):
        with connect(server.address, _hello(session.ticket, token=tokens[-1])):
            assert server.tally.reading().faults == {RESTARTED: 1}
            assert server.sessions()["waiting"] == 1


def test_silence_and_slowness_are_timeouts() -> None:
    with connected_links(limits=Limits(min_bytes_per_s=1e6)) as (edge, device):
        with pytest.raises(PeerTimeoutError, match="sent nothing for 0.01 s"):
            edge.receive("Forward", 0.01)
        device.send(pb.GradientNorms(step=1))
        edge.receive("GradientNorms", WAIT_S)
        assert not edge.left
        device.close()
        with pytest.raises(PeerLostError) as caught:
            edge.receive("Forward", WAIT_S)
        assert not isinstance(caught.value, PeerTimeoutError) and edge.left
