"""A run of real processes whose network and disk a test can reach: an edge, devices, and a relay between them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay import Relay, relayed
from zygote import fork, lives

__all__ = ["GRACE_S", "Run", "running", "zygote_at"]

HERE = Path(__file__).parent
GRACE_S = 3.0
RUN_S = 240.0
MAINS = {"edge": "fault_edge", "device": "fault_device"}


@dataclass
class Run:
    """A run whose processes, network and disk a test can reach."""

    folder: Path
    zygote: str
    relay: Relay
    job: dict[str, Any]
    edge_pid: int = 0
    fault_s: float = 0.0
    stopped: list[int] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        return Path(self.job["run"])

    def start(self, **changes: Any) -> None:
        self.job.update(changes)
        self.edge_pid = fork(self.zygote, "edge", self.job, self.folder / "edge.log")

    def resume(self) -> None:
        """Start the edge again, as after a reboot; nothing else is done to it."""
        (self.folder / "go").touch()
        self.start(resume=True, phase=None)

    def reached(self) -> int:
        """Wait until a process has come to the fault's place; its id."""
        path = self.folder / "reached"
        self.until(path.exists, "the place of the fault")
        said = json.loads(path.read_text())
        self.fault_s = time.time()
        return int(said["pid"])

    def go(self) -> None:
        (self.folder / "go").touch()

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = RUN_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"no {what} within {timeout_s:g} s\n{self.logs()}"
            time.sleep(0.02)

    def lives(self, pid: int) -> bool:
        return lives(self.zygote, pid)

    def result(self) -> dict[str, Any]:
        path = self.folder / "result.json"
        self.until(lambda: path.exists() or not self.lives(self.edge_pid), "end of the run")
        assert path.exists(), self.logs()
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.folder.glob("*.log")))

    def pids(self) -> list[int]:
        path = self.folder / "pids"
        return [*map(int, path.read_text().split())] if path.exists() else []

    def diary(self) -> list[dict[str, Any]]:
        path = self.folder / "diary.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def seconds_until(self, *events: str, about: str = "") -> str:
        """From the fault to the first of these events with a device, as the table shows it."""
        lines = [line for line in self.diary() if line["event"] in events and about in line["what"]]
        found = [line["time_s"] for line in lines if line["time_s"] >= self.fault_s]
        return f"{min(found) - self.fault_s:.1f}" if found else "-"


@contextlib.contextmanager
def zygote_at(path: Path, folder: Path = HERE, **mains: str) -> Iterator[str]:
    """A process that has imported everything and forks others: by name, the modules in `folder` whose ``main`` they run."""
    folders = [folder, HERE, HERE.parent, HERE.parents[1], HERE.parents[2]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    names = [f"{name}={module}" for name, module in (mains or MAINS).items()]
    command = [sys.executable, HERE / "zygote.py", path, *names]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield str(path)
        finally:
            process.kill()


@contextlib.contextmanager
def running(tmp_path: Path, zygote: str, **job: Any) -> Iterator[Run]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with relayed(f"127.0.0.1:{port}") as relay:
        defaults = {
            "zygote": zygote,
            "folder": str(tmp_path),
            "run": str(tmp_path / "run"),
            "port": port,
            "advertised_address": relay.address,
            "devices": 3,
            "orders": [[1, 2, 3]],
            "rounds": 2,
            "batches": 4,
            "commit_every_steps": 0,
            "grace_period_s": GRACE_S,
            "step_timeout_s": 30.0,
            "max_restarts": 0,
            "resume": False,
            "phase": None,
        }
        run = Run(tmp_path, zygote, relay, {**defaults, **job})
        try:
            run.start()
            yield run
        finally:
            for pid in filter(run.lives, [run.edge_pid, *run.pids()]):
                for group in (os.killpg, os.kill):  # workers are in their device's group
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        group(pid, signal.SIGKILL)
