"""The units' own command lines, started: SuperLink and SuperNode find each other, answer to the health check, and end in order."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, supernode_key, write_new
from import_graph import ROOT
from unit_files import (
    BIN,
    command_line,
    environment_text,
    for_older_flower,
    options_of,
    read_environment,
    read_unit,
    unit_text,
)

pytestmark = [pytest.mark.deployment, pytest.mark.slow]
SCRIPTS = Path(sysconfig.get_path("scripts"))
WAIT_S = 60.0


def free_ports(numbers: list[str]) -> dict[str, str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in numbers]
    found = {number: str(one.getsockname()[1]) for number, one in zip(numbers, sockets, strict=True)}
    for one in sockets:
        one.close()
    return found


class Machine:
    """A unit's process with the unit's environment; ``/etc`` and ``/var/lib`` are folders of the test."""

    def __init__(self, unit: str, folder: Path, ports: Mapping[str, str], host: str) -> None:
        self.folder = folder
        self._unit, self._ports, self._host = unit, ports, host
        (folder / "var").mkdir(parents=True)
        newer = "--port" in options_of(unit)
        text = environment_text(unit) if newer else for_older_flower(environment_text(unit))
        settings = read_unit(unit_text(unit))
        pairs = dict(pair.split("=", 1) for line in settings["Environment"] for pair in line.split())
        place = {name: self._here(value) for name, value in pairs.items()}
        self.environment = {**os.environ, **place, "FLWR_TELEMETRY_ENABLED": "0"}
        self.command = [self._here(word) for word in command_line(settings, read_environment(text))]
        if not newer:
            self.command = [word.replace(f"{host}:{ports['8000']}", f"{host}:{ports['9092']}") for word in self.command]
        self.process: subprocess.Popen[bytes] | None = None

    def _here(self, value: str) -> str:
        value = re.sub(r"(?<=[: ])(8000|909[1-49])$|^(8000|909[1-49])$", lambda found: self._ports[found[0]], value)
        value = value.replace(BIN, str(SCRIPTS)).replace("/etc/flwr_splitkd", str(self.folder / "etc"))
        return value.replace("/var/lib/flwr_splitkd", str(self.folder / "var")).replace("edge.local", self._host)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder / "var",
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def answers(self) -> bool:
        check = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), "grpc", f"127.0.0.1:{self._ports['9099']}"]
        return subprocess.run(check, capture_output=True, timeout=60).returncode == 0

    def stop(self) -> list[psutil.Process]:
        """SIGTERM to all of its processes, as systemd does; what is left of them after a while."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        family = [top, *top.children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        _, left = psutil.wait_procs(family, timeout=30)
        return left

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                process.kill()
            self.process.wait(30)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(unit: str, name: str, ports: Mapping[str, str]) -> Machine:
        made.append(Machine(unit, tmp_path / name, ports, "localhost"))
        return made[-1]

    yield make
    for machine in reversed(made):
        machine.kill()


def until(true: Callable[[], bool], what: str, log: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, f"{what}: {log.read_text()[-3000:]}"
        time.sleep(0.5)


def test_a_device_gets_in_and_both_end(tmp_path: Path, machines: Callable[..., Machine]) -> None:
    made = tmp_path / "made"
    write_new(made, make_certificates(hosts=edge_hosts([]), supernodes=1, days=1))
    shared = free_ports(["8000", "9092", "9093", "9091"])
    edge = machines("flower-superlink", "edge", {**shared, **free_ports(["9094", "9099"])})
    device = machines("flower-supernode", "device", {**shared, **free_ports(["9094", "9099"])})
    for machine, files in ((edge, ["ca.crt", "server.pem", "server.key"]), (device, ["ca.crt"])):
        certs = machine.folder / "etc" / "certs"
        certs.mkdir(parents=True)
        for name in files:
            (certs / name).write_bytes((made / name).read_bytes())
    (device.folder / "etc" / "certs" / "supernode.key").write_bytes(supernode_key(made, 0).read_bytes())

    edge.start()
    until(edge.answers, "the SuperLink does not answer", edge.folder / "log")
    home = tmp_path / "home"
    home.mkdir()
    control = shared["8000"] if "--port" in options_of("flower-superlink") else shared["9093"]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "edge"\n[superlink.edge]\naddress = "127.0.0.1:{control}"\n'
        f'root-certificates = "{made / "ca.crt"}"\n'
    )

    def flwr(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [SCRIPTS / "flwr", *arguments, "edge", "--format", "json"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**edge.environment, "FLWR_HOME": str(home)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
        return answer

    flwr("supernode", "register", str(made / "supernode-0.pub"))
    device.start()
    until(device.answers, "the SuperNode does not answer", device.folder / "log")
    until(lambda: "online" in json.dumps(flwr("supernode", "list")), "it does not get in", device.folder / "log")

    assert device.stop() == [] and edge.stop() == []
    # The registration is in the database, below the one folder that the unit may write.
    assert (edge.folder / "var" / "superlink.db").stat().st_size > 0
