"""A task's state on the cloud's disk: after every so many steps, and at the end of every round."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store import CommitLog, Manifest
from flwr_splitkd.store.tensor_file import digest

__all__ = ["TaskStore"]

_log = logging.getLogger(__name__)

_UNIT = "module"


class TaskStore:
    """Commit logs: ``steps`` for a process that dies, and ``rounds/<edge>`` for a run of that edge that goes back.

    A run that is resumed starts from the end of a round, which more than two commits of steps may lie behind.

    Parameters
    ----------
    folder
        Of one task; created when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps = CommitLog(folder / "steps")
        self._rounds: dict[str, CommitLog] = {}
        for name, reason in self._steps.damaged.items():
            _log.warning("%s: %s is passed over: %s", folder, name, reason)

    def latest(self) -> tuple[dict[str, Tensor], Mapping[str, Any]] | None:
        """The newest state and what was noted with it, or None if there is none.

        Raises
        ------
        StoreError
            If its file is damaged.
        """
        return (self._steps.read(_UNIT), self._steps.latest.info) if self._steps.latest else None

    def commit(self, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> str:
        """Make a state durable; return its name.

        Raises
        ------
        StoreError
            If the disk is full or cannot be written; the state before stays in force.
        """
        return self._steps.commit({_UNIT: state}, info).commit_id

    def commit_round(self, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> str:
        """Make the state at the end of a round of ``info["edge"]`` durable, as the newest too.

        An edge that has not heard of it asks again; that must not push the round before out.

        Raises
        ------
        StoreError
            As `commit`.
        """
        log = self._log_of(info["edge"])
        if log.latest is None or (log.latest.units, log.latest.info) != ({_UNIT: digest(state)}, info):
            log.commit({_UNIT: state}, info)
        return self.commit(state, info)

    def at_round(self, edge: str, run: str, server_round: int) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        """The state at the end of a round of an edge's run.

        Raises
        ------
        StoreError
            If it is not, or no more, on the disk.
        """
        log = self._log_of(edge)
        kept = log.kept()
        for manifest in kept:
            if (manifest.info.get("run"), manifest.info.get("server_round")) == (run, server_round):
                return log.read(_UNIT, manifest), manifest.info
        raise StoreError(
            f"The cloud has no state of round {server_round} of run {run!r}; expected one of {_told(kept)}. Start the task "
            "from its newest state, or afresh."
        )

    def go_back(self, edge: str, run: str, server_round: int) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        """As `at_round`, for a run that goes on from there: later rounds of this edge's are dropped, since they take place again.

        Raises
        ------
        StoreError
            As `at_round`.
        """
        found = self.at_round(edge, run, server_round)
        log = self._log_of(edge)
        log.go_back(next(one for one in log.kept() if one.info == found[1]))
        return found

    def _log_of(self, edge: str) -> CommitLog:
        if edge not in self._rounds:
            self._rounds[edge] = CommitLog(self._folder / "rounds" / edge)
        return self._rounds[edge]


def _told(kept: list[Manifest]) -> str:
    rounds = [f"round {manifest.info.get('server_round')} of run {manifest.info.get('run')!r}" for manifest in kept]
    return ", ".join(rounds) or "none, since no round was completed"
