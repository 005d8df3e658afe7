"""A turn in a worker process: its answer, its errors, its death, and the end of those who started it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flwr_splitkd.clients.job import Job, TurnFailed
from flwr_splitkd.clients.supervisor import supervise
from flwr_splitkd.clients.worker import _take
from flwr_splitkd.errors import ConfigError, DataError, HandshakeError, SplitKDError
from flwr_splitkd.wire.handshake import Refusal
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 30.0


@dataclass
class FakeClient:
    """Takes turns without an edge: what it does depends on how often it was started."""

    folder: Path
    acts: list[str]

    def take_turn(self, ticket: Any, identity: Any, *, token: bytes, on_token: Callable[[bytes], None]) -> Any:
        attempt = len(list(self.folder.iterdir()))
        (self.folder / str(attempt)).write_text(f"{os.getpid()} {token.decode()}")
        act = self.acts[attempt]
        on_token(b"older")
        on_token(f"token-{attempt}".encode())
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "exit":
            os._exit(3)
        if act == "refuse":
            raise Refusal(pb.FAILURE_CODE_TOKEN, "the token is wrong")
        if act == "bad data":
            raise DataError("`labels` is 7")
        if act == "bug":
            raise KeyError("nothing")
        if act == "sleep":
            time.sleep(60)
        return {"ticket": ticket, "identity": identity}


def _supervised(folder: Path, *acts: str, max_restarts: int = 2) -> Any:
    job = Job(FakeClient(folder, list(acts)), "ticket", "identity")  # type: ignore[arg-type]
    return supervise(job, max_restarts=max_restarts)


def _started(folder: Path) -> list[tuple[int, str]]:
    lines = [path.read_text().split(" ") for path in sorted(folder.iterdir())]
    return [(int(pid), token) for pid, token in lines]


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again_with_the_newest_token_and_answers(tmp_path: Path) -> None:
    assert _supervised(tmp_path, "die", "answer") == {"ticket": "ticket", "identity": "identity"}
    started = _started(tmp_path)
    assert [token for _, token in started] == ["", "token-0"]
    assert len({os.getpid(), *(pid for pid, _ in started)}) == 3
    assert not any(psutil.pid_exists(pid) for pid, _ in started)


@pytest.mark.slow
def test_the_last_death_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        SplitKDError, match=r"was killed by signal 9 \(SIGKILL\), for the 2th time.*`max_restarts` = 1 times"
    ):
        _supervised(tmp_path, "exit", "die", max_restarts=1)
    assert [token for _, token in _started(tmp_path)] == ["", "token-0"]


def test_an_error_comes_back_and_starts_nothing_again(tmp_path: Path) -> None:
    with pytest.raises(HandshakeError, match="the token is wrong"):
        _supervised(tmp_path, "refuse")
    assert len(_started(tmp_path)) == 1


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        ("refuse", HandshakeError, "the token is wrong"),
        ("bad data", DataError, "`labels` is 7"),
        ("bug", SplitKDError, "KeyError: 'nothing'"),
    ],
)
def test_what_a_worker_sends_is_raised_as_the_error_it_was(
    tmp_path: Path, act: str, kind: type[SplitKDError], message: str
) -> None:
    job = Job(FakeClient(tmp_path, [act]), "ticket", "identity")  # type: ignore[arg-type]
    here, there = multiprocessing.Pipe()
    with here, there:
        there.send(_take(job, there))
        assert [here.recv(), here.recv()] == [b"older", b"token-0"]
        error = here.recv().to_error()
    assert type(error) is kind and re.search(message, str(error))


def test_what_cannot_be_sent_to_a_process_is_named(tmp_path: Path) -> None:
    client: Any = FakeClient(tmp_path, ["answer"])
    client.student = lambda: None
    with pytest.raises(ConfigError, match="`max_restarts` needs a worker process.*lambda.*functions of a module"):
        supervise(Job(client, "ticket", "identity"), max_restarts=1)  # type: ignore[arg-type]


def test_an_error_of_another_version_is_still_an_error() -> None:
    assert type(TurnFailed("NewError", "odd").to_error()) is SplitKDError


@pytest.mark.slow
def test_a_worker_ends_with_its_supervisor(tmp_path: Path) -> None:
    (tmp_path / "started").mkdir()
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_supervisor import _supervised
        _supervised(Path({str(tmp_path / "started")!r}), "sleep")
        """
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline_s = time.monotonic() + WAIT_S
        while not (started := [path for path in (tmp_path / "started").iterdir() if path.read_text()]):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        pid = int(started[0].read_text().split(" ")[0])
        assert psutil.pid_exists(pid)
        process.kill()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
