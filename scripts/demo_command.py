"""What the command lines of the demos share: settings, signals, and where the results are."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from types import FrameType

from flower_run import ENDING_SIGNALS, Value

__all__ = ["Interrupted", "add_common_options", "newest_summary", "print_line", "raise_on_signals"]


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


def newest_summary(runs: Path, since_s: float) -> Path | None:
    """Return the newest ``<id>/summary.txt`` that was written after a moment, in seconds of the wall clock."""
    found = [path for path in runs.glob("*/summary.txt") if path.stat().st_mtime >= since_s]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def print_line(line: str) -> None:
    """Print a line at once, so that a log appears as it is written."""
    print(line, flush=True)
