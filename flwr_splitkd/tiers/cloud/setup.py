"""From settings and a builder to an open cloud."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from flwr_splitkd.errors import ConfigError, ProtocolError, StoreError
from flwr_splitkd.store import FolderLock
from flwr_splitkd.tiers.cloud.llm import CloudLLM
from flwr_splitkd.tiers.cloud.placement import build_llm, check_one_process, device_words
from flwr_splitkd.tiers.cloud.served import ServedTask
from flwr_splitkd.tiers.cloud.service import CloudService, check_edge
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.store import TaskStore
from flwr_splitkd.tiers.cloud.task import CloudTask
from flwr_splitkd.wire.cloud_server import CloudServer
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.metrics_address import MetricsAddress

__all__ = ["MIN_TOKEN_BYTES", "CloudSetup", "open_cloud"]

_log = logging.getLogger(__name__)

# A process that was killed, and whose place this one takes, may not be quite gone.
_LOCK_PATIENCE_S = 10.0

MIN_TOKEN_BYTES = 16
"""Of an edge's secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSetup:
    """Everything that a cloud needs to open.

    Parameters
    ----------
    llm
        Builds the large language model.
    tasks
        Settings of each task's module, by its name.
    edges
        Secret of each edge, by its name.
    task_edges
        Names of the edges that may use a task; all of them for a task that is not named.
    state_folder
        Where the modules' states go.
    commit_every_steps
        Steps after which they are made durable.
    data_address, advertised_address, tls, insecure, grace_period_s
        As in `DataPlaneServer`.
    max_message_bytes
        Most that one message of an edge may hold.
    compute_device
        A torch device; as `build_llm` chooses it, when not given.
    metrics
        Where `flwr-splitkd cloud` shall serve metrics, if anywhere; `open_cloud` serves none.

    Raises
    ------
    ConfigError
        If there is no task or edge, or a secret is too short.
    """

    llm: Callable[[], nn.Module]
    tasks: Mapping[str, TaskSettings]
    edges: Mapping[str, bytes] = field(repr=False)
    state_folder: Path
    task_edges: Mapping[str, frozenset[str]] = field(default_factory=dict)
    commit_every_steps: int = 10
    data_address: str = "127.0.0.1:0"
    advertised_address: str | None = None
    tls: TlsFiles | None = None
    insecure: bool = False
    grace_period_s: float = 15.0
    max_message_bytes: int = 1 << 30
    compute_device: str | None = None
    metrics: MetricsAddress | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        for name, items in (("tasks", self.tasks), ("edges", self.edges)):
            if not items:
                raise ConfigError(f"The cloud has no {name}; expected at least one.")
            odd = [item for item in items if not item or not item.replace("-", "").replace("_", "").isalnum()]
            if odd:
                raise ConfigError(f"The cloud has {odd[0]!r} among its {name}; expected letters, digits, '-' and '_'.")
        for edge, token in self.edges.items():
            if len(token) < MIN_TOKEN_BYTES:
                raise ConfigError(
                    f"The token of edge {edge!r} has {len(token)} bytes; expected at least {MIN_TOKEN_BYTES}. Make one with: "
                    "python -c 'import secrets; print(secrets.token_hex(32))'"
                )
        for task, edges in self.task_edges.items():
            unknown = sorted(edges - set(self.edges))
            if unknown or task not in self.tasks:
                raise ConfigError(
                    f"Task {task!r} is for the edges {sorted(edges)}; expected a known task and edges of {sorted(self.edges)}."
                )


def open_cloud(setup: CloudSetup, *, say: Callable[[str], None] = _log.info) -> CloudService:
    """Bind the port, build the model with its tasks, go on from what is on the disk, and begin to listen.

    Parameters
    ----------
    say
        Told on which device the model is.

    Raises
    ------
    ConfigError
        If the address or the model cannot be used, or this is one of several processes of torchrun.
    StoreError
        If a task's state on the disk is another one's, cannot be read, or is in use by another process.
    """
    check_one_process(setup.llm)
    tasks: dict[str, ServedTask] = {}
    # The cheap checks come first: a model may take minutes.
    server = CloudServer(
        edges=setup.edges,
        check=partial(check_edge, tasks),
        data_address=setup.data_address,
        advertised_address=setup.advertised_address,
        tls=setup.tls,
        insecure=setup.insecure,
        grace_period_s=setup.grace_period_s,
        limits=Limits(max_message_bytes=setup.max_message_bytes),
        software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
    )
    lock: FolderLock | None = None
    try:
        lock = _lock(setup.state_folder)
        llm = CloudLLM(build_llm(setup.llm, setup.compute_device))
        say(f"The language model is on {device_words(llm.llm)}")
        for name, settings in setup.tasks.items():
            tasks[name] = _served(setup, name, llm.add_task(name, settings))
            _log.info("Task %s begins at step %d", name, tasks[name].task.next_step)
        return CloudService(server, llm, tasks, setup.edges, lock)
    except BaseException:
        server.stop()
        if lock is not None:
            lock.release()
        raise


def _lock(folder: Path) -> FolderLock:
    """Two clouds on one state would each make durable what the other one does not know of."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FolderLock(folder, _LOCK_PATIENCE_S)
    except OSError as error:
        raise StoreError(f"`state-folder` is {folder}, which cannot be used: {error}.") from error


def _served(setup: CloudSetup, name: str, task: CloudTask) -> ServedTask:
    folder = setup.state_folder / name
    try:
        return ServedTask(
            task=task,
            store=TaskStore(folder),
            commit_every_steps=setup.commit_every_steps,
            edges=setup.task_edges.get(name, frozenset()),
        )
    except ProtocolError as error:
        raise StoreError(
            f"{folder} holds another module than task {name!r} is configured with: {error} Or give the task another name, or "
            "move the folder away."
        ) from error
