"""The network of the deploy demo: its commands, the rate of its links, and that it goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lab_network
from lab_network import LabNetwork, NetworkError, lab_commands

NAMESPACES = Path("/run/netns")
RECEIVE = """
import socket, time
with socket.create_server(("", 9000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as peer:
        began, count = time.monotonic(), 0
        while data := peer.recv(1 << 16):
            count += len(data)
print(count * 8 / (time.monotonic() - began) / 1e6)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), 10) as edge:
    edge.sendall(bytes(int(sys.argv[2])))
"""


def ours() -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"skd-{os.getpid()}-*")]


@contextmanager
def network(rates_mbps: list[float]) -> Iterator[LabNetwork]:
    """A network, or a skipped test where this machine has none to give."""
    made = lab_network.lab_network(rates_mbps)
    try:
        lab = made.__enter__()
    except NetworkError as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        yield lab
    finally:
        made.__exit__(None, None, None)


def measure_mbps(lab: LabNetwork, device: int, count_bytes: int) -> float:
    python = (sys.executable, "-S", "-c")
    with subprocess.Popen([*lab.edge, *python, RECEIVE], stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        send = [*lab.devices[device], *python, SEND, lab.host, str(count_bytes)]
        subprocess.run(send, check=True, timeout=60)
        return float(receiver.stdout.read())


def test_each_link_has_its_rate_and_nothing_is_left() -> None:
    with network([8.0, 40.0]) as lab:
        assert len(ours()) == 3
        slow, fast = measure_mbps(lab, 0, 1_500_000), measure_mbps(lab, 1, 6_000_000)
        # What the peer counts has no headers of TCP and Ethernet; the first burst comes on top.
        assert 5.0 < slow < 8.5
        assert 25.0 < fast < 42.5
    assert ours() == []


def test_a_link_in_use_gets_another_rate() -> None:
    with network([40.0, 40.0]) as lab:
        lab.set_rate(0, 8.0)
        slow, as_before = measure_mbps(lab, 0, 1_500_000), measure_mbps(lab, 1, 6_000_000)
        assert 5.0 < slow < 8.5
        assert 25.0 < as_before < 42.5
        lab.set_rate(0, 40.0)
        assert measure_mbps(lab, 0, 6_000_000) > 25.0
    with pytest.raises(NetworkError, match="failed"):
        lab.set_rate(0, 8.0)


def test_an_exception_inside_leaves_nothing() -> None:
    with pytest.raises(KeyError):
        with network([8.0]):
            assert len(ours()) == 2
            raise KeyError("inside")
    assert ours() == []


def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel has no token bucket."""
    with network([8.0]):
        pass  # the machine can do it
    good = lab_commands
    monkeypatch.setattr(
        lab_network,
        "lab_commands",
        lambda edge, devices, rates: [
            [word.replace("tbf", "no-such-discipline") for word in command] for command in good(edge, devices, rates)
        ],
    )
    with pytest.raises(NetworkError, match=r"`tc -n skd-.*` failed: .*no-such-disc"):
        with lab_network.lab_network([8.0]):
            pytest.fail("it came up")
    assert ours() == []


def test_whoever_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NetworkError, match="need root"):
        with lab_network.lab_network([8.0]):
            pytest.fail("it came up")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NetworkError, match="ip and tc of iproute2 not found"):
        with lab_network.lab_network([8.0]):
            pytest.fail("it came up")


def test_the_commands_name_only_our_namespaces() -> None:
    commands = [" ".join(command) for command in lab_commands("E", ["D0", "D1"], [20.0, 0.5])]
    assert all({"E", "D0", "D1"} & set(command.split()) for command in commands)
    assert "ip -n E address add 10.77.0.1 peer 10.77.1.1 dev device-0" in commands
    assert "ip -n E address add 10.77.0.1 peer 10.77.1.2 dev device-1" in commands
    for namespace, link in (("E", "device-1"), ("D1", "edge")):
        assert f"tc -n {namespace} qdisc add dev {link} root tbf rate 500000bit burst 32768b latency 50ms" in commands


def test_every_device_has_an_address_of_its_own() -> None:
    commands = lab_commands("E", [f"D{index}" for index in range(600)], [1.0] * 600)
    own = [command[5] for command in commands if command[2].startswith("D") and command[3] == "address"]
    assert len(set(own)) == len(own) == 600
