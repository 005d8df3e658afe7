"""TLS and SuperNode authentication with Flower's own processes: who gets in, and who does not."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from flower_harness import ECHO_APP, federation
from flower_run import Federation, FederationError, deployment
from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, supernode_key, write_new

pytestmark = pytest.mark.deployment

WAIT_S = 60.0


def certificates(folder: Path, hosts: Sequence[str], supernodes: int) -> Path:
    write_new(folder, make_certificates(hosts=hosts, supernodes=supernodes, days=1))
    return folder


def refused(running: Federation, name: int, process: subprocess.Popen[bytes]) -> str:
    """Wait until a SuperNode gives up; what it says."""
    assert process.wait(WAIT_S) != 0
    return (running.logs / f"supernode-{name}.log").read_text()


@pytest.mark.slow
def test_registered_supernodes_get_in_and_a_stranger_does_not(tmp_path: Path) -> None:
    tls = certificates(tmp_path / "certificates", edge_hosts([]), 3)
    with federation("deployment", tmp_path / "logs", supernodes=2, tls=tls) as running:
        # A key of the same folder, which nobody has registered.
        stranger = running.start_supernode(2, 3, key=supernode_key(tls, 2))
        said = refused(running, 2, stranger)
        assert "Failed to activate SuperNode" in said or "No SuperNode found with the given public key" in said, said
        outcome = running.run(ECHO_APP, {"num-nodes": 2, "run-dir": str(tmp_path)}, timeout_s=90.0)
        assert outcome.completed, outcome.tail()

        without_a_key = running.start_supernode(3, 3)
        said = refused(running, 3, without_a_key)
        assert "SuperNode registration is disabled" in said or "must be registered via the CLI" in said, said

        # The same key as soon as it is registered: it was the registration that was missing.
        running.register_supernode(supernode_key(tls, 2).with_suffix(".pub"))
        running.start_supernode(2, 3, key=supernode_key(tls, 2))
        outcome = running.run(ECHO_APP, {"num-nodes": 3, "run-dir": str(tmp_path / "three")}, timeout_s=90.0)
        assert outcome.completed, outcome.tail()
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert sorted(reply["partition-id"] for reply in answer["replies"]) == [0, 1]
    answer = json.loads((tmp_path / "three" / "answer.json").read_text())
    assert sorted(reply["partition-id"] for reply in answer["replies"]) == [0, 1, 2]


def test_flower_refuses_a_certificate_of_another_host(tmp_path: Path) -> None:
    tls = certificates(tmp_path / "certificates", ["edge.example"], 1)
    with pytest.raises(FederationError, match="supernode register"):
        with federation("deployment", tmp_path / "logs", supernodes=1, tls=tls):
            pytest.fail("`flwr` trusted another host's certificate")


def place_of(process: psutil.Process) -> str | None:
    deadline = time.monotonic() + WAIT_S
    while process.name() == "env" or Path(process.exe()).name == "env":
        assert time.monotonic() < deadline, "`env` did not give way to the program"
        time.sleep(0.05)
    return process.environ().get("SPLITKD_PLACE")


def test_prefixes_reach_their_own_process(tmp_path: Path) -> None:
    prefixes = [("env", "SPLITKD_PLACE=device 0"), ("env", "SPLITKD_PLACE=device 1")]
    with deployment(
        tmp_path / "logs", supernodes=2, superlink_prefix=("env", "SPLITKD_PLACE=edge"), supernode_prefixes=prefixes
    ) as running:
        assert running.superlink is not None
        processes = [running.superlink, *running.supernodes.values()]
        places = [place_of(psutil.Process(process.pid)) for process in processes]
    assert places == ["edge", "device 0", "device 1"]


def test_a_prefix_for_each_supernode_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 1 entries; expected one for each of 2"):
        with deployment(tmp_path / "logs", supernodes=2, supernode_prefixes=[("env",)]):
            pytest.fail("it started")
