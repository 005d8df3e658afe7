"""The paper's mechanisms in Flower simulations of apps/scct: modelled seconds of an iteration, and F1 at equal modelled time.

SCCTT, SCCTL and SCCTS decide on split points and shares; training is real, seconds are those of a modelled cell. The three train
the same weights, up to rounding: losses of all epochs are compared, with each other and with those of the same training in one
process without any split (`flwr_splitkd.small_chain.training`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import Row, report

from demo_command import raise_on_signals
from flower_run import Federation, Value, simulation
from flwr_splitkd.schedulers.chain import MECHANISMS
from flwr_splitkd.small_chain.models import models_folder
from flwr_splitkd.small_chain.training import TrainingSettings, train

APP = Path(__file__).resolve().parents[1] / "apps" / "scct"
TIMEOUT_S = 3600.0
DEVICES = 3
# Of rounding over hundreds of steps; another batch anywhere makes a thousand times as much.
MOST_APART = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: what each epoch took in the model and came to, and each evaluation's time and scores."""

    mechanism: str
    edge_tflops: float
    iteration_s: list[float]
    cloud_link_s: float
    losses: list[float]
    clock_s: list[float]
    f1: list[float]
    split_points: list[dict[str, int]]
    seconds: float

    @property
    def mean_s(self) -> float:
        """An iteration without the link to the cloud."""
        return statistics.fmean(self.iteration_s) - self.cloud_link_s

    def f1_at(self, clock_s: float) -> float:
        """F1 of the last evaluation by then."""
        return [f1 for due_s, f1 in zip(self.clock_s, self.f1, strict=True) if due_s <= clock_s * (1 + 1e-9)][-1]


def main() -> None:
    """Run every mechanism, print the tables, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that Flower's processes end, whatever ends this
    began_s = time.monotonic()
    folder_of_models = models_folder()  # trained here, once, rather than in the first run
    with tempfile.TemporaryDirectory(prefix="chain-mechanisms-") as name:
        folder = Path(name)
        with simulation(
            folder / "logs", supernodes=DEVICES, cpus=DEVICES, environment={"OMP_WAIT_POLICY": "PASSIVE"}
        ) as federation:
            runs = {
                (edge, mechanism): _run(federation, folder, arguments, mechanism, edge)
                for edge in arguments.edges
                for mechanism in MECHANISMS
            }
    settings = TrainingSettings(
        devices=DEVICES, rounds=arguments.rounds, iterations=arguments.iterations, heldout=max(arguments.questions, 3)
    )
    whole = train("chain", folder_of_models, settings)
    first = next(iter(runs.values()))
    apart = max(abs(a - b) for run in runs.values() for a, b in zip(first.losses, run.losses, strict=True))
    furthest = max(abs(a - b) for a, b in zip(first.losses, whole.loss, strict=True))
    report(
        "chain_mechanisms" + (" (quick: a smoke test, these figures mean nothing)" if arguments.quick else ""),
        _rows(runs, arguments.edges),
        tables=[_table(runs, edge) for edge in arguments.edges],
        notes=[
            f"{DEVICES} devices, {arguments.rounds} rounds of 2 epochs of {arguments.iterations} iterations, batches of 8; the "
            "cell reckons with 4 layers of RoBERTa-large's size, 192 positions; SCCTS with split point 2 of 4. All seconds are "
            "modelled.",
            f"Training losses of all epochs differ between the {len(runs)} runs by at most {apart:.1e}, and from those of the "
            f"whole models in one process by at most {furthest:.1e}: processes have different numbers of threads here, and so "
            "another order of summation where a layer moves.",
            f"torch {torch.__version__}, flwr {version('flwr')}, transformers {version('transformers')}; "
            f"{(time.monotonic() - began_s) / 60:.0f} min.",
        ],
        json_path=arguments.json,
        more={"runs": [asdict(run) for run in runs.values()], "whole": asdict(whole)},
    )
    if not max(apart, furthest) < MOST_APART:
        raise SystemExit(f"Losses differ by more than {MOST_APART:g}: the mechanisms have not trained the same.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows and every epoch to this file as well")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each run (5)")
    parser.add_argument("--iterations", type=int, default=20, help="iterations of an epoch (20)")
    parser.add_argument("--questions", type=int, default=64, help="held-out questions (64)")
    parser.add_argument(
        "--edges", type=float, nargs="+", default=[312.0, 3.0], help="TFLOPS of the modelled edge (312 3)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: 1 round, 1 edge, 8 questions")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.iterations, arguments.questions, arguments.edges = 1, 2, 8, [3.0]
    if min(arguments.rounds, arguments.iterations, arguments.questions) < 1:
        parser.error("--rounds, --iterations and --questions are at least 1")
    return arguments


def _run(federation: Federation, folder: Path, arguments: argparse.Namespace, mechanism: str, edge: float) -> Run:
    runs = folder / f"{mechanism}-{edge:g}"
    config: dict[str, Value] = {
        "mechanism": mechanism,
        "mechanism-split-point": 2,
        "cell-edge-flops": edge * 1e12,
        "num-server-rounds": arguments.rounds,
        "iterations": arguments.iterations,
        "heldout-questions": arguments.questions,
        "min-available-nodes": DEVICES,
        "run-dir": str(runs),
    }
    began_s = time.monotonic()
    outcome = federation.run(APP, config, timeout_s=TIMEOUT_S)
    if not outcome.completed:
        raise SystemExit(f"{mechanism} did not complete:\n{outcome.tail()}")
    lines = [json.loads(line) for line in next(runs.glob("*/metrics.jsonl")).read_text().splitlines()]

    def of_kind(kind: str) -> list[dict[str, Any]]:
        return [line for line in lines if line["kind"] == kind]

    run = Run(
        mechanism=mechanism,
        edge_tflops=edge,
        iteration_s=[line["modelled_iteration_s"] for line in of_kind("epoch")],
        cloud_link_s=of_kind("epoch")[0]["modelled_cloud_link_s"],
        losses=[line["loss"] for line in of_kind("epoch")],
        clock_s=[line.get("modelled_clock_s", 0.0) for line in of_kind("evaluation")],
        f1=[line["eval-f1"] for line in of_kind("evaluation")],
        split_points=[line["split_points"] for line in of_kind("decision")],
        seconds=time.monotonic() - began_s,
    )
    print(
        f"{mechanism}, edge {edge:g} TFLOPS: {run.mean_s:.4g} modelled s an iteration, {run.seconds:.0f} s",
        file=sys.stderr,
    )
    return run


def _rows(runs: dict[tuple[float, str], Run], edges: list[float]) -> list[Row]:
    """Modelled seconds of an iteration beside SCCTT's."""
    return [
        Row(
            name=f"{mechanism}, edge {edge:g} TFLOPS: modelled s an iteration, no cloud link; reference: SCCTT",
            value=runs[edge, mechanism].mean_s,
            unit="s",
            reference=runs[edge, "SCCTT"].mean_s,
            n=len(runs[edge, mechanism].iteration_s),
            low=min(runs[edge, mechanism].iteration_s) - runs[edge, mechanism].cloud_link_s,
            high=max(runs[edge, mechanism].iteration_s) - runs[edge, mechanism].cloud_link_s,
        )
        for edge in edges
        for mechanism in MECHANISMS
    ]


def _table(runs: dict[tuple[float, str], Run], edge: float) -> Table:
    ends = [runs[edge, mechanism].clock_s[-1] for mechanism in MECHANISMS]
    times = [share * min(ends) for share in (0.25, 0.5, 0.75, 1.0)]
    table = Table(title=f"Edge of {edge:g} TFLOPS: F1 at equal modelled time, the cloud link included")
    for column in (
        "mechanism",
        "split points",
        "cloud link, s",
        "ends at, s",
        *(f"F1 at {due:.0f} s" for due in times),
    ):
        table.add_column(column, justify="left" if column == "mechanism" else "right")
    for mechanism in MECHANISMS:
        run = runs[edge, mechanism]
        points = " ".join(str(point) for point in run.split_points[-1].values())
        scores = (f"{run.f1_at(due):.1f}" for due in times)
        table.add_row(mechanism, points, f"{run.cloud_link_s:.3g}", f"{run.clock_s[-1]:.0f}", *scores)
    return table


if __name__ == "__main__":
    main()
