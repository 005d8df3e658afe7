"""The folder that a run leaves behind: `runs/<id>/`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store.tensor_file import write_atomically

__all__ = ["RunFolder"]


class RunFolder:
    """Where a run's metrics, config, commits and student lie.

    ::

        runs/<id>/config.json      what reproduces the run: settings and versions
                  metrics.jsonl    one line a turn, a round and an evaluation
                  summary.txt      the table that the run ended with
                  figure.png       loss, perplexity, cuts and bytes, with the `report` extra
                  tensorboard/     the same as events, with the `report` extra
                  commits/         the commit log
                  student/         the distilled student as a Hugging Face folder

    Parameters
    ----------
    path
        Created when missing.
    """

    CONFIG, METRICS, FIGURE = "config.json", "metrics.jsonl", "figure.png"

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
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite, allow_nan=False) + "\n")
        except OSError as error:
            raise StoreError(f"{self.metrics} cannot be written: {error}. Free some disk space.") from error

    def write_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Add these keys to ``config.json``, instead of what was there under the same ones; return all of them.

        Raises
        ------
        StoreError
            If the disk is full or the file cannot be written.
        """
        path = self.path / self.CONFIG
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        merged = {**before, **config}
        write_atomically(path, json.dumps(merged, indent=2, default=str) + "\n")
        return merged

    def write_summary(self, text: str) -> None:
        """Write ``summary.txt``."""
        write_atomically(self.path / "summary.txt", text)
