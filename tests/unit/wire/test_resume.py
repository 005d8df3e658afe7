"""Connections that are lost in mid-turn: both sides live on, and every message arrives exactly once, in order."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator

import pytest
from relay import Relay, relayed
from test_data_plane_server import WAIT_S, _edge_of, _hello, _running, _ticket, _until

from flwr_splitkd.errors import HandshakeError, PeerLostError
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import ResumeTokens
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import DataPlaneServer, Session
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

GRACE_S = 3.0
STEPS = 1500
SMALL = Limits(chunk_bytes=1 << 12)


@pytest.fixture
def server() -> Iterator[DataPlaneServer]:
    with _running(grace_period_s=GRACE_S, limits=SMALL) as running:
        yield running


def _tensor(step: int, size: int = 20_000) -> dict[str, EncodedTensor]:
    content = random.Random(step).randbytes(size)
    return {"smashed": EncodedTensor(pb.DTYPE_UINT8, (size,), pb.CODEC_NONE, content)}


def _payload(step: int) -> bytes:
    return bytes(_tensor(step)["smashed"].payload)


def _echo(edge: Link, steps: int) -> None:
    """The edge of a turn: checks each Forward, answers with its bytes turned round."""
    for step in range(steps):
        forward = edge.receive("Forward", WAIT_S)
        assert forward.body.step == step
        assert bytes(forward.tensors["smashed"].payload) == _payload(step)
        answer = EncodedTensor(pb.DTYPE_UINT8, (20_000,), pb.CODEC_NONE, _payload(step)[::-1])
        edge.send(pb.Backward(step=step), {"gradient": answer})


def _take_turn(device: Link, steps: int) -> None:
    for step in range(steps):
        device.send(pb.Forward(step=step), _tensor(step))
        backward = device.receive("Backward", WAIT_S)
        assert backward.body.step == step
        assert bytes(backward.tensors["gradient"].payload) == _payload(step)[::-1]


def test_a_turn_over_connections_that_are_cut_again_and_again(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    stop = threading.Event()
    with relayed(server.address) as relay:

        def cut_at_random() -> None:
            rng = random.Random(0)
            while not stop.wait(rng.uniform(0.02, 0.2)):
                if session.connected:  # on a busy machine coming back takes longer than the time between two cuts
                    relay.cut()

        with connect(relay.address, _hello(session.ticket)) as device:
            edge = _edge_of(session)
            cutter, echo = threading.Thread(target=cut_at_random), threading.Thread(target=_echo, args=(edge, STEPS))
            cutter.start()
            echo.start()
            try:
                _take_turn(device, STEPS)
            finally:
                stop.set()
                cutter.join()
                echo.join(WAIT_S)
            assert edge.num_resumed > 5
            assert relay.num_connections > 5


def test_what_was_sent_while_there_was_no_connection(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        relay.refusing = True
        relay.cut()
        _until(lambda: not session.connected and not device.attached)
        for step in range(3):
            device.send(pb.GradientNorms(step=step))
            edge.send(pb.Update(step=step))
        relay.refusing = False
        for step in range(3):
            assert edge.receive("GradientNorms", WAIT_S).body.step == step
            assert device.receive("Update", WAIT_S).body.step == step
        assert session.connected


def test_nobody_comes_back_within_the_grace_period() -> None:
    grace_s = 1.2
    with _running(grace_period_s=grace_s, limits=SMALL) as server, relayed(server.address) as relay:
        session = server.expect(_ticket())
        with connect(relay.address, _hello(session.ticket)) as device:
            edge = _edge_of(session)
            relay.refusing = True
            relay.cut()
            started_s = time.monotonic()
            with pytest.raises(PeerLostError, match=f"device seven is lost.*did not come back within {grace_s:g} s"):
                edge.receive("Forward", 60)
            assert grace_s - 0.5 < time.monotonic() - started_s < grace_s + 2
            with pytest.raises(PeerLostError, match="the edge at .* is lost"):
                device.receive("Backward", 60)
            assert time.monotonic() - started_s < grace_s + 3


def test_a_device_notices_in_seconds_that_the_edge_has_ended(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with connect(server.address, _hello(session.ticket)) as device:
        _edge_of(session)
        server._server._server.stop(0)  # as if its process were killed: nobody says anything
        started_s = time.monotonic()
        with pytest.raises(PeerLostError, match="is lost"):
            device.receive("Begin", 60)
        assert time.monotonic() - started_s < 6


def test_a_silent_network_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reset, no end: only pings tell."""
    monkeypatch.setattr("flwr_splitkd.wire.channel._KEEPALIVE_MS", 500)
    monkeypatch.setattr("flwr_splitkd.wire.channel._KEEPALIVE_TIMEOUT_MS", 500)
    with _running(grace_period_s=30.0, limits=SMALL) as server, relayed(server.address) as relay:
        session = server.expect(_ticket())
        with connect(relay.address, _hello(session.ticket)) as device:
            edge = _edge_of(session)
            relay.stalled = True
            started_s = time.monotonic()
            _until(lambda: not edge.attached and not device.attached)
            assert time.monotonic() - started_s < 8
            relay.cut()
            relay.stalled = False
            device.send(pb.GradientNorms(step=1))
            assert edge.receive("GradientNorms", 25).body.step == 1


@pytest.mark.parametrize("after_bytes", [3_000, 9_000, 15_000])
def test_altered_bytes_are_sent_again(server: DataPlaneServer, after_bytes: int) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        echo = threading.Thread(target=_echo, args=(edge, 5))
        echo.start()
        relay.corrupt_uplink(after_bytes)
        _take_turn(device, 5)
        echo.join(WAIT_S)
        assert edge.num_resumed == 1


def test_the_last_message_survives_a_cut(server: DataPlaneServer) -> None:
    """The edge has ended the session; the device still gets what it was told last."""
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        relay.refusing = True
        relay.cut()
        _until(lambda: not edge.attached)
        edge.send(pb.TurnResult(commit_id="000004"))
        server.end(session)
        relay.refusing = False
        assert device.receive("TurnResult", WAIT_S).body.commit_id == "000004"


# ---- tokens


def _resumed(relay: Relay, session: Session, token: bytes, received: int = 0) -> pb.DownlinkFrame:
    """Knock with a Resume of one's own; the first frame that comes back."""
    import grpc

    resume = pb.Resume(protocol_version=1, session_id=session.ticket.session_id, token=token, received=received)
    with grpc.insecure_channel(relay.address) as channel:
        call = channel.stream_stream("/flwr_splitkd.wire.v1.DataPlane/Turn")(
            iter([pb.UplinkFrame(resume=resume).SerializeToString()])
        )
        try:
            return pb.DownlinkFrame.FromString(next(call))
        finally:
            call.cancel()


def test_a_ticket_does_not_resume(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        for token in (session.ticket.token, b"", b"x" * 32):
            assert "does not open session" in _resumed(relay, session, token).failure.message
        device.send(pb.GradientNorms(step=1))  # and its own stream is not disturbed
        assert _edge_of(session).receive("GradientNorms", WAIT_S).body.step == 1


def test_a_resume_token_opens_once(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        token = session.resume_tokens._valid[-1]
        relay.cut()
        device.send(pb.GradientNorms(step=1))
        assert edge.receive("GradientNorms", WAIT_S).body.step == 1
        assert "does not open session" in _resumed(relay, session, token).failure.message


def test_resume_tokens() -> None:
    tokens = ResumeTokens()
    assert not tokens.opened_by(b"")
    first = tokens.renew()
    second = tokens.renew()
    assert tokens.opened_by(first) and tokens.opened_by(second)  # the second may have been lost on its way
    tokens.settle(first)  # said on the stream before: the device need not have the second yet
    assert tokens.opened_by(first) and tokens.opened_by(second)
    tokens.settle(second)
    assert not tokens.opened_by(first) and tokens.opened_by(second)


def test_messages_that_were_never_sent_cannot_be_acknowledged(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with relayed(server.address) as relay, connect(relay.address, _hello(session.ticket)):
        token = session.resume_tokens._valid[-1]
        failure = _resumed(relay, session, token, received=3).failure
        assert "acknowledges 3 messages; expected at most the 0 that were sent" in failure.message


def test_a_process_that_was_started_again_begins_anew(server: DataPlaneServer) -> None:
    """It says Hello with the resume token: the old turn ends at once, and the session has a new link."""
    session = server.expect(_ticket())
    with relayed(server.address) as relay:
        with connect(relay.address, _hello(session.ticket)) as device:
            old = _edge_of(session)
            device.send(pb.GradientNorms(step=1))
            old.receive("GradientNorms", WAIT_S)
            token = session.resume_tokens._valid[-1]
            with connect(server.address, _hello(session.ticket, token=token)) as again:
                with pytest.raises(PeerLostError, match="device seven is lost: its process was started again"):
                    old.receive("Forward", WAIT_S)
                assert session.link is not old and session.connected
                again.send(pb.GradientNorms(step=5))
                assert _edge_of(session).receive("GradientNorms", WAIT_S).body.step == 5
    with pytest.raises(HandshakeError, match=re.escape("made for node_id 20; expected this, got node_id 21")):
        token = session.resume_tokens._valid[-1]
        with connect(server.address, _hello(session.ticket, token=token, node_id=21)):
            pytest.fail("it was let in")
