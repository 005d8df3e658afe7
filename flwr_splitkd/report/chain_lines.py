"""Devices and epochs of the chain as lines of ``metrics.jsonl`` have them, whichever release wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import StoreError
from flwr_splitkd.report.lines import finite_numbers

__all__ = ["DeviceLine", "EpochLine", "read_chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLine:
    """One device's part in one round.

    Attributes
    ----------
    error
        Why it was left out; empty otherwise.
    left
        Why it left on purpose before the round was over; empty otherwise.

    The others are as in `DeviceRecord` and `DeviceOutcome`; None where the line has none.
    """

    server_round: int
    device: str
    mode: str = "train"
    error: str = ""
    left: str = ""
    split_point: int | None = None
    num_steps: int | None = None
    num_examples: int | None = None
    num_tokens: int | None = None
    num_missed: int | None = None
    num_resumed: int | None = None
    loss: float | None = None
    reference_loss: float | None = None
    duration_s: float | None = None
    device_s: float | None = None
    edge_s: float | None = None
    cloud_s: float | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    uplink_handover_bytes: int | None = None
    downlink_handover_bytes: int | None = None

    @property
    def completed(self) -> bool:
        """Whether it took part."""
        return not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochLine:
    """One epoch of all devices together, as in `EpochRecord`; None where the line has no number."""

    server_round: int
    epoch: int
    num_iterations: int
    loss: float | None = None
    reference_loss: float | None = None
    seconds: float | None = None
    num_missed: int | None = None
    module_step: int | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None

    @property
    def iteration_s(self) -> float | None:
        """Seconds that an iteration took in the mean."""
        return self.seconds / self.num_iterations if self.seconds is not None and self.num_iterations else None


_NUMBERS = {
    line: {f.name for f in fields(line) if "int" in str(f.type) or "float" in str(f.type)}
    for line in (DeviceLine, EpochLine)
}


def read_chain(
    path: Path, records: Iterable[Mapping[str, Any]], notes: list[str]
) -> tuple[list[DeviceLine], list[EpochLine]]:
    """The devices and epochs of a run, in the order in which they were recorded.

    A run that is resumed begins the round anew in which it had ended: of what is recorded twice the later line counts.

    Parameters
    ----------
    path
        Named in errors.
    records
        Every line of the run.
    notes
        Gets a note if lines were left out.

    Raises
    ------
    StoreError
        If a line lacks what every such line has.
    """
    devices: dict[tuple[int, str, str], DeviceLine] = {}
    epochs: list[EpochLine] = []
    again = 0
    for record in records:
        if record.get("kind") == "device":
            one = _device(path, record)
            key = (one.server_round, one.mode, one.device)
            again += devices.pop(key, None) is not None
            devices[key] = one
        elif record.get("kind") == "epoch":
            epoch = _epoch(path, record)
            while epochs and (epochs[-1].server_round, epochs[-1].epoch) >= (epoch.server_round, epoch.epoch):
                epochs.pop()
                again += 1
            epochs.append(epoch)
    if again:
        notes.append(
            f"The run was resumed and began a round anew: lines left out because later ones replace them: {again}."
        )
    return list(devices.values()), epochs


def _device(path: Path, record: Mapping[str, Any]) -> DeviceLine:
    values = _values(path, record, DeviceLine, ("server_round",))
    texts = {name: record[name] for name in ("mode", "error", "left") if isinstance(record.get(name), str)}
    if "split_point" not in values and not texts.get("error"):
        texts["error"] = "the run ended in this round"
    return DeviceLine(device=str(record.get("device") or record.get("node_id", "")), **texts, **values)


def _epoch(path: Path, record: Mapping[str, Any]) -> EpochLine:
    return EpochLine(**_values(path, record, EpochLine, ("server_round", "epoch", "num_iterations")))


def _values(
    path: Path, record: Mapping[str, Any], line: type[DeviceLine | EpochLine], needed: tuple[str, ...]
) -> dict[str, Any]:
    values = finite_numbers(record, _NUMBERS[line])
    missing = [name for name in needed if name not in values]
    if missing:
        raise StoreError(
            f"A line of kind {record['kind']!r} in {path} lacks {missing[0]!r}: {dict(record)}. Expected what a run writes."
        )
    return values
