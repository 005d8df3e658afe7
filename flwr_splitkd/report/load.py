"""A run folder as data, whoever wrote it and wherever it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import StoreError
from flwr_splitkd.report.chain_lines import DeviceLine, EpochLine, read_chain
from flwr_splitkd.report.lines import ModelledLine, PlanLine, TurnLine, finite_numbers
from flwr_splitkd.store import RunFolder

__all__ = ["RunData", "load_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A run as its folder tells it.

    Attributes
    ----------
    path
        The run's folder.
    config
        ``config.json``, empty if there is none.
    turns
        In the order in which they were served.
    devices, epochs
        Of a run of the chain, in the order in which they were recorded.
    evaluations
        Metrics of the user's `evaluate_fn`, and in the chain of the devices, by round; round 0 is before training.
    rounds
        All metrics of a round by round.
    notes
        What a reader should know, such as a last line that was cut short.
    """

    path: Path
    config: Mapping[str, Any]
    turns: list[TurnLine]
    evaluations: dict[int, dict[str, float]]
    rounds: dict[int, dict[str, float]]
    notes: list[str] = field(default_factory=list)
    devices: list[DeviceLine] = field(default_factory=list)
    epochs: list[EpochLine] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name, which is the run's."""
        return self.path.name

    @property
    def training(self) -> list[TurnLine]:
        """Completed turns that trained."""
        return [turn for turn in self.turns if turn.mode == "train" and turn.completed]


def load_run(path: str | Path) -> RunData:
    """Read a run folder.

    Raises
    ------
    StoreError
        If it is not one, or a line in the middle of its metrics is damaged.
    """
    path = Path(path).absolute()
    metrics = path / RunFolder.METRICS
    notes: list[str] = []
    try:
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        config = _config(path / RunFolder.CONFIG, notes)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read as a run: {error}. Expected a folder with {RunFolder.METRICS}, such as runs/<id>."
        ) from error
    records = _records(metrics, lines, notes)
    turns: list[TurnLine] = []
    for record in records:
        if record.get("kind") == "turn":
            turns.append(_turn(metrics, record, turns))
    devices, epochs = read_chain(metrics, records, notes)
    if not records:
        notes.append("The run has not recorded anything yet.")
    return RunData(
        path=path,
        config=config,
        turns=turns,
        evaluations=_by_round(records, "evaluation"),
        rounds=_by_round(records, "round"),
        notes=notes,
        devices=devices,
        epochs=epochs,
    )


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"There is no {path.name}: the run's settings are not known.")
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        notes.append(f"{path.name} is damaged ({error}): the run's settings are not known.")
        return {}
    return config if isinstance(config, dict) else {}


def _records(path: Path, lines: list[str], notes: list[str]) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # a process that was killed, or one that is still writing
                notes.append(
                    "The last line of the metrics was cut short and is left out: the run was killed or goes on."
                )
                break
            raise StoreError(
                f"Line {number} of {path} is damaged: {error}. Expected one JSON object a line."
            ) from error
        if isinstance(record, dict):
            records.append(record)
    return records


_INTEGERS = {f.name for f in fields(TurnLine) if f.type in ("int", "int | None")} - {"index", "step"}
_NUMBERS = {f.name for f in fields(TurnLine) if f.type == "float | None"}


def _turn(path: Path, record: Mapping[str, Any], before: list[TurnLine]) -> TurnLine:
    values = finite_numbers(record, _INTEGERS | _NUMBERS)
    missing = sorted({"server_round", "turn"} - set(values))
    if missing:
        raise StoreError(f"A turn in {path} lacks {missing[0]!r}: {dict(record)}. Expected what a run writes.")
    mode, error = str(record.get("mode", "train")), str(record.get("error", ""))
    trained = int(values.get("num_steps", 0)) if mode == "train" else 0
    return TurnLine(
        index=len(before) + 1,
        step=(before[-1].step if before else 0) + trained,
        device=str(record.get("device") or record.get("node_id", "")),
        mode=mode,
        error=error,
        plan=PlanLine.read(record),
        modelled=ModelledLine.read(record),
        **values,
    )


def _by_round(records: list[dict[str, Any]], kind: str) -> dict[int, dict[str, float]]:
    return {
        record["server_round"]: {
            name: float(value)
            for name, value in record.items()
            if name not in ("kind", "server_round") and isinstance(value, int | float)
        }
        for record in records
        if record.get("kind") == kind and isinstance(record.get("server_round"), int)
    }
