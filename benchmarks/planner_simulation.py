"""What the planner decides in Flower simulations, against baselines and against an oracle that knows the channel.

The demo app on virtual devices, those of Li et al., "Split Knowledge Distillation for Large Models in IoT", table II: training is
real, seconds and joules come from the cost model. All but the oracle decide on the channel of a device's last turn (at first, on
that at the start) and pay on the one in which the turn takes place. Of each run: modelled joules and seconds, cuts, turns that
took longer than the bound or were left out, held-out perplexity, and whether runs that had the same turns ended in the same
weights.

Regret is told turn by turn: a turn's joules less those of the cut and clock that would have been best within the bound, had the
channel of that very turn been known. Runs are not compared turn by turn with each other, because whose turns take longer meets
other channels. A turn that missed the bound has no regret, nor one that nothing could have finished in time.

The bound is the fleet's own: the fastest turn of each device (best cut, the server's largest clock) at a quantile of its rates
on the way up and down its street, of the slowest device, times some slack.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "split_kd"))

from _planner_turns import Judged, Run, World, delay_bound_s, judge, same_weights
from _report import Row, report
from split_kd_app import task

from demo_command import raise_on_signals
from flower_run import Federation, Value, simulation
from flwr_splitkd.costs import ModelShape, Workload, load_shape, table_ii_fleet
from flwr_splitkd.models import measured_shape

APP = Path(__file__).resolve().parents[1] / "apps" / "split_kd"
TIMEOUT_S = 1800.0


def main() -> None:
    """Run the simulations, print the tables, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that Flower's processes end, whatever ends this
    devices = [str(number) for number in range(arguments.devices)]
    tables, notes, rows, more = [], [], [], {}
    with tempfile.TemporaryDirectory(prefix="planner-") as name:
        folder = Path(name)
        # One device at a time: of two that start together the second may be ready first, and overtake.
        one = {"OMP_NUM_THREADS": "1"}
        with simulation(
            folder / "logs", supernodes=arguments.devices, client_cpus=os.cpu_count() or 1, environment=one
        ) as federation:
            for world in _worlds(arguments, folder):
                bound_s = delay_bound_s(world, devices, quantile=arguments.quantile, slack=arguments.slack)
                policies = _policies(arguments, bound_s)
                runs = [_run(federation, folder, policy, {**world.settings, **own}) for policy, own in policies.items()]
                judged = {
                    run.policy: [judge(world, turn, bound_s=bound_s, min_cut=arguments.min_cut) for turn in run.turns]
                    for run in runs
                }
                weights = same_weights(runs)
                rows += _rows(world, bound_s, judged)
                tables.append(_table(world, bound_s, runs, judged, weights))
                notes.append(_note(world, bound_s, arguments))
                more[world.name] = _json(bound_s, runs, judged, weights)
    notes.append(
        f"seed {arguments.seed}, channel {arguments.channel}, {arguments.rounds} rounds of {arguments.devices} devices, baselines "
        f"at the server's {arguments.baseline_clock} clock; low and high: smallest and largest turn; torch {torch.__version__}, "
        f"flwr {version('flwr')}, transformers {version('transformers')}."
    )
    title = "planner_simulation" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(title, rows, tables=tables, notes=notes, json_path=arguments.json, more={"worlds": more})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows and every turn to this file as well")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: 4 devices, 1 round, 2 batches, small models"
    )
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each run (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the channels, the data's order and the weights (0)")
    parser.add_argument("--channel", choices=("good", "normal", "poor"), default="normal", help="(normal)")
    parser.add_argument(
        "--baseline-clock",
        choices=("max", "nominal", "optimal"),
        default="max",
        help="the server's clock in the baselines (max); with optimal, that of least energy: within the bound for server-only "
        "and device-only, whatever the bound for the fixed cut",
    )
    parser.add_argument("--fixed-cut", type=int, default=4, help="cut of the baseline with a fixed one (4)")
    parser.add_argument("--min-cut", type=int, default=1, help="privacy floor of planned and oracle (1)")
    parser.add_argument("--slack", type=float, default=1.2, help="of the delay bound (1.2)")
    parser.add_argument("--quantile", type=float, default=0.1, help="of the rates, for the delay bound (0.1)")
    parser.add_argument("--models", nargs="*", choices=("own", "large"), default=("own", "large"), help="(both)")
    parser.add_argument(
        "--large",
        nargs=2,
        metavar=("STUDENT", "TEACHER"),
        default=("llama-3.2-1b/8", "llama-3.2-3b"),
        help="models that are charged for in place of the app's (llama-3.2-1b/8 llama-3.2-3b)",
    )
    parser.add_argument("--policies", nargs="*", default=(), help="only these, such as planned oracle")
    arguments = parser.parse_args()
    arguments.devices = 10
    if arguments.quick:
        arguments.devices, arguments.rounds, arguments.models = 4, 1, ("large",)
    return arguments


def _worlds(arguments: argparse.Namespace, folder: Path) -> list[World]:
    """The app's own models, and others that are charged for in their place."""
    settings: dict[str, Value] = {
        "num-server-rounds": arguments.rounds,
        "selection": "by-name",
        "fleet": "table-ii",
        "channel": arguments.channel,
        "modelled": True,
        "seed": arguments.seed,
        "train-embeddings": False,
        "sequence-length": 128,
        "batch-size": 4,
        "max-batches": 24,
        "teacher": "builtin",
        "student": "builtin",
    }
    if arguments.quick:
        settings |= {
            "sequence-length": 32,
            "max-batches": 2,
            "teacher": _small_model(folder / "teacher", hidden_size=48, num_layers=2),
            "student": _small_model(folder / "student", hidden_size=32, num_layers=8),
        }
    # As the app's: float32, AdamW, moments handed over.
    workload = Workload(
        batch_size=int(settings["batch-size"]),
        sequence_length=int(settings["sequence-length"]),
        num_batches=int(settings["max-batches"]),
        train_embeddings=False,
    )

    def world(name: str, student: ModelShape, teacher: ModelShape, own: Mapping[str, Value]) -> World:
        fleet = table_ii_fleet(arguments.channel, np.random.default_rng(arguments.seed))
        all_settings = {**settings, **own}
        return World(name=name, fleet=fleet, student=student, teacher=teacher, workload=workload, settings=all_settings)

    worlds = []
    if "own" in arguments.models:
        student = measured_shape(task.student_builder(str(settings["student"])), name="the app's student")
        teacher = measured_shape(task.teacher_builder(str(settings["teacher"])), name="the app's teacher")
        worlds.append(world("own models", student, teacher, {}))
    if "large" in arguments.models:
        names = dict(zip(("modelled-student", "modelled-teacher"), arguments.large, strict=True))
        worlds.append(world(" and ".join(arguments.large), *map(load_shape, arguments.large), names))
    return worlds


def _policies(arguments: argparse.Namespace, bound_s: float) -> dict[str, dict[str, Value]]:
    """Run config of each policy."""
    planned: dict[str, Value] = {
        "cut-policy": "optimal",
        "max-delay": bound_s,
        "min-cut": arguments.min_cut,
        "server-frequency": "optimal",
    }
    baseline: dict[str, Value] = {"max-delay": bound_s, "server-frequency": arguments.baseline_clock}
    every: dict[str, dict[str, Value]] = {
        "oracle": {**planned, "foresight": True},
        "planned": planned,
        "server-only": {**baseline, "cut-policy": "server-only"},
        f"fixed-cut-{arguments.fixed_cut}": {
            "server-frequency": arguments.baseline_clock,
            "cut-policy": "cycle",
            "cuts": str(arguments.fixed_cut),
        },
        "device-only": {**baseline, "cut-policy": "device-only"},
    }
    if odd := set(arguments.policies) - set(every):
        raise SystemExit(f"--policies has {sorted(odd)}; expected some of {', '.join(every)}.")
    return {name: own for name, own in every.items() if name in (arguments.policies or every)}


def _run(federation: Federation, folder: Path, policy: str, settings: Mapping[str, Value]) -> Run:
    """Run the app once."""
    runs = folder / f"runs-{monotonic()}"
    outcome = federation.run(APP, {**settings, "run-dir": str(runs)}, timeout_s=TIMEOUT_S)
    if not outcome.completed:
        raise SystemExit(outcome.tail())
    print(f"{policy}: {outcome.seconds:.0f} s", file=sys.stderr)
    metrics = max(runs.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return Run(policy=policy, lines=lines, weights=load_file(metrics.parent / "student" / "model.safetensors"))


def _small_model(folder: Path, *, hidden_size: int, num_layers: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(APP / "split_kd_app" / "tokenizer")
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _rows(world: World, bound_s: float, judged: Mapping[str, Sequence[Judged]]) -> list[Row]:
    """Joules of a turn against the best on its channel, and its seconds against the bound."""
    rows = []
    for policy, turns in judged.items():
        if not turns:
            continue
        pairs = [(turn.joules, turn.best_j) for turn in turns if turn.regret_j is not None and turn.best_j]
        for unit, values, references in (
            ("J", [turn.joules for turn in turns], [best for _, best in pairs]),
            ("s", [turn.seconds for turn in turns], [bound_s]),
        ):
            ratios = [joules / best for joules, best in pairs] if unit == "J" else [value / bound_s for value in values]
            rows.append(
                Row(
                    name=f"{world.name}, {policy}, a turn",
                    value=statistics.median(values),
                    unit=unit,
                    reference=statistics.median(references) if references else None,
                    ratio=statistics.median(ratios) if ratios else None,
                    n=len(values),
                    low=min(values),
                    high=max(values),
                )
            )
    return rows


def _table(
    world: World,
    bound_s: float,
    runs: Sequence[Run],
    judged: Mapping[str, Sequence[Judged]],
    weights: Mapping[str, str],
) -> Table:
    table = Table(title=f"{world.name}, bound {bound_s:.4g} s: rounds and runs")
    for heading in (
        "policy",
        "cuts",
        "GHz",
        "J a round",
        "s a round",
        "turns",
        "late",
        "left out",
        "regret J",
        "perplexity",
    ):
        table.add_column(heading, justify="right")
    table.add_column("weights")
    for run in runs:
        turns = judged[run.policy]
        regrets = [turn.regret_j for turn in turns if turn.regret_j is not None]
        clocks = [turn["planned_frequency_hz"] / 1e9 for turn in run.turns]
        table.add_row(
            run.policy,
            ",".join(map(str, sorted({turn["cut"] for turn in run.turns}))),
            f"{min(clocks):.2f} to {max(clocks):.2f}" if clocks else "",
            _middle(run.per_round("modelled_j")),
            _middle(run.per_round("modelled_s")),
            str(len(turns)),
            str(sum(turn.late for turn in turns)),
            str(len(run.left_out)),
            f"{sum(regrets):,.4g} in {len(regrets)}",
            f"{run.perplexity:.4f}",
            weights[run.policy],
        )
    return table


def _middle(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def _note(world: World, bound_s: float, arguments: argparse.Namespace) -> str:
    workload = world.workload
    return (
        f"{world.name}: bound {bound_s:.4g} s, {arguments.slack:g} x the slowest device's fastest turn at the "
        f"{arguments.quantile:g} quantile of its rates; turns of {workload.num_batches} x {workload.batch_size} x "
        f"{workload.sequence_length} tokens; J: reference is the best on the turn's own channel, ratio the median over turns in "
        "time; s: reference is the bound; regret: sum over the turns in time."
    )


def _json(
    bound_s: float, runs: Sequence[Run], judged: Mapping[str, Sequence[Judged]], weights: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "bound_s": bound_s,
        "runs": {
            run.policy: {
                "perplexity": run.perplexity,
                "weights": weights[run.policy],
                "order": run.order,
                "left_out": [
                    {name: line[name] for name in ("server_round", "device", "error")} for line in run.left_out
                ],
                "turns": [
                    {
                        "server_round": turn["server_round"],
                        "device": turn["device"],
                        "cut": turn["cut"],
                        "frequency_hz": turn["planned_frequency_hz"],
                        "binding": turn["binding"],
                        "predicted_j": turn["predicted_j"],
                        "predicted_s": turn["predicted_s"],
                        "modelled_late": turn["modelled_late"],
                        **asdict(verdict),
                        "regret_j": verdict.regret_j,
                    }
                    for turn, verdict in zip(run.turns, judged[run.policy], strict=True)
                ],
            }
            for run in runs
        },
    }


if __name__ == "__main__":
    main()
