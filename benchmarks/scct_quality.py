"""What the chain buys: answers to held-out questions over the rounds, against training in the cloud alone and on devices alone.

The app in Flower simulations, as a user would run it: the chain (SCCT), `training="cloud-only"` (CloudO of Wang et al., the
module of the language model from the questions' tokens) and `training="device-only"` (each device its encoder with a head that
points at the answer). All have the same batches in the same order, the same pretrained models, and as many steps; learning rates
are the app's times the factor of the same grid that is best for the first seed (on the held-out questions, so for each arm a
little too good).

Losses are not comparable: that of a pointing head is another one than that of a language model. Losing is a finding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "scct"))

from _report import Row, report
from scct_app import task
from scct_app.config import AppConfig
from scct_app.models import llm_folder

from flower_run import Federation, Value, simulation

APP = Path(__file__).resolve().parents[1] / "apps" / "scct"
ARMS = {"chain": "SCCT", "cloud-only": "CloudO", "device-only": "device-only SLM"}
METRICS = {"eval-f1": "F1", "eval-exact_match": "EM", "eval-loss": "loss"}
FACTORS = (0.3, 1.0, 3.0)
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: each evaluation's metrics by round."""

    arm: str
    factor: float
    seed: int
    evaluations: dict[int, dict[str, float]]
    seconds: float

    @property
    def last(self) -> dict[str, float]:
        """The metrics of the last round."""
        return self.evaluations[max(self.evaluations)]


def main() -> None:
    """Run every arm, print the tables, write the JSON and the figure."""
    arguments = _arguments()
    began_s = time.monotonic()
    if arguments.llm == "builtin":
        llm_folder()  # trained here, once, rather than in the first run
    with tempfile.TemporaryDirectory(prefix="scct-quality-") as name:
        folder = Path(name)
        # All share this machine: whoever waits must not spin on the others' cores.
        with simulation(
            folder / "logs",
            supernodes=arguments.devices,
            cpus=arguments.devices,
            environment={"OMP_WAIT_POLICY": "PASSIVE"},
        ) as federation:
            tried = {
                arm: [_run(federation, folder, arguments, arm, factor, seed=0) for factor in arguments.factors]
                for arm in ARMS
            }
            best = {arm: max(runs, key=lambda run: run.last["eval-f1"]) for arm, runs in tried.items()}
            runs = {
                arm: [
                    one,
                    *(_run(federation, folder, arguments, arm, one.factor, seed) for seed in range(1, arguments.seeds)),
                ]
                for arm, one in best.items()
            }
    baselines = task.heldout_baselines(AppConfig(heldout_questions=arguments.questions))
    report(
        "scct_quality" + (" (quick: a smoke test, these figures mean nothing)" if arguments.quick else ""),
        _rows(runs),
        tables=[_over_rounds(runs, metric) for metric in METRICS] + [_without_model(baselines), _rates(tried)],
        notes=[
            f"{arguments.devices} devices with split points 1, 2, 4; {arguments.rounds} rounds of 2 epochs of "
            f"{arguments.iterations} iterations, batches of 8 on each device; {arguments.questions} held-out questions on every "
            f"device; seeds 0 to {arguments.seeds - 1}: of the module, the new head, dropout and the data's order (the pretrained "
            "models are the same); low, high: over seeds.",
            *_reading(runs),
            f"torch {torch.__version__}, flwr {version('flwr')}, transformers {version('transformers')}; "
            f"{(time.monotonic() - began_s) / 60:.0f} min.",
        ],
        json_path=arguments.json,
        more={
            "baselines": baselines,
            "runs": [asdict(run) for arm in ARMS for run in (*tried[arm], *runs[arm][1:])],
        },
    )
    if arguments.plot:
        _draw(runs, baselines, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows and every evaluation to this file as well")
    parser.add_argument("--plot", type=Path, help="draw F1 and exact match over the rounds into this PNG")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (3)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each run (5)")
    parser.add_argument("--iterations", type=int, default=20, help="iterations of an epoch (20)")
    parser.add_argument("--questions", type=int, default=128, help="held-out questions (128)")
    parser.add_argument("--slm", default="builtin", help="folder of another encoder for the app's tokenizer (builtin)")
    parser.add_argument("--llm", default="builtin", help="folder of another language model, likewise (builtin)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 1 seed, 1 round, 1 rate, 8 questions")
    arguments = parser.parse_args()
    arguments.devices, arguments.factors = 3, FACTORS
    if arguments.quick:
        arguments.seeds, arguments.rounds, arguments.iterations, arguments.questions = 1, 1, 2, 8
        arguments.factors = (1.0,)
    if min(arguments.seeds, arguments.rounds, arguments.iterations, arguments.questions) < 1:
        parser.error("--seeds, --rounds, --iterations and --questions are at least 1")
    return arguments


def _run(
    federation: Federation, folder: Path, arguments: argparse.Namespace, arm: str, factor: float, seed: int
) -> Run:
    runs = folder / f"{arm}-{factor:g}-{seed}"
    config: dict[str, Value] = {
        "training": arm,
        "slm": arguments.slm,
        "llm": arguments.llm,
        "seed": seed,
        "slm-learning-rate": 0.0005 * factor,
        "module-learning-rate": 0.003 * factor,
        "num-server-rounds": arguments.rounds,
        "iterations": arguments.iterations,
        "heldout-questions": arguments.questions,
        "min-available-nodes": arguments.devices,
        "run-dir": str(runs),
    }
    began_s = time.monotonic()
    outcome = federation.run(APP, config, timeout_s=TIMEOUT_S)
    if not outcome.completed:
        raise SystemExit(f"{arm}, factor {factor:g}, seed {seed} did not complete:\n{outcome.tail()}")
    lines = [json.loads(line) for line in next(runs.glob("*/metrics.jsonl")).read_text().splitlines()]
    evaluations = {
        int(line["server_round"]): {name: float(line[name]) for name in METRICS}
        for line in lines
        if line["kind"] == "evaluation"
    }
    run = Run(arm=arm, factor=factor, seed=seed, evaluations=evaluations, seconds=time.monotonic() - began_s)
    curve = " ".join(f"{metrics['eval-f1']:.1f}" for _, metrics in sorted(evaluations.items()))
    print(
        f"{ARMS[arm]}, factor {factor:g}, seed {seed}: F1 {curve} in {run.seconds:.0f} s", file=sys.stderr, flush=True
    )
    return run


def _rows(runs: dict[str, list[Run]]) -> list[Row]:
    """F1 at the end beside F1 at the start."""
    rows = []
    for arm, several in runs.items():
        last = [run.last["eval-f1"] for run in several]
        first = statistics.fmean(run.evaluations[0]["eval-f1"] for run in several)
        rows.append(
            Row(
                name=f"{ARMS[arm]}: F1 at the end; reference: at the start",
                value=statistics.fmean(last),
                unit="of 100",
                reference=first,
                n=len(last),
                low=min(last),
                high=max(last),
            )
        )
    return rows


def _over_rounds(runs: dict[str, list[Run]], metric: str) -> Table:
    table = Table(title=f"{METRICS[metric]} on held-out questions after each round; mean (lowest to highest seed)")
    table.add_column("training")
    table.add_column("rates x")
    rounds = sorted(next(iter(runs.values()))[0].evaluations)
    for number in rounds:
        table.add_column(f"round {number}", justify="right")
    for arm, several in runs.items():
        columns = [[run.evaluations[number][metric] for run in several] for number in rounds]
        cells = (f"{statistics.fmean(column):.1f} ({min(column):.1f} to {max(column):.1f})" for column in columns)
        table.add_row(ARMS[arm], f"{several[0].factor:g}", *cells)
    return table


def _without_model(baselines: dict[str, dict[str, float]]) -> Table:
    table = Table(title="The same questions without a model")
    for column in ("answer", "F1", "EM"):
        table.add_column(column, justify="left" if column == "answer" else "right")
    for name, scores in baselines.items():
        table.add_row(name, f"{scores['f1']:.1f}", f"{scores['exact_match']:.1f}")
    return table


def _rates(tried: dict[str, list[Run]]) -> Table:
    table = Table(title="F1 at the end by the factor on the learning rates, seed 0")
    table.add_column("training")
    for run in next(iter(tried.values())):
        table.add_column(f"x {run.factor:g}", justify="right")
    for arm, several in tried.items():
        table.add_row(ARMS[arm], *(f"{run.last['eval-f1']:.1f}" for run in several))
    return table


def _reading(runs: dict[str, list[Run]]) -> list[str]:
    """Who wins, by how much more than the seeds differ."""
    said = []
    chain = [run.last["eval-f1"] for run in runs["chain"]]
    for arm in ("cloud-only", "device-only"):
        other = [run.last["eval-f1"] for run in runs[arm]]
        apart = min(chain) > max(other) or max(chain) < min(other)
        gap = statistics.fmean(chain) - statistics.fmean(other)
        what = f"{abs(gap):.1f} points of F1 {'above' if gap > 0 else 'below'} {ARMS[arm]}"
        said.append(f"SCCT ends {what}; the seeds' ranges {'do not overlap' if apart else 'overlap'}.")
    return said


def _draw(runs: dict[str, list[Run]], baselines: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis, (metric, plain) in zip(axes, (("eval-f1", "f1"), ("eval-exact_match", "exact_match")), strict=True):
        for arm, several in runs.items():
            rounds = sorted(several[0].evaluations)
            columns: Sequence[Sequence[Any]] = [
                [run.evaluations[number][metric] for run in several] for number in rounds
            ]
            (line,) = axis.plot(rounds, [statistics.fmean(column) for column in columns], marker="o", label=ARMS[arm])
            lowest, highest = [min(column) for column in columns], [max(column) for column in columns]
            axis.fill_between(rounds, lowest, highest, color=line.get_color(), alpha=0.2)
        for (name, scores), style in zip(baselines.items(), (":", "-.", "--", (0, (1, 4))), strict=False):
            axis.axhline(scores[plain], color="grey", linestyle=style, linewidth=1, label=name)
        axis.set_xlabel("round")
        axis.set_ylabel(f"{METRICS[metric]} on held-out questions; band: all seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
