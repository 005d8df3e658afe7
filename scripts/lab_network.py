"""A network for a deployment on one Linux machine: a namespace for the edge, and one for each device.

Each device is joined to the edge by a virtual Ethernet pair of its own, whose two ends are shaped to the device's
rate (`tc`, token bucket)::

    edge  10.77.0.1 ──┬── device-0 ─── 20 Mbit/s ─── edge   10.77.1.1  device 0
                      └── device-1 ─── 50 Mbit/s ─── edge   10.77.1.2  device 1

Nothing of it is in the machine's own network, so that its addresses cannot collide and its end is the end of the
namespaces. Needs root, and `ip` and `tc` of iproute2.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flower_run import shielded

__all__ = ["LabNetwork", "NetworkError", "lab_commands", "lab_network"]

_EDGE_ADDRESS = "10.77.0.1"
_COMMAND_TIMEOUT_S = 20.0
_NAMESPACES = Path("/run/netns")
_QUEUE_S = 0.05
_BURST_S = 0.01
_MIN_BURST_BYTES = 32 * 1024


class NetworkError(RuntimeError):
    """The network cannot be made on this machine, or could not be taken down."""


@dataclass(frozen=True, kw_only=True)
class LabNetwork:
    """How to reach into the network.

    Attributes
    ----------
    host
        The edge's address, the same for every device.
    edge
        What a command starts with that is to run in the edge's namespace.
    devices
        The same for each device.
    """

    host: str
    edge: tuple[str, ...]
    devices: tuple[tuple[str, ...], ...]

    def set_rate(self, device: int, rate_mbps: float) -> None:
        """Give a device's link another rate, in Mbit/s for each direction, while it is in use.

        Raises
        ------
        NetworkError
            If the network is gone.
        """
        for inside, link in ((self.edge, f"device-{device}"), (self.devices[device], "edge")):
            _run([*inside, *f"tc qdisc change dev {link} root {_shape(rate_mbps)}".split()])


@contextmanager
def lab_network(rates_mbps: Sequence[float]) -> Iterator[LabNetwork]:
    """Make the network, and take it down at the end.

    Parameters
    ----------
    rates_mbps
        The rate of each device's link in Mbit/s, for each direction.

    Raises
    ------
    NetworkError
        If this machine does not let us; nothing is left then.
    """
    if os.geteuid() != 0:
        raise NetworkError("network namespaces need root")
    if missing := [program for program in ("ip", "tc") if shutil.which(program) is None]:
        raise NetworkError(f"{' and '.join(missing)} of iproute2 not found")
    # Random, so that a name can only be taken if it is ours.
    prefix = f"skd-{os.getpid()}-{secrets.token_hex(3)}"
    edge, devices = f"{prefix}-edge", [f"{prefix}-{index}" for index in range(len(rates_mbps))]
    try:
        for command in lab_commands(edge, devices, rates_mbps):
            _run(command)
        yield LabNetwork(host=_EDGE_ADDRESS, edge=_inside(edge), devices=tuple(_inside(device) for device in devices))
    finally:
        with shielded():
            _remove([edge, *devices])


def lab_commands(edge: str, devices: Sequence[str], rates_mbps: Sequence[float]) -> list[list[str]]:
    """Return the commands that make the network, given the namespaces' names."""
    lines = [f"ip netns add {edge}", f"ip -n {edge} link set lo up", f"ip netns exec {edge} true"]
    for index, (device, rate_mbps) in enumerate(zip(devices, rates_mbps, strict=True)):
        near, address = f"device-{index}", f"10.77.{1 + index // 250}.{1 + index % 250}"
        shape = _shape(rate_mbps)
        lines += [
            f"ip netns add {device}",
            f"ip -n {device} link set lo up",
            f"ip -n {edge} link add {near} type veth peer name edge netns {device}",
            # The edge has one address on all its links, so that one certificate and one `advertised-address` will do.
            f"ip -n {edge} address add {_EDGE_ADDRESS} peer {address} dev {near}",
            f"ip -n {device} address add {address} peer {_EDGE_ADDRESS} dev edge",
            f"ip -n {edge} link set {near} up",
            f"ip -n {device} link set edge up",
            f"tc -n {edge} qdisc add dev {near} root {shape}",
            f"tc -n {device} qdisc add dev edge root {shape}",
        ]
    return [line.split() for line in lines]


def _shape(rate_mbps: float) -> str:
    rate_bps = round(rate_mbps * 1e6)
    burst_bytes = max(_MIN_BURST_BYTES, round(rate_bps / 8 * _BURST_S))
    return f"tbf rate {rate_bps}bit burst {burst_bytes}b latency {_QUEUE_S * 1e3:g}ms"


def _inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise NetworkError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")


def _remove(namespaces: Sequence[str]) -> None:
    """Remove those that exist; their links go with them."""
    errors = []
    for name in namespaces:
        try:
            if (_NAMESPACES / name).exists():
                _run(["ip", "netns", "delete", name])
        except (NetworkError, subprocess.TimeoutExpired) as error:
            errors.append(str(error))
    if errors:
        raise NetworkError(f"could not be taken down: {'; '.join(errors)}")
