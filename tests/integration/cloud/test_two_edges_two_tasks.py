"""`flwr-splitkd cloud` with TLS, two edges in processes of their own, and a task for each: nobody is in anybody's way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cloud_runs import DEVICES, LORA, SERIAL, SLM, access, batch, expected, is_same, opened, settings, stored, train

from flwr_splitkd.tiers.cloud import CloudService, CloudSetup, open_cloud
from flwr_splitkd.tiers.cloud.config import read_cloud_config
from flwr_splitkd.wire.certificates import make_certificates, tls_files
from tiny_llms import tiny_llm

HERE = Path(__file__).parent
STEPS = 5
TOML = """
address = "127.0.0.1:0"
state-folder = "state"
commit-every-steps = 2

[llm]
name = "llm"
dtype = "float32"

[tls]
certificate = "server.pem"
private-key = "server.key"
root-certificate = "ca.crt"

[edges.a]
token-file = "a.token"

[edges.b]
token-file = "b.token"

[tasks.serial]
slm-width = {slm}
bottleneck = 4
learning-rate = 1e-2
max-grad-norm = 1.0
edges = "a"

[tasks.lora]
slm-width = {slm}
method = "lora"
rank = 2
lora-alpha = 8
lora-dropout = 0.2
target-modules = "q_proj, down_proj"
learning-rate = 1e-2
max-grad-norm = 1.0
edges = "b"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llm().save_pretrained(tmp_path / "llm")  # type: ignore[operator]
    for name, content in make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1).items():
        (tmp_path / name).write_bytes(content)
    assert tls_files(tmp_path).certificate.exists()  # type: ignore[union-attr]
    for edge in "ab":
        (tmp_path / f"{edge}.token").write_text(secrets.token_hex(32) + "\n")
    (tmp_path / "cloud.toml").write_text(TOML.format(slm=SLM))
    return tmp_path


@contextlib.contextmanager
def process(*command: Any) -> Iterator[subprocess.Popen[str]]:
    paths = [HERE, HERE.parent / "faults", HERE.parent, HERE.parents[1], HERE.parents[2]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    arguments = [sys.executable, *map(str, command)]
    with subprocess.Popen(arguments, env=environment, text=True, **pipes) as one:  # type: ignore[call-overload]
        try:
            yield one
        finally:
            one.kill()


def until(one: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read a process's output up to a line; the test's own timeout is the bound."""
    assert one.stdout is not None
    lines = []
    for line in one.stdout:
        lines.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(lines))


@pytest.mark.slow
def test_each_module_is_what_it_is_alone(folder: Path) -> None:
    with (
        process("-m", "flwr_splitkd", "cloud", "--config", folder / "cloud.toml") as cloud,
        ThreadPoolExecutor(2) as pool,
    ):
        job = {"steps": STEPS, "root_certificate": str(folder / "ca.crt")}
        jobs = [
            {**job, "edge": edge, "task": task, "token_file": str(folder / f"{edge}.token")}
            for edge, task in (("a", SERIAL), ("b", LORA))
        ]
        address = until(cloud, r"The cloud listens at (127\.0\.0\.1:\d+); state in").group(1)
        with contextlib.ExitStack() as stack:
            edges = [
                stack.enter_context(process(HERE / "edge_process.py", json.dumps({**job, "address": address})))
                for job in jobs
            ]
            for edge in edges:
                until(edge, '"opened": 0')
            for edge in edges:
                assert edge.stdin is not None
                edge.stdin.write("go\n")
                edge.stdin.flush()
            said = [*pool.map(lambda edge: json.loads(until(edge, ".*losses.*").group()), edges)]
        cloud.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert cloud.stdout is not None
        rest = cloud.stdout.read()
        assert cloud.wait(10) == 0 and time.monotonic() - began_s < 10
    assert "Shutting down" in rest
    setup = read_cloud_config(folder / "cloud.toml")
    for position, (edge, task) in enumerate((("a", SERIAL), ("b", LORA))):
        state, words = expected(task, edge, range(STEPS), position=position, given=setup.tasks[task], llm=setup.llm)
        assert is_same(stored(folder / "state", task), state)
        assert said[position]["losses"] == [[loss for loss, _ in step] for step in words]
        token = (folder / f"{edge}.token").read_text().strip()
        assert token not in rest and said[position]["uplink_bytes"] > STEPS * DEVICES * 2 * 5 * SLM * 4


@pytest.fixture
def service(tmp_path: Path) -> Iterator[CloudService]:
    setup = CloudSetup(
        llm=partial(tiny_llm, "llama"),
        tasks={name: settings(name) for name in (SERIAL, LORA)},
        edges={edge: edge.encode() * 32 for edge in "ab"},
        state_folder=tmp_path / "state",
    )
    one = open_cloud(setup)
    yield one
    one.close()


def test_a_flood_starves_nobody(service: CloudService) -> None:
    """Two flooding streams of one task get together what the other task gets, or less."""
    stop = threading.Event()
    floods = 0

    def flood(edge: str) -> None:
        nonlocal floods
        with opened(access(service.address, edge, edge.encode() * 32, LORA)) as link, ThreadPoolExecutor(8) as pool:
            for step in range(1_000_000):
                if stop.is_set():
                    return
                waiting = [pool.submit(link.evaluate, d, step, *batch("b", d, step), 0) for d in range(8)]
                for future in waiting:
                    future.result(60)
                floods += 1

    with ThreadPoolExecutor(2) as pool, opened(access(service.address, "a", b"a" * 32, SERIAL)) as link:
        train(link, "a", range(1))
        flooding = [pool.submit(flood, edge) for edge in "ab"]
        while floods < 4:
            time.sleep(0.01)
        before = service.service_s()
        train(link, "a", range(1, 12))
        now = service.service_s()
        stop.set()
        for future in flooding:
            future.result(60)
    had = {task: now[task] - before[task] for task in (SERIAL, LORA)}
    assert had[SERIAL] > 0.5 * had[LORA], had
