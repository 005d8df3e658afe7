"""Run the demo app on virtual devices: `make demo`.

The app's log appears as it is written. Whatever happens, Ctrl-C included, no process is left behind. Exits
with 0 if the run completed, 1 if it failed, 128 + the signal's number if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from flower_run import FederationError, Value, simulation

_ROOT = Path(__file__).resolve().parents[1]


class _Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the demo app on virtual devices.")
    parser.add_argument("--app", type=Path, default=_ROOT / "apps" / "split_kd", help="the app's folder")
    parser.add_argument("--supernodes", type=int, default=10, help="number of virtual devices")
    parser.add_argument("--runs", type=Path, default=_ROOT / "runs", help="where the run writes its results")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="stop the run after this many seconds")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="override a key of the app's [tool.flwr.app.config]; may be given several times",
    )
    return parser.parse_args()


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted(number)


def _newest_summary(runs: Path, since_s: float) -> Path | None:
    found = [path for path in runs.glob("*/summary.txt") if path.stat().st_mtime >= since_s]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _print_line(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Run the demo and return the exit code."""
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began_s, wall_s = time.monotonic(), time.time()
    runs = arguments.runs.resolve()
    overrides = {"run-dir": str(runs), **dict(arguments.set)}
    # Ray's hint to its own developers, once per process.
    filters = ["ignore:Tip:FutureWarning", os.environ.get("PYTHONWARNINGS", "")]
    environment = {
        "PYTHONWARNINGS": ",".join(filter(None, filters)),
        # All devices and the edge share this machine: whoever waits must not spin on the others' cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    try:
        with simulation(runs / "logs", supernodes=arguments.supernodes, environment=environment) as federation:
            outcome = federation.run(arguments.app, overrides, timeout_s=arguments.timeout_s, on_line=_print_line)
    except _Interrupted as interrupted:
        print(
            f"interrupted by {signal.Signals(interrupted.number).name}; every process has been stopped",
            flush=True,
        )
        return 128 + interrupted.number
    except FederationError as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.monotonic() - began_s
    if not outcome.completed:
        print(f"the run ended as {outcome.status} after {seconds:.0f} s {outcome.details}")
        print(f"its logs are in {runs / 'logs'}")
        return 1
    summary = _newest_summary(runs, wall_s)
    print(f"completed in {seconds:.0f} s; results in {summary.parent if summary is not None else runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
