"""Run the demo app on virtual devices: `make demo`.

The app's log appears as it is written. Whatever happens, Ctrl-C included, no process is left behind. Exits
with 0 if the run completed, 1 if it failed, 128 + the signal's number if it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from demo_command import Interrupted, add_common_options, new_summary, print_line, raise_on_signals, summaries
from flower_run import FederationError, simulation


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the demo app on virtual devices.")
    parser.add_argument("--supernodes", type=int, default=10, help="number of virtual devices")
    parser.add_argument("--cpus", type=int, help="CPUs that Flower reckons with: so many devices work at the same time")
    add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    """Run the demo and return the exit code."""
    arguments = _arguments()
    raise_on_signals()
    began_s = time.monotonic()
    runs = arguments.runs.resolve()
    before = summaries(runs)
    overrides = {"run-dir": str(runs), **dict(arguments.set)}
    # Ray's hint to its own developers, once per process.
    filters = ["ignore:Tip:FutureWarning", os.environ.get("PYTHONWARNINGS", "")]
    environment = {
        "PYTHONWARNINGS": ",".join(filter(None, filters)),
        # All devices and the edge share this machine: whoever waits must not spin on the others' cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    try:
        with simulation(
            runs / "logs", supernodes=arguments.supernodes, cpus=arguments.cpus, environment=environment
        ) as federation:
            outcome = federation.run(arguments.app, overrides, timeout_s=arguments.timeout_s, on_line=print_line)
    except Interrupted as interrupted:
        print_line(f"interrupted by {interrupted.name}; every process has been stopped")
        return interrupted.exit_code
    except FederationError as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.monotonic() - began_s
    if not outcome.completed:
        print(f"the run ended as {outcome.status} after {seconds:.0f} s {outcome.details}")
        print(f"its logs are in {runs / 'logs'}")
        return 1
    summary = new_summary(runs, before)
    print(f"completed in {seconds:.0f} s; results in {summary.parent if summary is not None else runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
