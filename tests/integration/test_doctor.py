"""`flwr-splitkd doctor` beside a SuperLink of Flower's: reached over TLS, and asked for its version and its time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from flower_harness import federation
from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, write_new


@pytest.mark.slow
@pytest.mark.deployment
def test_a_device_asks_its_superlink(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    write_new(folder, make_certificates(hosts=edge_hosts([]), supernodes=1, days=90))
    with federation("deployment", tmp_path / "logs", supernodes=0, tls=folder) as running:
        written = re.search(r'address = "([^"]+)"', (running.home / "config.toml").read_text())
        assert written is not None
        address = written[1]
        command = [sys.executable, "-m", "flwr_splitkd", "doctor", "--role", "device", "--superlink", address, "--json"]
        command += ["--certificates", str(folder), "--only", "versions", "--only", "ports", "--only", "clock"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found[f"SuperLink {address}"]["status"] == found[f"TLS of SuperLink {address}"]["status"] == "ok"
    flower, clock = found["flwr and the SuperLink's"], found[f"clock against https://{address}/health"]
    if version("flwr").startswith("1.30."):  # gRPC tells neither
        assert flower["status"] == clock["status"] == "skipped" and "--superlink-version X.Y" in flower["remedy"]
    else:
        assert flower["seen"] == f"{version('flwr')} here, {version('flwr')} there"
        assert clock["seen"].startswith("no difference")
