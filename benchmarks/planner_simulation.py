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
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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

from _report import Row, report
from split_kd_app import task

from flower_run import Federation, Value, simulation
from flwr_splitkd.costs import (
    CutTerms,
    Fleet,
    LinkState,
    ModelShape,
    Workload,
    cut_terms,
    load_shape,
    table_ii_fleet,
    turn_cost,
)
from flwr_splitkd.errors import InfeasibleError
from flwr_splitkd.models import measured_shape
from flwr_splitkd.schedulers import Decision, evaluate_options, plan_cut_and_frequency

APP = Path(__file__).resolve().parents[1] / "apps" / "split_kd"
TIMEOUT_S = 1800.0
# Up and down the street of `street_trajectories`, 2 x 400 m at 30 km/h.
WAY_S = 96
# Two sums of the same terms in another order.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What turns cost in some runs.

    Parameters
    ----------
    name
        Which models are charged for.
    fleet
        Machines and links, as the app makes them from the same seed.
    student, teacher
        The models.
    workload
        A turn.
    settings
        Run config that goes with it.
    """

    name: str
    fleet: Fleet
    student: ModelShape
    teacher: ModelShape
    workload: Workload
    settings: Mapping[str, Value]

    def terms(self, device: str, num_batches: int) -> CutTerms:
        """Costs of every cut of a device's turn."""
        workload = replace(self.workload, num_batches=num_batches)
        return cut_terms(self.student, self.teacher, workload, self.fleet.device(device))

    def machines(self, device: str) -> dict[str, Any]:
        """The two that take part."""
        return {"device": self.fleet.device(device), "server": self.fleet.server}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run has left.

    Parameters
    ----------
    policy
        Who decided.
    lines
        Of ``metrics.jsonl``.
    weights
        The student at the end.
    """

    policy: str
    lines: Sequence[Mapping[str, Any]]
    weights: Mapping[str, torch.Tensor]

    @property
    def turns(self) -> list[Mapping[str, Any]]:
        """Turns that were completed."""
        return [line for line in self.lines if line["kind"] == "turn" and "error" not in line]

    @property
    def left_out(self) -> list[Mapping[str, Any]]:
        """Turns that were not."""
        return [line for line in self.lines if line["kind"] == "turn" and "error" in line]

    @property
    def order(self) -> tuple[tuple[int, str], ...]:
        """Who had turns, in order; runs with the same order train on the same batches."""
        return tuple((turn["server_round"], turn["device"]) for turn in self.turns)

    @property
    def perplexity(self) -> float:
        """On held-out text, at the end."""
        return float([line for line in self.lines if line["kind"] == "evaluation"][-1]["perplexity"])

    def per_round(self, name: str) -> list[float]:
        """Sum of a figure over the turns of each round."""
        rounds = sorted({turn["server_round"] for turn in self.turns})
        return [sum(turn[name] for turn in self.turns if turn["server_round"] == number) for number in rounds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A turn beside the best that could have been decided for it.

    Parameters
    ----------
    joules, seconds
        As modelled; of the seconds those in which the device was in reach.
    late
        Whether it took longer than the bound, waits included.
    best_j
        Least joules within the bound on the turn's own channel; None if nothing was fast enough.
    """

    joules: float
    seconds: float
    late: bool
    best_j: float | None

    @property
    def regret_j(self) -> float | None:
        """Joules too many; None where the two cannot be compared."""
        return None if self.late or self.best_j is None else self.joules - self.best_j


def delay_bound_s(world: World, devices: Sequence[str], *, quantile: float, slack: float) -> float:
    """Return `slack` times the slowest device's fastest turn, at a quantile (0 to 1) of the rates on its way."""
    fastest = []
    for device in devices:
        states = [world.fleet.link(device).at(float(second)) for second in range(WAY_S)]
        link = LinkState(
            uplink_bps=float(np.quantile([state.uplink_bps for state in states], quantile)),
            downlink_bps=float(np.quantile([state.downlink_bps for state in states], quantile)),
        )
        terms = world.terms(device, world.workload.num_batches)
        options = evaluate_options(terms, **world.machines(device), link=link, frequency="max")
        fastest.append(float(options.seconds.min()))
    return slack * max(fastest)


def judge(world: World, turn: Mapping[str, Any], *, bound_s: float, min_cut: int) -> Judged:
    """Return a turn beside the best one on the same channel.

    Raises
    ------
    ValueError
        If `world` does not explain what the turn took, so that nothing could be compared.
    """
    link = LinkState(uplink_bps=turn["modelled_uplink_bps"], downlink_bps=turn["modelled_downlink_bps"])
    terms, machines = world.terms(turn["device"], turn["num_batches"]), world.machines(turn["device"])
    option = terms.index(turn["cut"])
    cost = turn_cost(terms, option, frequency_hz=turn["planned_frequency_hz"], **machines, link=link)
    if not math.isclose(cost.total_j, turn["modelled_j"], rel_tol=TOLERANCE):
        raise ValueError(
            f"Device {turn['device']} paid {turn['modelled_j']} J in round {turn['server_round']}; expected {cost.total_j} J of "
            f"{world.name}. The run had another world than this one."
        )
    best: Decision | None = None
    try:
        best = plan_cut_and_frequency(terms, **machines, link=link, max_delay_s=bound_s, min_cut=min_cut)
    except InfeasibleError:
        pass
    return Judged(
        joules=turn["modelled_j"],
        seconds=cost.total_s,
        late=turn["modelled_s"] > bound_s * (1 + TOLERANCE),
        best_j=best.cost.total_j if best else None,
    )


def same_weights(runs: Sequence[Run]) -> dict[str, str]:
    """Return for each run whether its weights are those of the first run with the same turns, and where they differ."""
    first: dict[tuple[tuple[int, str], ...], Run] = {}
    words = {}
    for run in runs:
        other = first.setdefault(run.order, run)
        if other is run:
            words[run.policy] = "first of its turns"
            continue
        differ = [name for name, tensor in run.weights.items() if not torch.equal(tensor, other.weights[name])]
        if run.weights.keys() == other.weights.keys() and not differ:
            words[run.policy] = f"equal to {other.policy}"
            continue
        off = max(float((run.weights[name] - other.weights[name]).abs().max()) for name in differ)
        words[run.policy] = f"{len(differ)} tensors differ from {other.policy} by up to {off:.2g}, first {differ[0]}"
    return words


def main() -> None:
    """Run the simulations, print the tables, write the JSON."""
    arguments = _arguments()
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
        f"fixed-cut-{arguments.fixed_cut}": {**baseline, "cut-policy": "cycle", "cuts": str(arguments.fixed_cut)},
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
