"""What somebody on the way between a device and the edge gets to see, with TLS and without."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_frames import MODEL, hello, ticket
from relay import Relay

from flwr_splitkd.wire.certificates import make_certificates, tls_files, write_new
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 10.0
STEPS = 5
PATTERNS = 50
"""Patterns of 32 random bytes in each tensor."""


class _Tap(Relay):
    """A relay that keeps a copy of everything."""

    def __init__(self, upstream: str) -> None:
        self.uplink, self.downlink = bytearray(), bytearray()
        super().__init__(upstream)

    def _count(self, block: bytes, *, from_device: bool) -> bytes:
        (self.uplink if from_device else self.downlink).extend(block)
        return super()._count(block, from_device=from_device)


def _tensor(content: bytes) -> EncodedTensor:
    return EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)


def _tapped_turn(tls: TlsFiles | None) -> tuple[_Tap, dict[str, list[bytes]]]:
    """A turn through a tap, with one resumption; what travelled, by what it is."""
    rng = random.Random(8)
    secrets: dict[str, list[bytes]] = {"smashed": [], "gradient": [], "token": [], "resume token": [], "session": []}
    server = DataPlaneServer(tls=tls)
    server.start(model=MODEL, codecs=())
    tap = _Tap(server.address)
    try:
        session = server.expect(ticket())
        secrets["token"].append(session.ticket.token)
        secrets["session"].append(session.ticket.session_id.encode())
        keep = secrets["resume token"].append
        root = server.root_certificate
        with connect(tap.address, hello(session.ticket), root_certificate=root, on_token=keep) as device:
            edge = session.link
            assert edge is not None
            edge.admit()
            for step in range(STEPS):
                for name in ("smashed", "gradient"):
                    secrets[name] += [rng.randbytes(32) for _ in range(PATTERNS)]
                up, down = (b"".join(secrets[name][-PATTERNS:]) for name in ("smashed", "gradient"))
                device.send(pb.Forward(step=step), {"smashed": _tensor(up)})
                assert bytes(edge.receive("Forward", WAIT_S).tensors["smashed"].payload) == up
                edge.send(pb.Backward(step=step), {"gradient": _tensor(down)})
                assert bytes(device.receive("Backward", WAIT_S).tensors["gradient"].payload) == down
                if step == 2:
                    tap.cut()
        assert edge.num_resumed == 1
        server.end(session)
    finally:
        tap.stop()
        server.stop()
    return tap, secrets


def _seen(capture: bytes, secrets: dict[str, list[bytes]]) -> dict[str, int]:
    """How many secrets of each kind are in a capture; their halves too, as a frame may begin within one."""

    def parts(secret: bytes) -> tuple[bytes, ...]:
        half = len(secret) // 2
        return secret, secret[:half], secret[half:]

    return {kind: sum(any(part in capture for part in parts(one)) for one in ones) for kind, ones in secrets.items()}


def test_tls_hides_tensors_and_tokens(tmp_path: Path, covered: Callable[[str, object], None]) -> None:
    write_new(tmp_path, make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1))
    tap, secrets = _tapped_turn(tls_files(tmp_path))
    assert len(secrets["resume token"]) == 2
    assert min(len(tap.uplink), len(tap.downlink)) > STEPS * PATTERNS * 32  # the tensors did travel through it
    for capture in (bytes(tap.uplink), bytes(tap.downlink)):
        assert _seen(capture, secrets) == dict.fromkeys(secrets, 0)
        assert b"flwr_splitkd.wire.v1" not in capture
    covered("captured TLS bytes without a secret", f"{len(tap.uplink)} up, {len(tap.downlink)} down")


def test_the_same_search_finds_them_without_tls() -> None:
    tap, secrets = _tapped_turn(None)
    up, down = _seen(bytes(tap.uplink), secrets), _seen(bytes(tap.downlink), secrets)
    count = STEPS * PATTERNS
    assert up == {"smashed": count, "gradient": 0, "token": 1, "resume token": 1, "session": 1}
    assert down == {"smashed": 0, "gradient": count, "token": 0, "resume token": 2, "session": 0}


@pytest.fixture(autouse=True)
def no_thread_left() -> object:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("splitkd-connection")]
