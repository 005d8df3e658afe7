"""The cloud's service as a process beside the edge, for a run without a cloud of its own.

It is the same service that `flwr-splitkd cloud` starts, on a loopback port, with a secret that nobody else has. It ends with
the process that started it, in whatever way that ends.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import nn

from flwr_splitkd.errors import ConfigError, SplitKDError
from flwr_splitkd.tiers.cloud.service import CloudService
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.setup import CloudSetup, open_cloud

__all__ = ["EmbeddedCloud", "main"]

_log = logging.getLogger(__name__)

_PROGRAM = "from flwr_splitkd.tiers.cloud.embedded import main; main()"
_EDGE = "edge"
_END_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedCloud:
    """The cloud's service next to the edge.

    Parameters
    ----------
    llm
        Builds the large language model; a function of a module or a `PretrainedModel`, since it is called in a process of its
        own.
    tasks
        Settings of each task's module, by its name.
    commit_every_steps
        Steps after which they are made durable.
    compute_device
        A torch device; where the model was built, when not given.
    num_threads
        Threads that torch computes with there; one when not given, since the edge and simulated devices need the others.
    """

    llm: Callable[[], nn.Module]
    tasks: Mapping[str, TaskSettings]
    commit_every_steps: int = 10
    compute_device: str | None = None
    num_threads: int = 1

    @contextmanager
    def running(self, state_folder: Path) -> Iterator[tuple[str, str, bytes]]:
        """Run the process for the ``with`` block; its address, this edge's name and its secret.

        Parameters
        ----------
        state_folder
            Where the modules' states go.

        Raises
        ------
        ConfigError
            If the model's builder cannot be sent to a process.
        SplitKDError
            If the process fails before it listens.
        """
        token = secrets.token_bytes(32)
        parcel = self._packed(token, state_folder)
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        try:
            yield _address(ours, parcel, process), _EDGE, token
        finally:
            ours.close()  # the process ends when its pipe does
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _packed(self, token: bytes, state_folder: Path) -> bytes:
        setup = CloudSetup(
            llm=self.llm,
            tasks=self.tasks,
            edges={_EDGE: token},
            state_folder=state_folder,
            commit_every_steps=self.commit_every_steps,
            compute_device=self.compute_device,
        )
        try:
            return pickle.dumps((setup, self.num_threads))
        except Exception as error:  # whatever the user's objects raise
            raise ConfigError(
                f"The cloud next to the edge is a process of its own, and what it was given cannot be sent there: {error}. "
                "Expected an `llm` that is a function of a module, a functools.partial of one or a PretrainedModel. Or start "
                "`flwr-splitkd cloud` and give its address."
            ) from error


def _address(pipe: Connection, parcel: bytes, process: subprocess.Popen[bytes]) -> str:
    try:
        pipe.send(sys.path)
        pipe.send_bytes(parcel)
        answer: Any = pipe.recv()
    except (EOFError, OSError):
        raise SplitKDError(
            f"The cloud's process ended with exit code {process.wait()} before it listened; see its words above. Signal 9 is "
            "often the system's for want of memory."
        ) from None
    if isinstance(answer, str):
        return answer
    raise SplitKDError(f"The cloud next to the edge did not start: {answer[0]}")


def main() -> None:
    """Serve until the pipe of whoever started this process ends."""
    # Ctrl-C reaches the whole group; the edge decides when its cloud ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    sys.path[:] = pipe.recv()
    parcel = pipe.recv_bytes()
    ended, listening = threading.Event(), threading.Event()
    threading.Thread(target=_wait_for_end, args=(pipe, ended, listening), daemon=True).start()
    service: CloudService | None = None
    try:
        setup, num_threads = pickle.loads(parcel)
        import torch

        torch.set_num_threads(num_threads)
        service = open_cloud(setup)
        listening.set()
        pipe.send(service.address)
    except Exception as error:  # the edge raises it where the user can see it
        pipe.send((str(error) if isinstance(error, SplitKDError) else f"{type(error).__name__}: {error}",))
        return
    ended.wait()
    service.close()
    os._exit(0)  # gRPC's threads have nothing left to do


def _wait_for_end(pipe: Connection, ended: threading.Event, listening: threading.Event) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        if not listening.is_set():  # a model may take minutes to load, and nobody waits for it any more
            os._exit(1)
        ended.set()
