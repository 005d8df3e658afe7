"""The cloud's service as a process beside the edge, for a run without a cloud of its own.

It is the same service that `flwr-splitkd cloud` starts, on a loopback port, with a secret that nobody else has. It ends with
the process that started it, in whatever way that ends.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.tiers.child import Parent, beside, packed
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.setup import CloudSetup, open_cloud

__all__ = ["EmbeddedCloud", "serve_parent"]

_EDGE = "edge"
_log = logging.getLogger(__name__)


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
        A torch device; as `build_llm` chooses it, when not given.
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
        with beside("The cloud", self._packed(token, state_folder)) as child:
            address = child.receive()
            _log.info("Next to the edge: %s", child.receive())
            yield address, _EDGE, token

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
            return packed(serve_parent, setup, num_threads=self.num_threads)
        except Exception as error:  # whatever the user's objects raise
            raise ConfigError(
                f"The cloud next to the edge is a process of its own, and what it was given cannot be sent there: {error}. "
                "Expected an `llm` that is a function of a module, a functools.partial of one or a PretrainedModel. Or start "
                "`flwr-splitkd cloud` and give its address."
            ) from error


def serve_parent(parent: Parent, setup: CloudSetup) -> None:
    """Serve until the process that started this one is done, or gone."""
    where: list[str] = []
    service = open_cloud(setup, say=where.append)
    parent.say(service.address)
    parent.say(where[0])
    parent.wait_for_end()
    service.close()
