"""Links that were measured: rates over time, read from a file."""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.links import LinkState
from flwr_splitkd.errors import DataError

__all__ = ["TraceLink"]

_COLUMNS = ("time_s", "uplink_bps", "downlink_bps")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLink:
    """Rates in steps: each holds until the next, the first also before its time, the last for ever after.

    Parameters
    ----------
    times_s
        When each rate begins, at least 0 and growing.
    uplink_bps, downlink_bps
        Bits a second from then on, as many as times.
    repeat
        Whether the trace begins again after its last row, which then lasts as long as the row before it. A single row has no
        length and holds for ever.
    """

    times_s: tuple[float, ...]
    uplink_bps: tuple[float, ...]
    downlink_bps: tuple[float, ...]
    repeat: bool = False

    def __post_init__(self) -> None:
        """Check the rows.

        Raises
        ------
        DataError
            If there is none, the columns differ in length, a number is negative or not finite, or a time is not after the last.
        """
        columns = (self.times_s, self.uplink_bps, self.downlink_bps)
        lengths = [len(column) for column in columns]
        if lengths[0] == 0 or len(set(lengths)) > 1:
            raise DataError(
                f"The trace has {lengths[0]} times, {lengths[1]} uplink and {lengths[2]} downlink rates; expected the same "
                "number of each, at least 1. Fill the columns up."
            )
        previous_s = None
        for position, row in enumerate(zip(*columns, strict=True)):
            _check_row(f"row {position} of the trace", row, previous_s)
            previous_s = row[0]

    @classmethod
    def from_csv(cls, path: str | Path, *, repeat: bool = False) -> TraceLink:
        """Read a CSV file with the columns ``time_s``, ``uplink_bps`` and ``downlink_bps``; others are passed over.

        Parameters
        ----------
        path
            The file, in UTF-8.
        repeat
            See the class.

        Raises
        ------
        DataError
            If it cannot be read, or a row is not as the class asks for; with file, line and value.
        """
        file = Path(path).expanduser()
        reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
        rows: list[tuple[float, float, float]] = []
        try:
            columns = _columns(file, next(reader, []))
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                where = f"{file}, line {reader.line_num}"
                row = _row(where, cells, columns)
                _check_row(where, row, rows[-1][0] if rows else None)
                rows.append(row)
        except csv.Error as error:
            raise DataError(
                f"{file}, line {reader.line_num}: {error}; expected comma-separated values. Write the file anew."
            ) from error
        if not rows:
            raise DataError(
                f"{file}, line {reader.line_num}: there are 0 rows; expected at least 1 below the header. Add one."
            )
        times_s, uplink_bps, downlink_bps = zip(*rows, strict=True)
        return cls(times_s=times_s, uplink_bps=uplink_bps, downlink_bps=downlink_bps, repeat=repeat)

    def at(self, time_s: float) -> LinkState:
        """Return the rates at a time.

        Raises
        ------
        ConfigError
            If the time is negative or no number.
        """
        check_number("time_s", time_s, minimum=0, unit="s")
        first_s, last_s = self.times_s[0], self.times_s[-1]
        if self.repeat and len(self.times_s) > 1 and time_s > first_s:
            period_s = last_s - first_s + (last_s - self.times_s[-2])
            time_s = first_s + (time_s - first_s) % period_s
        row = max(bisect_right(self.times_s, time_s) - 1, 0)
        return LinkState(uplink_bps=self.uplink_bps[row], downlink_bps=self.downlink_bps[row])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}); expected a CSV file. Check the trace's path."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 at byte {error.start}; expected a CSV file in UTF-8. Save it in that encoding."
        ) from error


def _columns(file: Path, header: Sequence[str]) -> tuple[int, int, int]:
    """Where each column is."""
    names = [name.strip() for name in header]
    for column in _COLUMNS:
        if names.count(column) != 1:
            raise DataError(
                f"{file}, line 1: the header is {','.join(names)!r}, in which '{column}' is {names.count(column)} times; expected "
                f"{','.join(_COLUMNS)}, each once. Name the columns so."
            )
    uplink, downlink = names.index("uplink_bps"), names.index("downlink_bps")
    return names.index("time_s"), uplink, downlink


def _row(where: str, cells: Sequence[str], columns: tuple[int, int, int]) -> tuple[float, float, float]:
    numbers = []
    for name, column in zip(_COLUMNS, columns, strict=True):
        text = cells[column].strip() if column < len(cells) else ""
        try:
            numbers.append(float(text))
        except ValueError:
            raise DataError(f"{where}: '{name}' is {text!r}; expected a number. Correct or remove the line.") from None
    return numbers[0], numbers[1], numbers[2]


def _check_row(where: str, row: tuple[float, float, float], previous_s: float | None) -> None:
    for name, value in zip(_COLUMNS, row, strict=True):
        if not math.isfinite(value) or value < 0:
            raise DataError(
                f"{where}: '{name}' is {value}; expected a finite number of at least 0. Correct or remove the line."
            )
    if previous_s is not None and row[0] <= previous_s:
        raise DataError(
            f"{where}: 'time_s' is {row[0]}; expected more than {previous_s}, the time before it. Sort the rows by time, one for "
            "each."
        )
