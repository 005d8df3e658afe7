"""A chain of real processes: the cloud's command, devices, and the edge, which is the test's own process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from chain_parts import ENCODER_LORA, RUN, chain_settings, save_llm, tiny_encoder, write_cloud_config
from torch import Tensor, nn

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.store import CommitLog
from flwr_splitkd.tiers.cloud.store import TaskStore
from flwr_splitkd.tiers.edge.chain import (
    ChainEdge,
    ChainSettings,
    ChainSetup,
    Closed,
    CloudAccess,
    CloudLink,
    DeviceOutcome,
    DevicePlan,
    Iterations,
    Meter,
)
from flwr_splitkd.tiers.units import Moments, unpack
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = [
    "Chain",
    "Cloud",
    "Device",
    "Round",
    "Site",
    "assert_same",
    "bytes_of",
    "cloud_link",
    "encoder_on_disk",
    "module_on_disk",
    "opened_chain",
    "site_at",
]

HERE = Path(__file__).parent
TOKEN = "0123456789abcdef0123456789abcdef"
START_S = 60.0


class Device:
    """A device's process. It dies with its connection, or when it is killed."""

    def __init__(self, zygote: Path, folder: Path) -> None:
        self._zygote, self.folder = zygote, folder
        self._line, self._said = self._connected()
        self.pid: int = self.answer()["pid"]

    def start_again(self) -> None:
        """Start another process with the same disk, after this one has died."""
        self.close()
        self._line, self._said = self._connected()
        self.pid = self.answer()["pid"]

    def _connected(self) -> tuple[socket.socket, TextIO]:
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(self._zygote))
        return line, line.makefile("rw")

    def order(self, job: Mapping[str, Any]) -> None:
        self._said.write(json.dumps({**job, "folder": str(self.folder)}) + "\n")
        self._said.flush()

    def answer(self) -> dict[str, Any]:
        """What it says next; nothing if it is dead."""
        line = self._said.readline()
        said: dict[str, Any] = json.loads(line) if line else {}
        return said

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._said.close()
        self._line.close()


class Cloud:
    """`flwr-splitkd cloud` as its users start it."""

    def __init__(self, folder: Path, commit_every_steps: int = 7) -> None:
        self.folder = folder
        save_llm(folder / "llm")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._config = write_cloud_config(folder, port=port, token=TOKEN, commit_every_steps=commit_every_steps)
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (self.folder / "cloud.log").open("ab") as log:
            command = [sys.executable, "-m", "flwr_splitkd", "cloud", "--config", str(self._config)]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)
        self.pid = self._process.pid

    def wait(self) -> None:
        """Wait until it listens."""
        host, _, port = self.address.rpartition(":")
        deadline_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                return socket.create_connection((host, int(port)), 1.0).close()
            assert time.monotonic() < deadline_s and self._process.poll() is None, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        return (self.folder / "cloud.log").read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@dataclass(eq=False)
class Site:
    """Processes that live as long as a test module: a cloud with all tasks, and devices."""

    cloud: Cloud
    zygote: Path
    devices: list[Device] = field(default_factory=list)

    def device(self, folder: Path) -> Device:
        device = Device(self.zygote, folder)
        self.devices.append(device)
        return device


@contextlib.contextmanager
def site_at(folder: Path, **cloud: Any) -> Iterator[Site]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parents[1])]),
        "OMP_NUM_THREADS": "1",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }
    path = folder / "z"
    command = [sys.executable, str(HERE / "chain_device.py"), str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=HERE) as zygote:
        try:
            site = Site(Cloud(folder, **cloud), path)
            try:
                assert zygote.stdout is not None and zygote.stdout.readline() == "ready\n"
                site.cloud.wait()
                yield site
            finally:
                for device in site.devices:
                    device.close()
                site.cloud.close()
        finally:
            zygote.kill()


@dataclass
class Round:
    """What came of a round: each iteration, and each device's part by its position."""

    closed: list[Closed] = field(default_factory=list)
    outcomes: dict[int, DeviceOutcome] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    said: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def losses(self) -> list[dict[int, float]]:
        return [{device: answer.loss for device, answer in one.answers.items()} for one in self.closed]


class Chain:
    """One run: an edge in this process, for devices that are processes. `built_on` names threads that built an encoder."""

    def __init__(
        self, edge: ChainEdge, settings: ChainSettings, encoder: str, built_on: list[str], *, adapters: bool
    ) -> None:
        self.edge, self.settings, self.encoder, self.built_on = edge, settings, encoder, built_on
        self.adapters = adapters
        self.server_round = 0
        self.meters: dict[int, Meter] = {}

    def round(
        self,
        devices: Mapping[int, Device],
        points: Mapping[int, int],
        *,
        training: bool = True,
        addresses: Mapping[int, str] | None = None,
        jobs: Mapping[int, Mapping[str, Any]] | None = None,
        after: Callable[[int], None] | None = None,
    ) -> Round:
        """Serve a round as the strategy does; devices and split points by position.

        Parameters
        ----------
        addresses
            What a device dials in place of the edge.
        jobs
            What a device is told besides.
        after
            Told the number of each iteration that was closed, from 0.
        """
        self.server_round += training
        done = Round()
        iterations = self.edge.iterations(devices) if training else None
        threads = []
        for position, device in devices.items():
            session = self.edge.expect(run_id=RUN, node_id=position + 10, server_round=self.server_round)
            ticket = session.ticket
            device.order(
                {
                    "encoder": self.encoder,
                    "adapters": self.adapters,
                    "training": training,
                    "position": position,
                    "address": (addresses or {}).get(position, self.edge.server.address),
                    "session_id": ticket.session_id,
                    "token": ticket.token.hex(),
                    "run_id": ticket.run_id,
                    "node_id": ticket.node_id,
                    "server_round": ticket.server_round,
                    **(jobs or {}).get(position, {}),
                }
            )
            plan = DevicePlan(
                position=position,
                server_round=self.server_round,
                split_point=points[position],
                training=training,
            )
            self.meters[position] = Meter()
            thread = threading.Thread(
                target=self._take_part, args=(session, plan, iterations, device, done), daemon=True
            )
            thread.start()
            threads.append(thread)
        if iterations is not None:
            self._iterate(iterations, done, after)
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a device's thread hangs"
        if training:
            self.edge.cloud.end_round("run", self.server_round)
        return done

    def _iterate(self, iterations: Iterations, done: Round, after: Callable[[int], None] | None) -> None:
        try:
            for number in range(self.settings.num_epochs * self.settings.num_iterations):
                closed = iterations.close_next()
                if closed is None:
                    break
                done.closed.append(closed)
                if after is not None:
                    after(number)
            iterations.end()
        except BaseException as error:
            iterations.end(error)
            raise

    def _take_part(
        self, session: Any, plan: DevicePlan, iterations: Iterations | None, device: Device, done: Round
    ) -> None:
        try:
            with self.edge.server.changed:
                if not self.edge.server.changed.wait_for(lambda: session.connected, START_S):
                    raise SplitKDError(f"device {plan.position} did not come")
            done.outcomes[plan.position] = self.edge.serve(session, plan, iterations, self.meters[plan.position])
        except SplitKDError as error:
            done.errors[plan.position] = f"{type(error).__name__}: {error}"
        finally:
            if iterations is not None:
                iterations.leave(plan.position)
            done.said[plan.position] = device.answer()


@contextlib.contextmanager
def opened_chain(
    cloud: Cloud,
    task: str,
    encoder: str,
    *,
    address: str | None = None,
    grace_period_s: float = 2.0,
    adapters: bool = False,
    start: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Iterator[Chain]:
    """An edge whose task starts afresh; `adapters` train in the encoders in place of all their weights.

    `start` says where the task begins, if not afresh.
    """
    settings = chain_settings(**changes)
    built_on: list[str] = []

    def build() -> nn.Module:
        built_on.append(threading.current_thread().name)
        return tiny_encoder(encoder)

    setup = ChainSetup(
        slm=build,
        settings=settings,
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
        grace_period_s=grace_period_s,
        slm_peft=ENCODER_LORA if adapters else None,
    )

    def open_cloud(width: int) -> CloudLink:
        return cloud_link(address or cloud.address, task, width, **start or {})

    edge = setup.open(open_cloud, ticket_lifetime_s=600)
    try:
        yield Chain(edge, settings, encoder, built_on, adapters=adapters)
    finally:
        edge.close()


def cloud_link(
    address: str, task: str, width: int, start: pb.TaskStart = pb.TASK_START_FRESH, **where: Any
) -> CloudLink:
    """The edge's stream to a cloud, whose task starts afresh unless told otherwise."""
    access = CloudAccess(address=address, edge="here", token=TOKEN.encode(), task=task, patience_s=60.0)
    link = CloudLink(access, encoder_width=width)
    link.open(start, **where)
    return link


def encoder_on_disk(folder: Path) -> tuple[dict[str, Tensor], Moments, Mapping[str, Any]]:
    """A device's encoder with its moments, and what was noted with it."""
    log = CommitLog(folder)
    assert log.latest is not None
    weights, moments = unpack({name: t for unit in log.latest.units for name, t in log.read(unit).items()})
    return weights, moments, log.latest.info


def module_on_disk(cloud: Cloud, task: str, server_round: int) -> tuple[dict[str, Tensor], Moments, int]:
    """A task's module with its moments and steps, as of a round's end."""
    state, _ = TaskStore(cloud.folder / "state" / task).at_round("here", "run", server_round)
    weights, moments = unpack({name: tensor for name, tensor in state.items() if "/" in name})
    return weights, moments, int(state["next_step"])


def bytes_of(folder: Path, units: Sequence[str]) -> int:
    """Bytes of some units as they travel."""
    log = CommitLog(folder)
    return sum(tensor.nbytes for unit in units for tensor in log.read(unit).values())


def assert_same(what: str, ours: Mapping[str, Tensor], composite: Mapping[str, Tensor]) -> None:
    """Bit by bit."""
    assert set(ours) == set(composite), what
    different = [name for name in composite if not torch.equal(ours[name], composite[name])]
    assert not different, f"{what}: {len(different)} of {len(composite)} tensors differ, {different[:5]}"
