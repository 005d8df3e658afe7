"""Server and client over real gRPC on loopback: who is let in, what is refused, and that nothing hangs or stays behind."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from flwr_splitkd.errors import ConfigError, DataError, HandshakeError, PeerLostError, ProtocolError, TensorError
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import Ticket, new_ticket
from flwr_splitkd.wire.framing import Limits, WireMessage, to_frames
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import DataPlaneServer, Session
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 10.0
TIB = 1 << 40
MODEL = pb.ModelFingerprint(
    architecture="LlamaForCausalLM", num_blocks=4, hidden_size=32, vocab_size=96, dtype="float32", digest="abc"
)
CODECS = (pb.CODEC_NONE, pb.CODEC_INT8_BLOCKWISE)


@contextlib.contextmanager
def _running(**settings: object) -> Iterator[DataPlaneServer]:
    server = DataPlaneServer(**settings)  # type: ignore[arg-type]
    server.start(model=MODEL, codecs=CODECS)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server() -> Iterator[DataPlaneServer]:
    with _running(handshake_timeout_s=1.0, grace_period_s=0.5) as running:
        yield running


def _ticket(node_id: int = 20, expires_s: float = 1e9) -> Ticket:
    return new_ticket(run_id=10, node_id=node_id, server_round=3, expires_s=expires_s)


def _hello(ticket: Ticket, **changes: object) -> pb.Hello:
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "session_id": ticket.session_id,
        "token": ticket.token,
        "run_id": ticket.run_id,
        "node_id": ticket.node_id,
        "server_round": ticket.server_round,
        "device_name": "seven",
        "student": MODEL,
        "codecs": CODECS,
    }
    return pb.Hello(**{**fields, **changes})  # type: ignore[arg-type]


def _exchange(session: Session, device: Link) -> None:
    """One message in each direction."""
    edge = _edge_of(session)
    device.send(pb.GradientNorms(step=8))
    assert edge.receive("GradientNorms", WAIT_S).body.step == 8
    edge.send(pb.Update(step=8))
    assert device.receive("Update", WAIT_S).body.step == 8


def _edge_of(session: Session) -> Link:
    """The edge's side of a device at its turn: tensors may come."""
    assert session.link is not None
    session.link.admit()
    return session.link


def _serves(server: DataPlaneServer) -> None:
    """The server lets in the next device as if nothing had happened."""
    session = server.expect(_ticket())
    with connect(server.address, _hello(session.ticket)) as device:
        _exchange(session, device)


def _until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)


# ---- let in


def test_a_session_from_ticket_to_end(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    assert not session.connected and session.link is None
    with connect(server.address, _hello(session.ticket, num_batches=4)) as device:
        assert session.connected
        assert session.hello is not None and session.hello.num_batches == 4
        assert _edge_of(session).peer == "device seven"
        _exchange(session, device)
        server.end(session)
        with pytest.raises(PeerLostError, match=f"the edge at {server.address} ended the stream"):
            device.receive("TurnResult", WAIT_S)
    assert not session.connected


def test_tensors_larger_than_grpc_takes_by_default(server: DataPlaneServer) -> None:
    content = bytes(range(256)) * (6 << 12)  # 6 MiB
    session = server.expect(_ticket())
    with connect(server.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        tensor = EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)
        device.send(pb.Forward(), {"smashed": tensor})
        assert bytes(edge.receive("Forward", WAIT_S).tensors["smashed"].payload) == content


def test_whoever_waits_for_a_session_is_woken(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    woken = threading.Event()

    def wait() -> None:
        with server.changed:
            if server.changed.wait_for(lambda: session.connected, WAIT_S):
                woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    with connect(server.address, _hello(session.ticket)):
        waiter.join(WAIT_S)
    assert woken.is_set()


def test_several_sessions_do_not_mix(server: DataPlaneServer) -> None:
    sessions = [server.expect(_ticket(node_id)) for node_id in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(connect(server.address, _hello(s.ticket))) for s in reversed(sessions)]
        for device, session in zip(devices, reversed(sessions), strict=True):
            _exchange(session, device)
            assert session.hello is not None and session.hello.node_id == session.ticket.node_id


def test_the_end_of_the_last_message_is_not_cut_off(server: DataPlaneServer) -> None:
    """The edge ends the session and stops at once after TurnResult: the device still gets it."""
    session = server.expect(_ticket())
    content = bytes(4 << 20)
    with connect(server.address, _hello(session.ticket)) as device:
        tensor = EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)
        _edge_of(session).send(pb.Begin(), {"stem|weight/x": tensor})
        _edge_of(session).send(pb.TurnResult(commit_id="000007"))
        server.end(session)
        server.stop()
        device.receive("Begin", WAIT_S)
        assert device.receive("TurnResult", WAIT_S).body.commit_id == "000007"


# ---- refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": b"wrong"}, "The token does not open session '{id}'; expected the one that came with"),
        ({"token": b""}, "The token does not open session '{id}'"),
        ({"session_id": "ghost"}, "The token does not open session 'ghost'"),
        ({"run_id": 11}, "made for run_id 10; expected this, got run_id 11"),
        ({"node_id": 21}, "made for node_id 20; expected this, got node_id 21"),
        ({"server_round": 4}, "made for server_round 3; expected this, got server_round 4"),
        ({"protocol_version": 2}, "Protocol version is 2; expected 1"),
        ({"protocol_version": 0}, "Protocol version is 0; expected 1"),
        ({"student": pb.ModelFingerprint()}, "The device's student has architecture ''; expected 'LlamaForCausalLM'"),
        ({"codecs": [pb.CODEC_NONE]}, "knows the codecs ['CODEC_NONE']; expected ['CODEC_INT8_BLOCKWISE']"),
    ],
)
def test_a_refused_hello(server: DataPlaneServer, changes: dict[str, object], message: str) -> None:
    session = server.expect(_ticket())
    with pytest.raises(HandshakeError, match=re.escape(message.replace("{id}", session.ticket.session_id))):
        with connect(server.address, _hello(session.ticket, **changes)):
            pytest.fail("it was let in")
    assert not session.connected and not session.used
    with connect(server.address, _hello(session.ticket)) as device:  # the right one still comes in
        _exchange(session, device)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 128, "The device's student has vocab_size 128; expected 96 as on the edge"),
        ("dtype", "bfloat16", "The device's student has dtype 'bfloat16'; expected 'float32' as on the edge"),
        ("hidden_size", 64, "The device's student has hidden_size 64; expected 32"),
        ("num_blocks", 5, "The device's student has num_blocks 5; expected 4"),
        ("digest", "xyz", "The device's student has digest 'xyz'; expected 'abc'"),
    ],
)
def test_another_model(server: DataPlaneServer, field: str, value: object, message: str) -> None:
    session = server.expect(_ticket())
    hello = _hello(session.ticket)
    setattr(hello.student, field, value)
    with pytest.raises(HandshakeError, match=re.escape(message)):
        with connect(server.address, hello):
            pytest.fail("it was let in")


def test_a_token_of_another_session(server: DataPlaneServer) -> None:
    mine, other = server.expect(_ticket(1)), server.expect(_ticket(2))
    with pytest.raises(HandshakeError, match=f"does not open session '{other.ticket.session_id}'"):
        with connect(server.address, _hello(other.ticket, token=mine.ticket.token)):
            pytest.fail("it was let in")


def test_an_expired_token() -> None:
    now_s = [100.0]
    with _running(clock=lambda: now_s[0]) as server:
        session = server.expect(_ticket(expires_s=150.0))
        now_s[0] = 180.0
        with pytest.raises(HandshakeError, match=f"'{session.ticket.session_id}' expired 30 s ago"):
            with connect(server.address, _hello(session.ticket)):
                pytest.fail("it was let in")


def test_a_token_opens_once(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with connect(server.address, _hello(session.ticket)) as device:
        with pytest.raises(HandshakeError, match=f"'{session.ticket.session_id}' was used before; expected once"):
            with connect(server.address, _hello(session.ticket)):
                pytest.fail("it was let in")
        _exchange(session, device)  # the first one is not disturbed


def test_a_token_of_an_ended_session(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    server.end(session)
    with pytest.raises(HandshakeError, match=f"does not open session '{session.ticket.session_id}'"):
        with connect(server.address, _hello(session.ticket)):
            pytest.fail("it was let in")


def test_a_device_may_call_itself_anything(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with connect(server.address, _hello(session.ticket, device_name="x" * 100_000)):
        assert len(_edge_of(session).peer) < 100


# ---- broken streams


@contextlib.contextmanager
def _raw(server: DataPlaneServer) -> Iterator[tuple[Callable[[bytes | None], None], Iterator[bytes]]]:
    """A stream without our client: what to send (None half-closes), and what comes back."""
    condition = threading.Condition()
    queue: list[bytes | None] = []

    def requests() -> Iterator[bytes]:
        while True:
            with condition:
                if not condition.wait_for(lambda: queue, 60):
                    return
                item = queue.pop(0)
            if item is None:
                return
            yield item

    def send(item: bytes | None) -> None:
        with condition:
            queue.append(item)
            condition.notify_all()

    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, own_connection) as channel:
        method = "/flwr_splitkd.wire.v1.DataPlane/Turn"
        call = channel.stream_stream(method, request_serializer=None, response_deserializer=None)(requests())
        try:
            yield send, call
        finally:
            send(None)
            call.cancel()


def _framed(body: object, sequence: int = 0) -> bytes:
    (frame,) = to_frames(pb.UplinkFrame, body, {}, Limits())
    frame.sequence = sequence
    return frame.SerializeToString()


def _answer(frames: Iterator[bytes]) -> pb.DownlinkFrame:
    return pb.DownlinkFrame.FromString(next(frames))


def test_something_else_than_a_hello(server: DataPlaneServer) -> None:
    with _raw(server) as (send, frames):
        send(_framed(pb.GradientNorms()))
        failure = _answer(frames).failure
        assert failure.code == pb.FAILURE_CODE_PROTOCOL
        assert "sent GradientNorms; expected Hello or Resume" in failure.message
    _serves(server)


def test_a_stranger_that_announces_tensors(server: DataPlaneServer) -> None:
    """Within the bounds that a device has, and refused all the same: no memory without a token."""
    body = pb.Forward()
    body.tensors.add(
        name="x", dtype=pb.DTYPE_UINT8, shape=[1 << 33], codec=pb.CODEC_NONE, total_bytes=1 << 33, num_chunks=1 << 13
    )
    with _raw(server) as (send, frames):
        send(_framed(body))
        assert "announces 1 tensors in a Forward; expected none before its turn" in _answer(frames).failure.message
    with _raw(server) as (send, frames):
        send(_framed(_hello(_ticket(), token=b"wrong")))
        send(_framed(body, sequence=1))  # at once, before the hello is judged
        assert _answer(frames).failure.code in (pb.FAILURE_CODE_TOKEN, pb.FAILURE_CODE_PROTOCOL)
    _serves(server)


def test_bytes_that_are_no_frame(server: DataPlaneServer, caplog: pytest.LogCaptureFixture) -> None:
    with _raw(server) as (send, frames):
        send(b"\xff" * 40)
        with pytest.raises(grpc.RpcError, match="sent 40 bytes that are no frame"):
            next(frames)
    _serves(server)
    assert not caplog.records  # whoever scans ports must not fill the log


def test_a_large_frame_before_the_turn(server: DataPlaneServer) -> None:
    """Also from a device that is let in: it has nothing to say yet."""
    session = server.expect(_ticket())
    large = pb.UplinkFrame(sequence=1, chunks=[pb.TensorChunk()] * 150_000).SerializeToString()
    with _raw(server) as (send, frames):
        send(large)
        assert "sent a frame of 300002 bytes; expected at most 262144" in _answer(frames).failure.message
    with _raw(server) as (send, frames):
        send(_framed(_hello(session.ticket)))
        assert _answer(frames).HasField("welcome")
        send(large)
        assert "device seven sent a frame of 300002 bytes" in _answer(frames).failure.message
    _serves(server)


def test_a_device_that_announces_a_tebibyte(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    body = pb.Forward()
    body.tensors.add(
        name="smashed", dtype=pb.DTYPE_UINT8, shape=[TIB], codec=pb.CODEC_NONE, total_bytes=TIB, num_chunks=1 << 20
    )
    with connect(server.address, _hello(session.ticket)) as device:
        edge = _edge_of(session)
        device.send(body)
        started_s = time.monotonic()
        with pytest.raises(TensorError, match=rf"'smashed' of Forward from device seven has shape \[{TIB}\]"):
            edge.receive("Forward", WAIT_S)
        assert time.monotonic() - started_s < 2
        with pytest.raises(ProtocolError, match=str(TIB)):
            device.receive("Backward", WAIT_S)
    _serves(server)


def test_a_stream_that_ends_within_a_message(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    tensor = EncodedTensor(pb.DTYPE_UINT8, (20,), pb.CODEC_NONE, bytes(20))
    parts = list(to_frames(pb.UplinkFrame, pb.Forward(), {"smashed": tensor}, Limits(chunk_bytes=8)))
    with _raw(server) as (send, frames):
        send(_framed(_hello(session.ticket)))
        assert _answer(frames).HasField("welcome")
        edge = _edge_of(session)
        for sequence, frame in enumerate(parts[:3], start=1):
            frame.sequence = sequence
            send(frame.SerializeToString())
        send(pb.UplinkFrame(sequence=4, last=True).SerializeToString())
        message = "Tensor 'smashed' of Forward (chunk 2 of 3, 16 of 20 bytes) was truncated by the stream's end"
        with pytest.raises(TensorError, match=re.escape(message)):
            edge.receive("Forward", WAIT_S)
    _serves(server)


def test_a_frame_beyond_the_limit() -> None:
    limits = Limits(max_frame_bytes=10_000)
    with _running(limits=limits, grace_period_s=0.5) as server:
        session = server.expect(_ticket())
        with connect(server.address, _hello(session.ticket)) as device:  # whose own limits are wider
            device.send(pb.GradientNorms(norms=[1.0] * 5_000))
            with pytest.raises(PeerLostError, match="device seven (is lost|ended the stream)"):
                _edge_of(session).receive("GradientNorms", WAIT_S)
            with pytest.raises(PeerLostError, match="RESOURCE_EXHAUSTED"):
                device.receive("Update", WAIT_S)
        _serves(server)


def test_a_device_that_vanishes_is_noticed_at_once(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with _raw(server) as (send, frames):
        send(_framed(_hello(session.ticket)))
        assert _answer(frames).HasField("welcome")
    started_s = time.monotonic()
    with pytest.raises(PeerLostError, match="device seven"):
        _edge_of(session).receive("Forward", 60)
    assert time.monotonic() - started_s < 5
    assert not session.connected


def test_a_device_that_floods_and_vanishes_stalls_nobody(server: DataPlaneServer) -> None:
    """Its inbox is full and nobody reads it: the server's own threads must not wait for that."""
    session = server.expect(_ticket())
    with _raw(server) as (send, frames):
        send(_framed(_hello(session.ticket)))
        assert _answer(frames).HasField("welcome")
        for sequence in range(1, 30):
            send(_framed(pb.GradientNorms(step=sequence), sequence))
        time.sleep(0.1)
    _until(lambda: not session.connected)
    started_s = time.monotonic()
    _serves(server)
    assert time.monotonic() - started_s < 5


def test_a_device_that_fails_says_why(server: DataPlaneServer) -> None:
    session = server.expect(_ticket())
    with pytest.raises(DataError, match="its data are gone"), connect(server.address, _hello(session.ticket)):
        raise DataError("its data are gone")
    with pytest.raises(DataError, match="device seven reported: its data are gone"):
        _edge_of(session).receive("Forward", WAIT_S)


def test_a_silent_peer_is_cut_off_while_another_is_served() -> None:
    with _running(handshake_timeout_s=0.5) as server, _raw(server) as (send, frames):
        send(b"")  # an empty frame opens the stream, and is no Hello either
        _serves(server)
        assert _answer(frames).HasField("failure")
    with _running(handshake_timeout_s=0.5) as server, _raw(server) as (_send, frames):
        _serves(server)
        started_s = time.monotonic()
        failure = _answer(frames).failure
        assert time.monotonic() - started_s < 5
        assert "a device that has not shaken hands sent nothing for 0.5 s; expected Hello or Resume" in failure.message
        _serves(server)


def test_a_silent_edge() -> None:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PeerLostError, match=f"edge at {address} did not answer for 0.5 s"):
            with connect(address, _hello(_ticket()), timeout_s=0.5):
                pytest.fail("connected to nothing")


def test_no_edge_at_all() -> None:
    address = f"127.0.0.1:{_free_port()}"
    started_s = time.monotonic()
    with pytest.raises(PeerLostError, match=f"{address} is lost: nobody listens at this address.*`advertised_address`"):
        with connect(address, _hello(_ticket())):
            pytest.fail("connected to nothing")
    assert time.monotonic() - started_s < 5


def test_more_streams_than_the_server_takes() -> None:
    with _running(max_streams=1) as server:
        first = server.expect(_ticket(1))
        second = server.expect(_ticket(2))
        with connect(server.address, _hello(first.ticket)) as device:
            with pytest.raises(PeerLostError, match="RESOURCE_EXHAUSTED"):
                with connect(server.address, _hello(second.ticket), timeout_s=0.5):
                    pytest.fail("it was let in")
            _exchange(first, device)
        server.end(first)
        _until(lambda: _connects(server, second))


def _connects(server: DataPlaneServer, session: Session) -> bool:
    try:
        with connect(server.address, _hello(session.ticket), timeout_s=0.5):
            return True
    except PeerLostError:
        return False


def test_silent_strangers_make_room() -> None:
    """Each would keep its place for a minute, and all of them together every place."""
    with _running(max_streams=8, handshake_timeout_s=60.0) as server, contextlib.ExitStack() as strangers:
        calls = [strangers.enter_context(_raw(server))[1] for _ in range(16)]
        for _ in range(4):
            _serves(server)
        _until(lambda: sum(not call.is_active() for call in calls) >= 10)  # type: ignore[attr-defined]
        for call in (call for call in calls if not call.is_active()):  # type: ignore[attr-defined]
            with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
                next(call)
        assert server.num_streams <= 8


def test_a_device_that_takes_nothing_does_not_hold_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr_splitkd.wire.places._LINGER_S", 0.5)
    monkeypatch.setattr("flwr_splitkd.wire.listener._SWEEP_S", 0.1)
    content = bytes(30 << 20)
    with _running(grace_period_s=0.5) as server:
        session = server.expect(_ticket())
        with _raw(server) as (send, frames):
            send(_framed(_hello(session.ticket)))
            assert _answer(frames).HasField("welcome")
            tensor = EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)
            _edge_of(session).send(pb.Begin(), {"stem|weight/x": tensor})
            time.sleep(1.0)  # long enough, but its turn is not over
            assert session.connected and server.num_streams == 1
            server.end(session)
            _until(lambda: not server.num_streams)
        _serves(server)


# ---- addresses


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _free_ports(count: int) -> int:
    """The first of some consecutive free ports."""
    for first in range(20_000, 60_000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def test_port_0_is_any_free_port() -> None:
    with _running(data_address="127.0.0.1:0") as one, _running(data_address="127.0.0.1:0") as two:
        ports = {int(server.address.rpartition(":")[2]) for server in (one, two)}
        assert len(ports) == 2 and 0 not in ports


def test_two_servers_share_a_range_without_a_clash() -> None:
    first = _free_ports(2)
    address = f"127.0.0.1:{first}-{first + 1}"
    with _running(data_address=address) as one, _running(data_address=address) as two:
        assert [one.address, two.address] == [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"]
        session = two.expect(_ticket())
        with pytest.raises(HandshakeError, match="does not open session"):
            with connect(one.address, _hello(session.ticket)):
                pytest.fail("the wrong run let it in")
        with connect(two.address, _hello(session.ticket)) as device:
            _exchange(session, device)
        with pytest.raises(ConfigError, match=f"127.0.0.1 with the ports {first}-{first + 1}; none can be bound"):
            DataPlaneServer(data_address=address)


def test_a_port_is_free_again_after_stop() -> None:
    port = _free_port()
    for _ in range(2):
        with _running(data_address=f"127.0.0.1:{port}") as server:
            _serves(server)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 with the ports {port}-{port}; none can be bound"):
            DataPlaneServer(data_address=f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("advertised", "dialled"), [("edge.example.com", "edge.example.com:{port}"), ("10.1.2.3:443", "10.1.2.3:443")]
)
def test_the_advertised_address_is_what_devices_dial(advertised: str, dialled: str) -> None:
    port = _free_port()
    with _running(data_address=f"127.0.0.1:{port}", advertised_address=advertised) as server:
        assert server.address == dialled.format(port=port)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "edge.example.com"])
def test_plaintext_stays_on_this_machine(host: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"`data_address` is '{host}:0' without TLS")) as caught:
        DataPlaneServer(data_address=f"{host}:0", advertised_address="edge.example.com")
    assert "insecure=True" in str(caught.value)


def test_plaintext_elsewhere_when_asked_for() -> None:
    with _running(data_address="0.0.0.0:0", advertised_address="127.0.0.1", insecure=True) as server:
        _serves(server)


# ---- the end


def _our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("splitkd")]


def test_stop_leaves_no_thread_of_ours_alive() -> None:
    _until(lambda: not _our_threads())
    server = DataPlaneServer(handshake_timeout_s=30)
    server.start(model=MODEL, codecs=CODECS)
    waiting = server.expect(_ticket(1))
    ended = server.expect(_ticket(2))
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(connect(server.address, _hello(waiting.ticket)))
        with connect(server.address, _hello(ended.ticket)):
            server.end(ended)
        stack.enter_context(_raw(server))  # shakes no hands
        time.sleep(0.2)
        assert _our_threads()
        started_s = time.monotonic()
        server.stop()
        assert time.monotonic() - started_s < 5
        with pytest.raises(PeerLostError):
            device.receive("Begin", WAIT_S)
    _until(lambda: not _our_threads())


def test_a_device_whose_hello_came_as_it_lost_its_place_comes_again(server: DataPlaneServer) -> None:
    """Between the Hello and its answer another one needed the place: the ticket is as good as before."""
    session, displaced = server.expect(_ticket()), []
    admit = server._server._admit

    def late(stream: Stream, message: WireMessage) -> Callable[[], None]:
        if not displaced:
            stream.displace()
            displaced.append(stream.displaced)
            _until(lambda: server.num_streams == 0)
        return admit(stream, message)

    server._server._admit = late
    with connect(server.address, _hello(session.ticket)) as device:
        _exchange(session, device)
    assert displaced == [True]
