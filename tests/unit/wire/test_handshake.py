"""Pure checks of a Hello; the same over real gRPC is in test_data_plane_server.py."""

from __future__ import annotations

import re
import time

import pytest

from flwr_splitkd.errors import (
    ConfigError,
    CutError,
    DataError,
    HandshakeError,
    NonFiniteError,
    PeerLostError,
    ProtocolError,
    SplitKDError,
    StoreError,
    TensorError,
)
from flwr_splitkd.wire import handshake
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.failures import error_from, failure_from
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

TICKET = Ticket(session_id="s1", token=b"right", run_id=10, node_id=20, server_round=3, expires_s=100.0)
MODEL = pb.ModelFingerprint(
    architecture="LlamaForCausalLM", num_blocks=4, hidden_size=32, vocab_size=96, dtype="float32", digest="abc"
)


def _hello(**changes: object) -> pb.Hello:
    fields = {
        "protocol_version": handshake.PROTOCOL_VERSION,
        "session_id": "s1",
        "token": b"right",
        "run_id": 10,
        "node_id": 20,
        "server_round": 3,
    }
    return pb.Hello(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [0, 2, 77])
def test_version(version: int) -> None:
    with pytest.raises(HandshakeError, match=f"Protocol version is {version}; expected 1"):
        handshake.check_version(_hello(protocol_version=version))
    handshake.check_version(_hello())


def test_the_right_ticket_passes() -> None:
    handshake.check_ticket(_hello(), TICKET, used=False, now_s=100.0)
    handshake.check_holder(_hello(), TICKET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": b"wrong"}, "does not open session 's1'"),
        ({"token": b""}, "does not open session 's1'"),
        ({"run_id": 11}, "made for run_id 10; expected this, got run_id 11"),
        ({"node_id": 21}, "made for node_id 20; expected this, got node_id 21"),
        ({"server_round": 2}, "made for server_round 3; expected this, got server_round 2"),
    ],
)
def test_wrong_or_foreign(changes: dict[str, object], message: str) -> None:
    with pytest.raises(HandshakeError, match=re.escape(message)) as caught:
        handshake.check_ticket(_hello(**changes), TICKET, used=False, now_s=0.0)
        handshake.check_holder(_hello(**changes), TICKET)
    assert isinstance(caught.value, handshake.Refusal) and caught.value.code == pb.FAILURE_CODE_TOKEN
    assert "right" not in str(caught.value)


def test_used_and_expired() -> None:
    with pytest.raises(HandshakeError, match="session 's1' was used before"):
        handshake.check_ticket(_hello(), TICKET, used=True, now_s=0.0)
    with pytest.raises(HandshakeError, match="session 's1' expired 25 s ago"):
        handshake.check_ticket(_hello(), TICKET, used=False, now_s=125.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "GPT2LMHeadModel"),
        ("num_blocks", 5),
        ("hidden_size", 64),
        ("vocab_size", 128),
        ("dtype", "bfloat16"),
        ("digest", "abd"),
    ],
)
def test_model(field: str, value: object) -> None:
    other = pb.ModelFingerprint()
    other.CopyFrom(MODEL)
    setattr(other, field, value)
    message = f"The device's student has {field} {value!r}; expected {getattr(MODEL, field)!r}"
    with pytest.raises(HandshakeError, match=re.escape(message)):
        handshake.check_model(other, MODEL)
    handshake.check_model(MODEL, MODEL)


def test_every_field_of_the_fingerprint_is_checked() -> None:
    for field in pb.ModelFingerprint.DESCRIPTOR.fields:
        other = pb.ModelFingerprint()
        other.CopyFrom(MODEL)
        other.ClearField(field.name)
        with pytest.raises(HandshakeError, match=field.name):
            handshake.check_model(other, MODEL)


def test_codecs() -> None:
    handshake.check_codecs([pb.CODEC_NONE, pb.CODEC_FLOAT16], [pb.CODEC_NONE])
    with pytest.raises(HandshakeError, match=re.escape("['CODEC_NONE', '42']; expected ['CODEC_INT8_BLOCKWISE']")):
        handshake.check_codecs([pb.CODEC_NONE, 42], [pb.CODEC_NONE, pb.CODEC_INT8_BLOCKWISE])


def test_many_codecs_cost_no_time_and_flood_no_log() -> None:
    """It is judged while every other device waits."""
    hello = pb.Hello(codecs=[9] * 1_000_000 + [*range(10, 1000)])  # type: ignore[list-item]
    started_s = time.monotonic()
    with pytest.raises(HandshakeError, match="CODEC_NONE") as caught:
        handshake.check_codecs(hello.codecs, [pb.CODEC_NONE, pb.CODEC_INT8_BLOCKWISE])
    assert time.monotonic() - started_s < 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (handshake.Refusal(pb.FAILURE_CODE_TOKEN, "m"), HandshakeError),
        (TensorError("m"), ProtocolError),
        (ProtocolError("m"), ProtocolError),
        (NonFiniteError("m"), NonFiniteError),
        (DataError("m"), DataError),
        (KeyboardInterrupt("m"), PeerLostError),
        (StoreError("m"), SplitKDError),
        (ConfigError("m"), SplitKDError),
        (CutError("m"), SplitKDError),
        (ZeroDivisionError("m"), SplitKDError),
    ],
)
def test_an_error_arrives_as_the_same_kind(error: BaseException, kind: type[SplitKDError]) -> None:
    failure = pb.Failure.FromString(failure_from(error).SerializeToString())
    arrived = error_from(failure, "device 3")
    assert type(arrived) is kind
    assert str(arrived).startswith("device 3 reported: ") and str(arrived).endswith("m")


def test_every_failure_code_becomes_an_error_of_the_tree() -> None:
    for code in [*pb.FailureCode.values(), 99]:
        assert isinstance(error_from(pb.Failure(code=code, message="why"), "p"), SplitKDError)


def test_a_peer_cannot_flood_a_log() -> None:
    assert len(str(error_from(pb.Failure(message="x" * 100_000), "p"))) < 2100
    assert len(failure_from(DataError("x" * 100_000)).message) <= 2000
