"""What the command lines of the demos share: settings, signals, and where the results are."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from types import FrameType

from flower_run import ENDING_SIGNALS, Value

__all__ = ["Interrupted", "add_common_options", "new_summary", "print_line", "raise_on_signals", "summaries"]


class Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that was ended by this signal."""
        return 128 + self.number


def raise_on_signals() -> None:
    """Turn the first signal that asks this process to end into `Interrupted`; the clean-up ignores later ones."""
    for number in ENDING_SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in ENDING_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)


def add_common_options(parser: argparse.ArgumentParser, app: str = "split_kd") -> None:
    """Add ``--app`` (by default this one of the repository's), ``--runs``, ``--timeout-s`` and ``--set``."""
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--app", type=Path, default=root / "apps" / app, help="the app's folder")
    parser.add_argument("--runs", type=Path, default=root / "runs", help="where the run writes its results")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="stop the run after this many seconds")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="override a key of the app's [tool.flwr.app.config]; may be given several times",
    )


def _setting(text: str) -> tuple[str, Value]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return key, value
    if not isinstance(parsed, (str, int, float, bool)):
        raise argparse.ArgumentTypeError(f"{value!r} is not a string, a number, true or false")
    return key, parsed


def summaries(runs: Path) -> dict[Path, int]:
    """Return every ``<id>/summary.txt`` with the time in ns at which the file system says that it was written."""
    return {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.txt")}


def new_summary(runs: Path, before: dict[Path, int]) -> Path | None:
    """Return the newest summary that was not there, or not the same, when ``before`` was taken.

    What a file system says is compared with what it said before, not with the wall clock: its clock may be
    several milliseconds behind.
    """
    new = {path: time_ns for path, time_ns in summaries(runs).items() if before.get(path) != time_ns}
    return max(new, key=new.__getitem__, default=None)


def print_line(line: str) -> None:
    """Print a line at once, so that a log appears as it is written."""
    print(line, flush=True)
