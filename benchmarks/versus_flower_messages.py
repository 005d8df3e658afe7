"""Time to exchange a split step's tensors by Flower messages, against the package's data plane.

Both exchange what a step of the demo app exchanges: smashed data, teacher embeddings, labels and masks up, the
gradient at the cut down. Data plane: turns of the product's own edge and device in two processes, the exchange being
what the device waits beyond the edge's forward pass, loss and backward pass. Flower messages: one train message down
and its reply up for each step, in a SuperLink + SuperNode deployment on loopback; neither side computes anything, and
the device's app imports no torch and loads no model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import Row, report
from _step_processes import Job, SplitSteps, Tensors, pinned, quartile_distance, start

from flower_run import Value, deployment

# Flower's exchange over ours; see benchmarks/README.md.
BOUND = 50.0
CUT = 4
APP = Path(__file__).with_name("flower_messages_app")
# The first message finds nothing compiled and the node's process not yet started once.
FLOWER_WARMUP = 1
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerExchanges:
    """Seconds of each counted exchange, and the bytes that the arrays of one had."""

    seconds: list[float]
    up_bytes: int
    down_bytes: int


def main() -> None:
    """Measure both, print the table, write the JSON."""
    arguments = _arguments()
    job = Job(cut=CUT, max_grad_norm=None, warmup=arguments.warmup, steps=arguments.steps)
    with start(pinned()) as processes:
        about = processes.about
        ours = [processes.split(job) for _ in range(arguments.turns)]
    flower = _flower_exchanges(ours[0].up, ours[0].down, arguments.exchanges)
    rows = _rows(ours, flower)
    ratio = rows[0].ratio or 0.0
    notes = [
        f"{about}, float32, cut {CUT}: {flower.up_bytes / 2**20:.2f} MiB up and {flower.down_bytes / 2**20:.2f} MiB "
        f"down a step; flwr {version('flwr')}, 1 SuperNode.",
        f"value: Flower messages, median of {len(flower.seconds)} exchanges after {FLOWER_WARMUP} that does not "
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


def _flower_exchanges(up: Tensors, down: Tensors, count: int) -> FlowerExchanges:
    """Exchange tensors of these shapes in a deployment of one SuperNode."""
    with tempfile.TemporaryDirectory(prefix="flower-messages-") as folder:
        result = Path(folder) / "exchanges.json"
        settings: dict[str, Value] = {
            "num-exchanges": count + FLOWER_WARMUP,
            "up": json.dumps(up),
            "down": json.dumps(down),
            "result": str(result),
        }
        with deployment(Path(folder) / "logs", supernodes=1) as federation:
            outcome = federation.run(APP, settings, timeout_s=TIMEOUT_S)
        if not outcome.completed:
            raise SystemExit(outcome.tail())
        exchanges = json.loads(result.read_text(encoding="utf-8"))
    print(json.dumps({"flower_exchanges": exchanges}), file=sys.stderr, flush=True)
    counted = exchanges[FLOWER_WARMUP:]
    return FlowerExchanges(
        seconds=[item["seconds"] for item in counted],
        up_bytes=counted[0]["up_bytes"],
        down_bytes=counted[0]["down_bytes"],
    )


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
