"""The folder that a run leaves behind: `runs/<id>/`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.store.lock import FolderLock
from flwr_splitkd.store.tensor_file import write_atomically

__all__ = ["RunFolder"]

_LOCK_PATIENCE_S = 3.0
"""Seconds for a process that was killed to be gone."""


class RunFolder:
    """Where a run's metrics, config, commits and student lie.

    ::

        runs/<id>/config.json      what reproduces the run: settings and versions
                  metrics.jsonl    one line a turn (in the chain an epoch, and a device), a round and an evaluation
                  summary.txt      the table that the run ended with
                  trace.json       every stage of every step, if the run was traced; opens in ui.perfetto.dev
                  figure.png       loss, cuts or split points, bytes and more, with the `report` extra
                  tensorboard/     the same as events, with the `report` extra
                  commits/         the commit log
                  student/         the distilled student as a Hugging Face folder

    Parameters
    ----------
    path
        Created when missing.
    """

    CONFIG, METRICS, FIGURE, TRACE = "config.json", "metrics.jsonl", "figure.png", "trace.json"

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"`run_folder` is {self.path}; it cannot be created: {error}.") from error

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier run.

        Raises
        ------
        ConfigError
            If there is none.
        """
        if not Path(path).is_dir():
            raise ConfigError(
                f"`resume` is {str(path)!r}; expected the folder of an earlier run, such as 'runs/<id>'. Check the path: a "
                f"relative one is below {Path.cwd()}."
            )
        return cls(Path(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for the ``with`` block, or until this process ends in whatever way.

        Raises
        ------
        StoreError
            If another process, or another run in this one, has it.
        """
        lock = FolderLock(self.path, _LOCK_PATIENCE_S)
        try:
            self._drop_half_line()
            yield
        finally:
            lock.release()

    def _drop_half_line(self) -> None:
        """Cut off what a process that was killed has not written to its end."""
        if not self.metrics.exists():
            return
        content = self.metrics.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.metrics.open("r+b") as file:
                file.truncate(whole)

    @property
    def commits(self) -> Path:
        """Folder of the commit log."""
        return self.path / "commits"

    @property
    def student(self) -> Path:
        """Folder of the distilled student."""
        return self.path / "student"

    @property
    def metrics(self) -> Path:
        """File of one JSON object a line."""
        return self.path / self.METRICS

    @property
    def figure(self) -> Path:
        """The run as one picture."""
        return self.path / self.FIGURE

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``; numbers that JSON has no word for, such as infinity, become null.

        Raises
        ------
        StoreError
            If the disk is full or the file cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        except OSError as error:
            raise StoreError(f"{self.metrics} cannot be written: {error}. Free some disk space.") from error

    def append_trace(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add events to ``trace.json``, which is an array that is never closed.

        Raises
        ------
        StoreError
            If the disk is full or the file cannot be written.
        """
        path = self.path / self.TRACE
        try:
            with path.open("a", encoding="utf-8") as file:
                if file.tell() == 0:
                    file.write("[\n")
                file.writelines(json.dumps(event, allow_nan=False) + ",\n" for event in events)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}. Free some disk space.") from error

    def read_config(self) -> dict[str, Any]:
        """What ``config.json`` holds; nothing if there is none, or it cannot be read."""
        try:
            content = json.loads((self.path / self.CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Add these keys to ``config.json``, instead of what was there under the same ones; return all of them.

        Raises
        ------
        StoreError
            If the disk is full or the file cannot be written.
        """
        merged = {**self.read_config(), **config}
        write_atomically(self.path / self.CONFIG, json.dumps(merged, indent=2, default=str) + "\n")
        return merged

    def write_summary(self, text: str) -> None:
        """Write ``summary.txt``."""
        write_atomically(self.path / "summary.txt", text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
