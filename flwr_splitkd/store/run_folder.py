"""The folder that a run leaves behind: `runs/<id>/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store.tensor_file import write_atomically

__all__ = ["RunFolder"]


class RunFolder:
    """Where a run's metrics, config, commits and student lie.

    ::

        runs/<id>/config.json      what reproduces the run
                  metrics.jsonl    one line a turn, a round and an evaluation
                  summary.txt      the table that the run ended with
                  commits/         the commit log
                  student/         the distilled student as a Hugging Face folder

    Parameters
    ----------
    path
        Created when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"`run_folder` is {self.path}; it cannot be created: {error}.") from error

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
        return self.path / "metrics.jsonl"

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, sort_keys=False) + "\n")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        write_atomically(self.path / "config.json", json.dumps(config, indent=2, default=str) + "\n")

    def write_summary(self, text: str) -> None:
        """Write ``summary.txt``."""
        write_atomically(self.path / "summary.txt", text)
