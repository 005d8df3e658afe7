"""Mutated bytes and handshakes over real gRPC: the server refuses them, forgets them, and serves the next device."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import psutil
import pytest
from hostile_frames import (
    BYTES,
    LIMITS,
    MODEL,
    STRUCTURE,
    hello,
    mutate_bytes,
    mutate_structure,
    numbered,
    ticket,
    turn,
)

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.server import DataPlaneServer, Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

STRANGERS = 2_000
PER_KIND = 60
"""Turns of devices that are let in, of each kind of mutation."""
HANDSHAKES = 1_500
_METHOD = "/flwr_splitkd.wire.v1.DataPlane/Turn"
_REFUSED = "error code 7"
_LONGEST_S = 8.0
_MOST_MB = 150.0


@contextmanager
def _running(**settings: object) -> Iterator[DataPlaneServer]:
    server = DataPlaneServer(handshake_timeout_s=2.0, grace_period_s=0.02, limits=LIMITS, **settings)  # type: ignore[arg-type]
    server.start(model=MODEL, codecs=())
    try:
        yield server
    finally:
        server.stop()


class _Dialler:
    """Streams of raw bytes, over one connection as long as it lasts."""

    def __init__(self, server: DataPlaneServer) -> None:
        self._address = server.address
        self.longest_s, self.num_connections = 0.0, 0
        self._dial()

    def _dial(self) -> None:
        self.num_connections += 1
        self.channel = grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])
        self._turn = self.channel.stream_stream(_METHOD)

    def __str__(self) -> str:
        return f"{self.num_connections} connections, longest stream {self.longest_s:.2f} s"

    def say(self, *serialized: bytes) -> list[pb.DownlinkFrame]:
        """Everything that comes back until the stream has ended."""
        started_s, frames = time.monotonic(), []
        for _ in range(3):
            try:
                for answer in self._turn(iter(serialized), timeout=_LONGEST_S):
                    frames.append(pb.DownlinkFrame.FromString(answer))
            except grpc.RpcError as error:
                assert error.code() != grpc.StatusCode.DEADLINE_EXCEEDED, "it was left hanging"
                # A connection has four streams, and gRPC (1.85) sometimes counts one that is over until it is closed.
                if not frames and _REFUSED in error.details():
                    self.channel.close()
                    self._dial()
                    continue
            break
        self.longest_s = max(self.longest_s, time.monotonic() - started_s)
        return frames


def _serves(server: DataPlaneServer) -> None:
    session = server.expect(ticket(77))
    with connect(server.address, hello(session.ticket)) as device:
        assert session.link is not None
        device.send(pb.GradientNorms(step=8))
        assert session.link.receive("GradientNorms", _LONGEST_S).body.step == 8
    server.end(session)


def _framed(body: pb.Hello | pb.Resume) -> bytes:
    name = "hello" if isinstance(body, pb.Hello) else "resume"
    return pb.UplinkFrame(**{name: body}).SerializeToString()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No stranger makes this side log anything, and no thread is left. Exceptions in threads fail a test by themselves."""
    before = set(threading.enumerate())
    yield
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    deadline_s = time.monotonic() + _LONGEST_S
    while any(thread.name.startswith("splitkd") for thread in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline_s, threading.enumerate()
        time.sleep(0.01)


def test_strangers(covered: Callable[[str, object], None]) -> None:
    """Bytes of whoever has no ticket: mutated Hellos of nobody, frames without one, and noise."""
    rng, answers = random.Random(4), Counter[str]()
    with _running() as server:
        expected = server.expect(ticket(1))
        dialler = _Dialler(server)
        dialler.say(b"")
        before_mb = psutil.Process().memory_info().rss / 1e6
        for number in range(STRANGERS):
            opening = _framed(hello(ticket(1))) if number % 2 else _framed(pb.Resume(session_id="x", token=b"y" * 32))
            serialized = [opening, *(frame.SerializeToString() for frame in turn(rng, first=1))]
            kind = rng.choice(list(BYTES))
            mutated = mutate_bytes(rng, serialized[:1] if number % 4 else serialized, kind)
            frames = dialler.say(*mutated[number % 3 == 0 :])
            assert all(frame.HasField("failure") for frame in frames)
            answers[pb.FailureCode.Name(frames[0].failure.code) if frames else "cut off"] += 1
        grown_mb = psutil.Process().memory_info().rss / 1e6 - before_mb
        assert not expected.connected and not expected.used
        deadline_s = time.monotonic() + 10  # the last one's stream ends on a thread of gRPC's
        while server.num_streams and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert server.num_streams == 0
        assert grown_mb < _MOST_MB
        dialler.channel.close()
        _serves(server)
    covered(
        "streams of strangers",
        f"{dict(answers)}; {dialler}, memory grew by {grown_mb:.1f} MB",
    )


@pytest.mark.slow
def test_devices(covered: Callable[[str, object], None]) -> None:
    """Mutated turns of devices that are let in, with a computing thread that reads them."""
    rng, ends = random.Random(5), Counter[str]()
    with _running() as server:
        dialler = _Dialler(server)
        dialler.say(b"")
        before_mb = psutil.Process().memory_info().rss / 1e6
        for name in [*STRUCTURE, *BYTES] * PER_KIND:
            session = server.expect(ticket())
            frames = turn(rng, first=1)
            if name in STRUCTURE:
                mutated = [frame.SerializeToString() for frame in mutate_structure(rng, frames, name)]
            else:
                mutated = mutate_bytes(rng, [frame.SerializeToString() for frame in frames], name)
            reader = threading.Thread(target=lambda session=session: ends.update([_read(server, session)]))  # type: ignore[misc]
            reader.start()
            dialler.say(_framed(hello(session.ticket)), *mutated)
            reader.join(_LONGEST_S)
            assert not reader.is_alive()
            assert session.used
            server.end(session)
        grown_mb = psutil.Process().memory_info().rss / 1e6 - before_mb
        assert grown_mb < _MOST_MB
        dialler.channel.close()
        _serves(server)
    assert min(ends["TensorError"], ends["ProtocolError"], ends["PeerLostError"]) > 20
    covered(
        "mutated turns over gRPC",
        f"{dict(ends)}; {dialler}, memory grew by {grown_mb:.1f} MB",
    )


def _read(server: DataPlaneServer, session: Session) -> str:
    with server.changed:
        server.changed.wait_for(lambda: session.link is not None, _LONGEST_S)
    assert session.link is not None
    session.link.admit()
    try:
        while True:
            session.link.receive("Hello|Resume|Forward|GradientNorms|TurnDone|Checkpoint", _LONGEST_S)
    except SplitKDError as error:
        session.link.fail(error)
        return type(error).__name__


def test_no_wrong_token_passes(covered: Callable[[str, object], None]) -> None:
    rng, tried = random.Random(6), Counter[str]()
    now_s = [0.0]
    with _running(clock=lambda: now_s[0]) as server:
        fresh, other, expired, ended = (
            server.expect(ticket(i, expires_s=100.0 if i == 3 else 1e9)) for i in (1, 2, 3, 4)
        )
        now_s[0] = 101.0
        server.end(ended)
        used = server.expect(ticket(5))
        with connect(server.address, hello(used.ticket)) as device:
            link = used.link
            assert link is not None
            old_tokens = [used.resume_tokens.renew() for _ in range(3)]
            used.resume_tokens.settle(old_tokens[-1])
            wrong: dict[str, Callable[[], pb.Hello | pb.Resume]] = {
                "drawn at random": lambda: hello(fresh.ticket, token=rng.randbytes(32)),
                "one bit off": lambda: hello(fresh.ticket, token=_flipped(rng, fresh.ticket.token)),
                "truncated": lambda: hello(fresh.ticket, token=fresh.ticket.token[: rng.randrange(32)]),
                "longer": lambda: hello(fresh.ticket, token=fresh.ticket.token + rng.randbytes(rng.randint(1, 9))),
                "empty": lambda: hello(fresh.ticket, token=b""),
                "of another session": lambda: hello(fresh.ticket, token=other.ticket.token),
                "for another session": lambda: hello(fresh.ticket, session_id=other.ticket.session_id),
                "of another run": lambda: hello(fresh.ticket, run_id=rng.randrange(11, 1 << 64)),
                "of another node": lambda: hello(fresh.ticket, node_id=rng.randrange(2, 1 << 64)),
                "of another round": lambda: hello(fresh.ticket, server_round=rng.randrange(4, 1 << 32)),
                "expired": lambda: hello(expired.ticket),
                "of an ended session": lambda: hello(ended.ticket),
                "used before": lambda: hello(used.ticket),
                "a ticket to resume": lambda: _resume(used, used.ticket.token),
                "a ticket to resume what has not begun": lambda: _resume(fresh, fresh.ticket.token),
                "empty, to resume": lambda: _resume(used, b""),
                "at random, to resume": lambda: _resume(used, rng.randbytes(32)),
                "one bit off, to resume": lambda: _resume(used, _flipped(rng, used.resume_tokens._valid[-1])),
                "an older one, to resume": lambda: _resume(used, rng.choice(old_tokens[:2])),
                "an older one, from a new process": lambda: hello(used.ticket, token=rng.choice(old_tokens[:2])),
                "for a session of nobody": lambda: _resume(fresh, used.resume_tokens._valid[-1], "ghost"),
                "for another session, to resume": lambda: _resume(other, used.resume_tokens._valid[-1]),
            }
            dialler = _Dialler(server)
            for number in range(HANDSHAKES):
                name = list(wrong)[number % len(wrong)]
                (frame,) = dialler.say(_framed(wrong[name]()))
                assert frame.failure.code == pb.FAILURE_CODE_TOKEN, (name, frame)
                for secret in (fresh.ticket.token, used.resume_tokens._valid[-1]):
                    assert repr(secret)[2:-1] not in frame.failure.message
                tried[name] += 1
            for name in wrong:
                assert tried[name] >= HANDSHAKES // len(wrong)
            assert not any(session.used for session in (fresh, other, expired, ended))
            assert used.link is link and link.attached
            device.send(pb.GradientNorms(step=3))  # and the one that was let in before is not disturbed
            assert link.receive("GradientNorms", _LONGEST_S).body.step == 3
            # The right ones open: so the others were refused for what is wrong with them.
            assert dialler.say(_framed(hello(fresh.ticket)), *_bye())[0].HasField("welcome")
            assert dialler.say(_framed(_resume(used, used.resume_tokens._valid[-1])), *_bye())[0].HasField("resumed")
            dialler.channel.close()
    covered(
        "wrong tokens, none of which passed",
        f"{tried.total()} in {len(tried)} ways; {dialler}",
    )


def _resume(session: Session, token: bytes, session_id: str = "") -> pb.Resume:
    return pb.Resume(protocol_version=1, session_id=session_id or session.ticket.session_id, token=token)


def _flipped(rng: random.Random, token: bytes) -> bytes:
    altered = bytearray(token)
    altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def _bye() -> list[bytes]:
    return [frame.SerializeToString() for frame in numbered([pb.UplinkFrame(last=True)], first=1)]
