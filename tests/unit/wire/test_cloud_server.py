"""The cloud's server over real gRPC on loopback: which edges are let in, and that the others hold nothing and learn nothing."""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from relay import relayed
from test_data_plane_server import MODEL, _raw, _running, _ticket, _until
from test_data_plane_server import _hello as _device_hello

from flwr_splitkd.errors import ConfigError, HandshakeError, PeerLostError, ProtocolError, TensorError
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.cloud_server import CloudServer, CloudSession
from flwr_splitkd.wire.framing import Limits, to_frames
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 10.0
SECRETS = {"north": b"n" * 32, "south": b"s" * 32}


class Clouded:
    """A server with the sessions that it handed over."""

    def __init__(self, **settings: Any) -> None:
        self.sessions: queue.Queue[CloudSession] = queue.Queue()
        self.server = CloudServer(edges=SECRETS, check=self.check, codecs=(pb.CODEC_NONE,), **settings)
        self.server.start(self.sessions.put)

    def check(self, hello: pb.CloudHello) -> None:
        if hello.task != "qa":
            raise HandshakeError(f"The task is {hello.task!r}; expected 'qa'.")

    def session(self) -> CloudSession:
        return self.sessions.get(timeout=WAIT_S)

    def serves(self) -> None:
        with connect(self.server.address, hello(link_id="another")) as edge:
            session = self.session()
            edge.send(pb.FetchState())
            assert session.link.receive("FetchState", WAIT_S).kind == "FetchState"
            session.link.send(pb.TaskState())
            edge.receive("TaskState", WAIT_S)


def hello(**changes: Any) -> pb.CloudHello:
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "session_id": f"session {time.monotonic_ns()}",
        "edge": "north",
        "token": SECRETS["north"],
        "task": "qa",
        "codecs": (pb.CODEC_NONE,),
        "link_id": "one",
    }
    return pb.CloudHello(**{**fields, **changes})


@contextlib.contextmanager
def clouded(**settings: Any) -> Iterator[Clouded]:
    one = Clouded(**{"handshake_timeout_s": 1.0, "grace_period_s": 0.5, **settings})
    try:
        yield one
    finally:
        one.server.stop()


@pytest.fixture
def cloud() -> Iterator[Clouded]:
    with clouded() as one:
        yield one


@contextlib.contextmanager
def raw(cloud: Clouded, *frames: bytes) -> Iterator[Iterator[bytes]]:
    """A stream of bytes that no client of ours would send."""
    end = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from frames
        end.wait(WAIT_S)

    with grpc.insecure_channel(cloud.server.address) as channel:
        method = "/flwr_splitkd.wire.v1.CloudPlane/Serve"
        call = channel.stream_stream(method, request_serializer=None, response_deserializer=None)(requests())
        try:
            yield call
        finally:
            end.set()
            call.cancel()


def framed(body: Any, sequence: int = 0) -> bytes:
    (frame,) = to_frames(pb.UplinkFrame, body, {}, Limits())
    frame.sequence = sequence
    return frame.SerializeToString()


def refused(cloud: Clouded, pattern: str, **changes: Any) -> str:
    with pytest.raises(HandshakeError, match=pattern) as caught:
        with connect(cloud.server.address, hello(**changes)):
            pytest.fail("it was let in")
    assert cloud.sessions.empty()
    return str(caught.value)


# ---- who is let in


def test_wrong_secrets_and_unknown_edges_look_the_same(cloud: Clouded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = refused(cloud, "does not know an edge 'north' with this token", token=SECRETS["south"])
    unknown = refused(cloud, "does not know an edge 'west' with this token", edge="west")
    assert wrong.replace("north", "west") == unknown
    refused(cloud, "with this token", token=b"")
    refused(cloud, "with this token", edge="west", token=b"\0" * 32)  # what an unknown one's is compared with
    said = caplog.text + wrong + unknown
    assert not any(secret.decode() in said or secret.hex() in said for secret in SECRETS.values())
    cloud.serves()


def test_refusals_by_name(cloud: Clouded) -> None:
    refused(cloud, r"Protocol version is 7; expected 1\. Install the same", protocol_version=7)
    refused(cloud, "expected \\['CODEC_NONE'\\] among them", codecs=[pb.CODEC_INT8_BLOCKWISE])
    with pytest.raises(ProtocolError, match="The task is 'other'; expected 'qa'"):
        with connect(cloud.server.address, hello(task="other")):
            pytest.fail("it was let in")
    refused(cloud, "does not know an edge 'x{64}' with", edge="\n" + "x" * 10_000)
    cloud.serves()


def test_secrets_are_in_no_description(cloud: Clouded) -> None:
    with connect(cloud.server.address, hello()):
        session = cloud.session()
        assert session.hello.token == SECRETS["north"] and len(session.first_token) == 32
        assert SECRETS["north"].decode() not in repr(session) and repr(session.first_token)[2:-1] not in repr(session)


def test_a_device_at_the_cloud_and_an_edge_at_an_edge(cloud: Clouded) -> None:
    with raw(cloud, framed(_device_hello(_ticket()))) as frames:
        failure = pb.DownlinkFrame.FromString(next(frames)).failure
    assert "an edge that has not shaken hands sent Hello; expected CloudHello or Resume" in failure.message
    with _running() as server, _raw(server) as (send, answers):
        send(framed(hello()))
        failure = pb.DownlinkFrame.FromString(next(answers)).failure
        assert "sent CloudHello; expected Hello or Resume" in failure.message
    with connect_wrongly(cloud) as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    cloud.serves()
    assert MODEL.num_blocks  # what the device would have said of itself


@contextlib.contextmanager
def connect_wrongly(cloud: Clouded) -> Iterator[Any]:
    """A device dials the cloud: another service than the one it wants."""
    with grpc.insecure_channel(cloud.server.address) as channel:
        method = "/flwr_splitkd.wire.v1.DataPlane/Turn"
        call = channel.stream_stream(method, request_serializer=None, response_deserializer=None)(iter([b""]))
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        yield caught.value


def test_an_edge_that_says_nothing(cloud: Clouded) -> None:
    with raw(cloud) as frames:
        cloud.serves()
        began_s = time.monotonic()
        failure = pb.DownlinkFrame.FromString(next(frames)).failure
        assert time.monotonic() - began_s < 5
        assert "an edge that has not shaken hands sent nothing for 1 s" in failure.message
    _until(lambda: cloud.server.num_streams == 0)


# ---- bounds


def test_tensors_before_a_secret_was_shown(cloud: Clouded) -> None:
    body = pb.Intermediate()
    body.tensors.add(
        name="hidden",
        dtype=pb.DTYPE_UINT8,
        shape=[1 << 33],
        codec=pb.CODEC_NONE,
        total_bytes=1 << 33,
        num_chunks=1 << 13,
    )
    with raw(cloud, framed(body)) as frames:
        failure = pb.DownlinkFrame.FromString(next(frames)).failure
    assert "announces 1 tensors in a Intermediate; expected none" in failure.message
    cloud.serves()


def test_a_frame_before_a_secret_was_shown_is_small(cloud: Clouded) -> None:
    large = pb.UplinkFrame(chunks=[pb.TensorChunk()] * 150_000).SerializeToString()
    with raw(cloud, large) as frames:
        failure = pb.DownlinkFrame.FromString(next(frames)).failure
    assert re.search(r"sent a frame of 300000 bytes; expected at most 262144", failure.message)
    cloud.serves()


def test_an_edge_that_announces_more_than_it_may() -> None:
    with clouded(limits=Limits(max_message_bytes=1 << 20)) as cloud:
        with connect(cloud.server.address, hello()) as edge:
            body = pb.Intermediate()
            size = 1 << 40
            body.tensors.add(
                name="hidden", dtype=pb.DTYPE_UINT8, shape=[size], codec=pb.CODEC_NONE, total_bytes=size, num_chunks=9
            )
            edge.send(body)
            with pytest.raises(
                TensorError, match=r"'hidden' of Intermediate from edge north has shape \[1099511627776\]"
            ):
                cloud.session().link.receive("Intermediate", WAIT_S)
            with pytest.raises(ProtocolError, match="expected at most 1048576 values"):
                edge.receive("IntermediateGradient", WAIT_S)
        cloud.serves()


def test_a_frame_beyond_the_limit() -> None:
    with clouded(limits=Limits(max_frame_bytes=10_000)) as cloud:
        with connect(cloud.server.address, hello()) as edge:
            edge.send(pb.PeftStep(contributions=[pb.Contribution(device=n) for n in range(1, 5_000)]))
            with pytest.raises(PeerLostError, match="RESOURCE_EXHAUSTED"):
                edge.receive("PeftStepped", WAIT_S)
        cloud.session()
        cloud.serves()


# ---- places


def test_two_tasks_or_edges_do_not_displace_each_other(cloud: Clouded) -> None:
    with (
        connect(cloud.server.address, hello()),
        connect(cloud.server.address, hello(edge="south", token=SECRETS["south"])),
    ):
        assert not any(cloud.session().link.closed for _ in range(2))


def test_a_process_whose_place_is_taken_stays_away(cloud: Clouded) -> None:
    with connect(cloud.server.address, hello(link_id="first")) as first:
        before = cloud.session()
        with connect(cloud.server.address, hello(link_id="second")):
            with pytest.raises(
                HandshakeError, match="Another process has opened task 'qa' as edge 'north'; expected one"
            ):
                first.receive("Committed", WAIT_S)
            with pytest.raises(HandshakeError, match="Another process"):  # its thread here ends at once
                before.link.receive("PeftStep", WAIT_S)
            refused_again = hello(link_id="first")
            after = cloud.session()
            with pytest.raises(HandshakeError, match="Another process has opened"):
                with connect(cloud.server.address, refused_again):
                    pytest.fail("it was let in")
            assert not after.link.closed


def test_the_same_process_may_come_again(cloud: Clouded) -> None:
    for _ in range(3):
        with connect(cloud.server.address, hello()):
            assert not cloud.session().link.closed


def test_names_of_sessions_are_nobody_elses(cloud: Clouded) -> None:
    """Else one edge could keep another one from resuming."""
    with connect(cloud.server.address, hello(session_id="name")):
        with pytest.raises(ProtocolError, match="'name', as another one is"):
            with connect(cloud.server.address, hello(session_id="name", edge="south", token=SECRETS["south"])):
                pytest.fail("it was let in")


def test_a_lost_connection_resumes(cloud: Clouded) -> None:
    with relayed(cloud.server.address) as relay, connect(relay.address, hello()) as edge:
        session = cloud.session()
        edge.send(pb.FetchState())
        session.link.receive("FetchState", WAIT_S)
        relay.cut()
        session.link.send(pb.TaskState())
        edge.receive("TaskState", WAIT_S)
        assert relay.num_connections > 1 and cloud.sessions.empty()


def test_stop_tells_every_edge_and_leaves_no_thread() -> None:
    with clouded() as cloud, connect(cloud.server.address, hello()) as edge:
        cloud.session()
        cloud.server.stop()
        with pytest.raises(PeerLostError, match="reported: The cloud is being shut down"):
            edge.receive("Committed", WAIT_S)
    _until(lambda: not [one for one in threading.enumerate() if one.name.startswith("splitkd")])


def test_plaintext_stays_on_this_machine() -> None:
    with pytest.raises(ConfigError, match=re.escape("`data_address` is '0.0.0.0:0' without TLS")):
        CloudServer(
            edges=SECRETS, check=lambda _: None, data_address="0.0.0.0:0", advertised_address="cloud.example.com"
        )
