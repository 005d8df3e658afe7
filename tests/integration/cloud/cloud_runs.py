"""What tests of the cloud have in common: data of devices, a run of an edge, the same without a network, and forked clouds."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from zygote import fork, lives

from flwr_splitkd.models import SerialAdapterConfig
from flwr_splitkd.tiers.cloud import CloudLLM, TaskSettings
from flwr_splitkd.tiers.cloud.store import TaskStore
from flwr_splitkd.tiers.edge.chain import CloudAccess, CloudLink
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.tiers.threads import compute_threads
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from tiny_llms import VOCAB, tiny_llm

__all__ = ["Cloud", "access", "batch", "expected", "forked", "is_same", "settings", "stored", "train"]

SLM, DEVICES = 24, 3
SERIAL, LORA = "serial", "lora"
WAIT_S = 60.0
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
_DEVICE_BITS = 32

Said = tuple[float, Tensor]


def settings(task: str) -> TaskSettings:
    """Of a task: serial adapters, or LoRA with dropout for one whose name says so."""
    peft: Any = SerialAdapterConfig(bottleneck=4)
    if LORA in task:
        peft = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.2)
    return TaskSettings(slm_width=SLM, peft=peft, optimizer=OptimizerSettings(learning_rate=1e-2), max_grad_norm=1.0)


def batch(edge: str, device: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """A device's intermediate data, mask and labels."""
    generator = torch.Generator().manual_seed(sum(edge.encode()) * 10_000 + 100 * device + step)
    labels = torch.randint(3, VOCAB, (2, 4), generator=generator)
    labels[1, 2:] = -100
    return torch.randn(2, 5, SLM, generator=generator), MASK, labels


def train(link: CloudLink, edge: str, steps: Iterable[int]) -> list[list[Said]]:
    """Iterations of an edge's devices, which ask at the same time; loss and gradient of each device and step."""
    said: list[list[Said]] = []
    with ThreadPoolExecutor(DEVICES) as pool:
        for step in steps:
            waiting = [pool.submit(link.differentiate, d, step, *batch(edge, d, step)) for d in range(DEVICES)]
            answers = [future.result(WAIT_S) for future in waiting]
            stepped = pool.submit(link.step, [(device, step) for device in range(DEVICES)]).result(WAIT_S)
            assert stepped.step == step and stepped.grad_norm > 0
            said.append([(answer.loss, answer.gradient) for answer in answers])  # type: ignore[misc]
    return said


def expected(
    task: str,
    edge: str,
    steps: Iterable[int],
    *,
    position: int = 0,
    given: TaskSettings | None = None,
    llm: Callable[[], nn.Module] = tiny_llm,
) -> tuple[dict[str, Tensor], list[list[Said]]]:
    """The same without network, process or disk: the module's state, and what each device is told."""
    with compute_threads(1):  # as in the cloud's process: sums of two threads are others
        one = CloudLLM(llm()).add_task(task, given or settings(task))
        said = []
        for step in steps:
            keys = [(position << _DEVICE_BITS | device, step) for device in range(DEVICES)]
            answers = [
                one.differentiate(*batch(edge, device, step), key=key)
                for device, key in zip(range(DEVICES), keys, strict=True)
            ]
            said.append([(answer.loss, answer.gradient) for answer in answers])
            one.step(keys)
    return one.state(), said  # type: ignore[return-value]


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_words(one: list[list[Said]], other: list[list[Said]]) -> bool:
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def stored(folder: Path, task: str) -> dict[str, Tensor]:
    """Weights and moments as they are on the cloud's disk."""
    latest = TaskStore(folder / task).latest()
    assert latest is not None
    return latest[0]


def access(address: str, edge: str, token: bytes, task: str, **changes: Any) -> CloudAccess:
    return CloudAccess(address=address, edge=edge, token=token, task=task, **{"patience_s": 30.0, **changes})


@contextlib.contextmanager
def opened(one: CloudAccess, start: pb.TaskStart = pb.TASK_START_FRESH, **where: Any) -> Iterator[CloudLink]:
    link = CloudLink(one, encoder_width=SLM)
    try:
        link.open(start, **where)
        yield link
    finally:
        link.close()


def free_port() -> int:
    """One that a killed cloud finds free again: none that the system gives to whoever dials meanwhile."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.randrange(20_000, 32_000))) as probe,
        ):
            return int(probe.getsockname()[1])


@dataclass
class Cloud:
    """A cloud in processes that are forked one after another."""

    zygote: str
    log: Path
    job: dict[str, Any]
    pid: int = 0
    tokens: dict[str, bytes] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.job['port']}"

    @property
    def folder(self) -> Path:
        return Path(self.job["folder"])

    def start(self, die: str = "", nth: int = 0) -> None:
        told = self.output().count("listening\n")
        self.pid = fork(self.zygote, "cloud", {**self.job, "die": die, "nth": nth}, self.log)
        try:
            self.until(lambda: self.output().count("listening\n") > told or not self.lives())
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)  # so that whoever keeps it alive can start another one
            raise
        assert self.lives(), self.output()

    def lives(self) -> bool:
        return lives(self.zygote, self.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        self.until(lambda: not self.lives())

    def until(self, condition: Any, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, self.output()
            time.sleep(0.01)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def access(self, task: str = SERIAL, edge: str = "edge", **changes: Any) -> CloudAccess:
        address = changes.pop("address", self.address)
        return access(address, edge, changes.pop("token", self.tokens[edge]), task, **changes)


@contextlib.contextmanager
def forked(zygote: str, home: Path, **job: Any) -> Iterator[Cloud]:
    """A cloud that is gone at the end of the block; it is not started yet."""
    tokens = {"edge": b"\xa1" * 32, "other": b"\xb2" * 32}
    defaults = {
        "tasks": [SERIAL],
        "edges": {name: token.hex() for name, token in tokens.items()},
        "task_edges": {},
        "folder": str(home / "state"),
        "commit_every_steps": 2,
        "port": free_port(),
        "grace_period_s": 2.0,
    }
    cloud = Cloud(zygote, home / "cloud.log", {**defaults, **job}, tokens=tokens)
    try:
        yield cloud
    finally:
        if cloud.pid and cloud.lives():
            cloud.kill()
