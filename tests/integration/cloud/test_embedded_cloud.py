"""The cloud next to the edge: it serves, ends with whoever started it, and says what it lacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cloud_runs import SERIAL, access, expected, is_same, opened, settings, stored, train
from torch import nn

from flwr_splitkd.errors import ConfigError, SplitKDError
from flwr_splitkd.tiers.cloud import EmbeddedCloud
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from tiny_llms import tiny_llm

HERE = Path(__file__).parent
PARENT = """
import json, os, sys, time
from functools import partial
from pathlib import Path
from cloud_runs import SERIAL, settings
from flwr_splitkd.tiers.cloud import EmbeddedCloud
from tiny_llms import tiny_llm
if __name__ == "__main__":
    llm = partial(tiny_llm, "llama")
    if sys.argv[2] == "loading":
        import embedded_models
        llm = partial(embedded_models.slow, sys.argv[1])
    with EmbeddedCloud(llm=llm, tasks={SERIAL: settings(SERIAL)}).running(Path(sys.argv[1])) as (address, edge, token):
        print(json.dumps([address, edge, token.hex()]), flush=True)
        time.sleep(60)
"""


def cloud(**changes: Any) -> EmbeddedCloud:
    given = {
        "llm": partial(tiny_llm, "llama"),
        "tasks": {SERIAL: settings(SERIAL)},
        "commit_every_steps": 100,
        **changes,
    }
    return EmbeddedCloud(**given)


def children() -> set[str]:
    return {pid for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


def broken() -> nn.Module:
    raise ValueError("no such weights")


def suicidal() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def gone(pid: int, timeout_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_it_serves_and_what_it_trained_is_durable(tmp_path: Path) -> None:
    before = children()
    with cloud().running(tmp_path) as (address, edge, token):
        assert address.startswith("127.0.0.1:") and len(token) >= 16
        with opened(access(address, edge, token, SERIAL)) as link:
            train(link, "edge", range(2))
    assert is_same(stored(tmp_path, SERIAL), expected(SERIAL, "edge", range(2))[0])
    assert children() == before


def test_what_cannot_be_sent_to_a_process(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="cannot be sent there: .*Expected an `llm` that is a function of a module.*Or start"
    ):
        with cloud(llm=lambda: tiny_llm()).running(tmp_path):
            pytest.fail("it runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("llm", "pattern"),
    [
        (broken, "The cloud's process failed: ValueError: no such weights"),
        (suicidal, "ended with exit code -9 before it answered.*Signal 9 is often the system's for want of memory"),
        (partial(nn.Linear, 2, 2), "The cloud's process failed: "),
    ],
    ids=["raises", "dies", "is no language model"],
)
def test_builders_that_fail(tmp_path: Path, llm: Any, pattern: str) -> None:
    before = children()
    with pytest.raises(SplitKDError, match=pattern):
        with cloud(llm=llm).running(tmp_path):
            pytest.fail("it runs")
    assert children() == before


@pytest.mark.slow
@pytest.mark.parametrize("when", ["serving", "loading"])
def test_it_ends_with_its_parent(tmp_path: Path, when: str) -> None:
    """Also when that one is killed, and while the model is being loaded."""
    (tmp_path / "embedded_models.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def slow(folder):\n    Path(folder, 'loading').write_text(str(os.getpid()))\n    time.sleep(60)\n"
    )
    paths = [tmp_path, HERE, HERE.parent / "faults", HERE.parent, HERE.parents[1], HERE.parents[2]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PARENT, str(tmp_path), when]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            if when == "serving":
                assert parent.stdout is not None
                address, edge, token = json.loads(parent.stdout.readline())
                with opened(access(address, edge, bytes.fromhex(token), SERIAL), pb.TASK_START_FRESH) as link:
                    train(link, "edge", range(1))
            else:
                deadline_s = time.monotonic() + 60
                while not (tmp_path / "loading").exists():
                    assert time.monotonic() < deadline_s and parent.poll() is None
                    time.sleep(0.05)
            (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        finally:
            parent.kill()
    assert gone(int(child))
