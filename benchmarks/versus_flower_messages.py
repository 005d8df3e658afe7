"""Time to exchange a split step's tensors by Flower messages, against the package's data plane.

Both exchange what a step of the demo app exchanges: smashed data, teacher embeddings, labels and masks up, the
gradient at the cut down. Data plane: turns of the product's own edge and device in two processes, the exchange being
what the device waits beyond the edge's forward pass, loss and backward pass. Flower messages: one train message down
and its reply up for each step, in a SuperLink + SuperNode deployment on loopback; neither side computes anything, and
the device's app imports no torch and loads no model.
"""

from __future__ import annotations

import argparse
import statistics
from importlib.metadata import version
from pathlib import Path

from _flower_exchanges import WARMUP, FlowerExchanges, flower_exchanges
from _report import Row, report
from _step_processes import Job, SplitSteps, pinned, quartile_distance, start

# Flower's exchange over ours; see benchmarks/README.md.
BOUND = 50.0
CUT = 4


def main() -> None:
    """Measure both, print the table, write the JSON."""
    arguments = _arguments()
    job = Job(cut=CUT, max_grad_norm=None, warmup=arguments.warmup, steps=arguments.steps)
    with start(pinned()) as processes:
        about = processes.about
        ours = [processes.split(job) for _ in range(arguments.turns)]
    flower = flower_exchanges(ours[0].up, ours[0].down, arguments.exchanges)
    rows = _rows(ours, flower)
    ratio = rows[0].ratio or 0.0
    notes = [
        f"{about}, float32, cut {CUT}: {flower.up_bytes / 2**20:.2f} MiB up and {flower.down_bytes / 2**20:.2f} MiB "
        f"down a step; flwr {version('flwr')}, 1 SuperNode.",
        f"value: Flower messages, median of {len(flower.seconds)} exchanges after {WARMUP} that does not "
        f"count, fastest {min(flower.seconds):.2f} s. reference: data plane, median of "
        f"{sum(len(run.step_s) for run in ours)} steps, one pinned torch thread on either side.",
        "whole step: the exchange and the compute of the data plane's step. spread: quartile distance of the ratios of "
        "Flower's exchanges.",
        f"{rows[0].name}: ratio {ratio:.0f}, bound {BOUND:.0f}: {'met' if ratio >= BOUND else 'missed'}",
    ]
    name = "versus_flower_messages" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, rows, notes=notes, json_path=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 2 exchanges, 1 turn of 3 steps")
    parser.add_argument("--exchanges", type=int, default=9, help="exchanges by Flower messages (9)")
    parser.add_argument("--turns", type=int, default=3, help="turns on the data plane (3)")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per turn (20)")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them (4)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.exchanges, arguments.turns, arguments.steps, arguments.warmup = 2, 1, 3, 1
    return arguments


def _rows(ours: list[SplitSteps], flower: FlowerExchanges) -> list[Row]:
    exchange_s = statistics.median(second for run in ours for second in run.exchange_s)
    step_s = statistics.median(second for run in ours for second in run.step_s)
    whole = [second + step_s - exchange_s for second in flower.seconds]
    return [
        _row("exchange, Flower messages / data plane", flower.seconds, exchange_s),
        _row("whole step, Flower messages / data plane", whole, step_s),
    ]


def _row(name: str, theirs_s: list[float], ours_s: float) -> Row:
    ratios = [second / ours_s for second in theirs_s]
    return Row(
        name=name,
        value=1e3 * statistics.median(theirs_s),
        unit="ms/step",
        reference=1e3 * ours_s,
        ratio=statistics.median(ratios),
        spread=quartile_distance(ratios),
        n=len(ratios),
    )


if __name__ == "__main__":
    main()
