"""Rounds in clusters of 1, 2, 5 and 10 devices: how long they take, as predicted and as measured, and what is learnt.

Devices are emulated: threads of this process that compute what the product's do, on loopback gRPC, and sleep until a device of the
given pace and link would be done. The edge is the product's, and computes for real. A round is one turn of each device, all of them
connected before; its time is that from the first plan to the last commit. Sizes alternate round by round.

The prediction is the cost model's (`flwr_splitkd.costs.cluster_s`) from the pace, the bytes and the edge's seconds per step in the
rounds of one device after another of the same run, as a planner would know them; of a larger cluster nothing is measured before.

What is learnt is measured without a pace: the same devices, batches and rounds for every size, at each of some learning rates; the
held-out perplexity of the rate that is best on validation text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from _emulated_devices import Pace, Passes, devices
from _quality_tasks import Batch, Scale, Task, load_task
from _report import Row, report
from _step_processes import quartile_distance
from rich.table import Table
from torch import nn

from flwr_splitkd.costs import MemberTurn, cluster_s
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.tiers.edge import ClusterTurn, EdgeService, EdgeSetup, TurnOutcome, TurnSettings
from flwr_splitkd.tiers.optimizer import OptimizerSettings, warmup_schedule
from flwr_splitkd.wire.server import Session

SIZES = (1, 2, 5, 10)
CUTS = (1, 2, 3)
MAX_GRAD_NORM = 1.0
KD_RATIO = 0.9
TIMEOUT_S = 600.0
MEGA = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round that is over.

    Parameters
    ----------
    seconds
        From the first plan to the last commit.
    clusters
        What came of each cluster's devices.
    """

    seconds: float
    clusters: list[list[TurnOutcome]]


@dataclass(slots=True)
class Series:
    """Rounds of one cluster size, and what the cost model says of them."""

    name: str
    size: int
    joined: bool
    rounds: list[Round] = field(default_factory=list)
    predicted_s: float = 0.0

    @property
    def seconds(self) -> list[float]:
        """Of each round."""
        return [one.seconds for one in self.rounds]


def main() -> None:
    """Measure times and quality, print the tables, write the JSON."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = load_task("lm", _scale(arguments), folder / "task")
        passes = Passes()
        pace = Pace(forward_s=arguments.step / 3, backward_s=arguments.step * 2 / 3, rate_bps=arguments.rate * MEGA)
        series = [] if arguments.no_times else _timed(task, arguments, pace, folder / "time", passes)
        learnt = {} if arguments.no_quality else _learnt(task, arguments, folder / "quality")
    rows = _rows(series)
    notes = [
        f"{arguments.devices} devices, cuts {', '.join(map(str, CUTS))} in turn unless one is named, "
        f"{arguments.steps} steps of {task.batch_size} samples a turn; emulated: {arguments.step:g} s of device "
        f"computing a step, {arguments.rate:g} Mbit/s each way and each device's own; the edge has {arguments.threads} "
        f"threads of {os.cpu_count()} cores, gradients are clipped.",
        "value: measured round; reference: predicted; ratio: median of measured by predicted, spread: quartile distance.",
        f"{passes.late} of {passes.count} passes took longer than a device of this pace may "
        f"({passes.late_s:.1f} s in all): computing them shares this machine's cores with the edge.",
        f"load {os.getloadavg()[0]:.1f} at the end; torch {torch.__version__}.",
    ]
    title = "clusters" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    tables = [*([_speed_table(series)] if series else []), *([_quality_table(learnt)] if learnt else [])]
    report(title, rows + _quality_rows(learnt), tables=tables, notes=notes, json_path=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 4 devices, small models, one pair")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each size (5)")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of a turn (8)")
    parser.add_argument("--step", type=float, default=0.3, help="seconds that a device computes for a step (0.3)")
    parser.add_argument("--rate", type=float, default=50.0, help="Mbit/s of each device's link, each way (50)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, of edge and devices alike (1)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of training, for the perplexity (4)")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.003, 0.01], help="(0.003 0.01)")
    parser.add_argument("--no-quality", action="store_true", help="measure times alone")
    parser.add_argument("--no-times", action="store_true", help="measure perplexity alone")
    arguments = parser.parse_args()
    arguments.devices, arguments.sizes = 10, SIZES
    if arguments.quick:
        arguments.devices, arguments.sizes = 4, (1, 2, 4)
        arguments.pairs, arguments.steps, arguments.rounds, arguments.step = 1, 2, 1, 0.05
        arguments.learning_rates = [0.003]
    return arguments


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = Scale.quick() if arguments.quick else Scale()
    fields = {name: getattr(scale, name) for name in scale.__slots__}
    return Scale(**{**fields, "devices": arguments.devices, "turn_steps": arguments.steps})


# ---- seconds


def _timed(task: Task, arguments: argparse.Namespace, pace: Pace, folder: Path, passes: Passes) -> list[Series]:
    """Rounds of every size, one after another, `pairs` times."""
    series = [Series(name=f"clusters of {size}", size=size, joined=True) for size in arguments.sizes]
    largest = max(arguments.sizes)
    series += [
        Series(name=f"clusters of {largest}, cut 2, joined", size=largest, joined=True),
        Series(name=f"clusters of {largest}, cut 2, one after another", size=largest, joined=False),
    ]
    for pair in range(arguments.pairs):
        for one in series:
            own = folder / f"{pair}-{one.name.replace(' ', '-')}"
            cuts = (2,) if "cut 2" in one.name else CUTS
            with _edge(task, own, rate=0.003, joined=one.joined) as edge:
                batches = _batches(task, arguments, seed=pair)
                one.rounds.append(_round(task, edge, batches, one.size, cuts, pace, own, passes))
            print(f"pair {pair + 1} of {arguments.pairs}, {one.name}: {one.rounds[-1].seconds:.2f} s", flush=True)
    alone = series[0].rounds
    for one in series:
        cuts = (2,) if "cut 2" in one.name else CUTS
        one.predicted_s = _predicted(alone, arguments, pace, passes, one.size, cuts)
    return series


def _round(
    task: Task,
    edge: EdgeService,
    batches: Sequence[Sequence[Batch]],
    size: int,
    cuts: Sequence[int],
    pace: Pace,
    folder: Path,
    passes: Passes,
) -> Round:
    """One turn of every device, in clusters; with clusters of 1 by the sequential strategy's own way."""
    with devices(edge, _student(task), batches, pace, folder, passes) as sessions:
        started_s = time.monotonic()
        ended = [_cluster(edge, sessions[first : first + size], first, cuts) for first in range(0, len(sessions), size)]
        return Round(seconds=time.monotonic() - started_s, clusters=ended)


def _cluster(edge: EdgeService, sessions: Sequence[Session], first: int, cuts: Sequence[int]) -> list[TurnOutcome]:
    cut_of = {index: cuts[(first + index) % len(cuts)] for index in range(len(sessions))}
    if len(sessions) == 1:
        return [edge.serve(sessions[0], mode="train", cut=cut_of[0], local_epochs=1, info={})]
    turns = [
        ClusterTurn(session=session, cut=cut_of[index], local_epochs=1, info={"device": str(first + index)})
        for index, session in enumerate(sessions)
    ]
    outcomes = []
    for outcome in edge.serve_cluster(turns, info={}):
        if not isinstance(outcome, TurnOutcome):
            raise outcome
        outcomes.append(outcome)
    return outcomes


def _predicted(
    alone: Sequence[Round],
    arguments: argparse.Namespace,
    pace: Pace,
    passes: Passes,
    size: int,
    cuts: Sequence[int],
) -> float:
    """Seconds of a round by the cost model, from turns of one device after another."""
    turns = [outcome for one in alone for (outcome,) in one.clusters]

    def member(device: int) -> MemberTurn:
        cut = cuts[device % len(cuts)]
        like = [turn for turn in turns if turn.cut == cut]
        steps = like[0].num_steps
        up, down = (
            statistics.median(values)
            for values in (
                [turn.handover_bytes - turn.handover_downlink_bytes for turn in like],
                [turn.handover_downlink_bytes for turn in like],
            )
        )
        # The device builds its half, the edge commits: what no stage is for.
        other_s = statistics.median(turn.fixed_s for turn in like)
        return MemberTurn(
            cut=cut,
            num_steps=steps,
            device_s=steps * (pace.forward_s + pace.backward_s),
            # What the teacher needs travels a step ahead, while the edge computes for others or for this device.
            uplink_s=steps * pace.on_link_s(passes.uplink_bytes),
            server_s=statistics.median(turn.edge_s for turn in like),
            downlink_s=steps * pace.on_link_s(passes.downlink_bytes),
            before_s=pace.on_link_s(int(down)) + other_s,
            after_s=pace.on_link_s(int(up)),
        )

    members = [member(device) for device in range(arguments.devices)]
    return sum(cluster_s(members[first : first + size], clipped=True) for first in range(0, arguments.devices, size))


# ---- quality


def _learnt(task: Task, arguments: argparse.Namespace, folder: Path) -> dict[int, dict[float, tuple[float, float]]]:
    """Validation and held-out perplexity after training, of each size at each rate."""
    learnt: dict[int, dict[float, tuple[float, float]]] = {}
    for size in arguments.sizes:
        for rate in arguments.learning_rates:
            own = folder / f"{size}-{rate}"
            with _edge(task, own, rate=rate, joined=True) as edge:
                for server_round in range(arguments.rounds):
                    batches = _batches(task, arguments, seed=1_000 + server_round)
                    _round(task, edge, batches, size, CUTS, Pace(), own, Passes())
                model = edge.student.model.eval()
                figures = task.figure(model, task.validation), task.figure(model, task.heldout)
            learnt.setdefault(size, {})[rate] = figures
            print(
                f"clusters of {size}, rate {rate:g}: validation {figures[0]:.1f}, held-out {figures[1]:.1f}", flush=True
            )
    return learnt


def _batches(task: Task, arguments: argparse.Namespace, *, seed: int) -> list[list[Batch]]:
    return [
        list(task.loader(samples, seed=seed * 1_000 + device, steps=arguments.steps))
        for device, samples in enumerate(task.train[: arguments.devices])
    ]


def _student(task: Task) -> partial[nn.Module]:
    return partial(task.student, 0)


@contextmanager
def _edge(task: Task, folder: Path, *, rate: float, joined: bool) -> Iterator[EdgeService]:
    setup = EdgeSetup(
        student=_student(task),
        teacher=task.teacher,
        loss=DistillationLoss(kd_ratio=KD_RATIO),
        task=task.kind,
        tied_embeddings="refuse",
        train_embeddings=True,
        blocks=(),
        optimizer=OptimizerSettings(learning_rate=rate, weight_decay=0.01),
        optimizer_handover="full",
        turn=TurnSettings(
            max_grad_norm=MAX_GRAD_NORM,
            batch_devices=joined,
            lr_schedule=warmup_schedule("constant_with_warmup", num_warmup_steps=10, num_training_steps=0),
            step_timeout_s=TIMEOUT_S,
        ),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
    )
    edge = setup.open(setup.build_student(), folder / "commits", ticket_lifetime_s=TIMEOUT_S)
    try:
        yield edge
    finally:
        edge.close()


# ---- tables


def _rows(series: Sequence[Series]) -> list[Row]:
    rows = []
    for one in series:
        ratios = [seconds / one.predicted_s for seconds in one.seconds]
        rows.append(
            Row(
                name=f"round, {one.name}",
                value=statistics.median(one.seconds),
                unit="s",
                reference=one.predicted_s,
                ratio=statistics.median(ratios),
                spread=quartile_distance(ratios) if len(ratios) > 1 else None,
                n=len(ratios),
            )
        )
    return rows


def _speed_table(series: Sequence[Series]) -> Table:
    table = Table(title="a round against one device after another, pair by pair")
    for column in ("", "measured", "spread", "predicted", "edge's seconds"):
        table.add_column(column, justify="left" if not column else "right")
    first = series[0]
    for one in series:
        ratios = [a / b for a, b in zip(one.seconds, first.seconds, strict=True)]
        edge_s = [sum(outcome.edge_s for cluster in r.clusters for outcome in cluster) for r in one.rounds]
        table.add_row(
            one.name,
            f"{statistics.median(ratios):.3f} x",
            f"{quartile_distance(ratios):.3f}" if len(ratios) > 1 else "",
            f"{one.predicted_s / first.predicted_s:.3f} x",
            f"{statistics.median(edge_s):.2f}",
        )
    return table


def _best(figures: dict[float, tuple[float, float]]) -> float:
    return min(figures, key=lambda rate: figures[rate][0])


def _quality_table(learnt: dict[int, dict[float, tuple[float, float]]]) -> Table:
    table = Table(title="held-out perplexity; * is the rate that is best on validation text")
    table.add_column("clusters of", justify="right")
    for rate in next(iter(learnt.values())):
        table.add_column(f"rate {rate:g}", justify="right")
    for size, figures in learnt.items():
        best = _best(figures)
        table.add_row(str(size), *(f"{f[1]:.1f}{'*' if rate == best else ''}" for rate, f in figures.items()))
    return table


def _quality_rows(learnt: dict[int, dict[float, tuple[float, float]]]) -> list[Row]:
    if not learnt:
        return []
    best = {size: figures[_best(figures)][1] for size, figures in learnt.items()}
    reference = best[min(best)]
    return [
        Row(
            name=f"held-out perplexity, clusters of {size}",
            value=value,
            unit="",
            reference=reference,
            ratio=value / reference,
        )
        for size, value in best.items()
    ]


if __name__ == "__main__":
    main()
