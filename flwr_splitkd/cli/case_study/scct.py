"""`flwr-splitkd case-study scct`: paper 2's figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_splitkd.cli.case_study.output import need_matplotlib, output_folder, progress, write
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.processes import worker_processes

if TYPE_CHECKING:
    from flwr_splitkd.case_studies.scct.claims import Verdict
    from flwr_splitkd.case_studies.scct.learning import Learned
    from flwr_splitkd.case_studies.scct.settings import Scale

__all__ = ["scct"]

_QUICK_PRETRAINING = 0.08


def scct(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and tables.")] = Path("case-study"),
    seed: Annotated[int, typer.Option(min=0, help="Of cells, searches and the first training.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings, for the band in figures 8, 10 and 11.")] = 3,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Whether to train, for figures 8, 10 and 11.")
    ] = True,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Less of all, and hardly trained models, whose scores mean little: a first look."),
    ] = False,
) -> None:
    """Work section V.B of the paper of SCCT out again: figures 6 to 11, with ours beside the paper's own algorithms.

    Seconds are modelled (table III); the training of figures 8, 10 and 11 is real, of a small chain on questions over Python's
    standard library. Its models are trained first, once: four to nine minutes on two cores. The rest takes about as long.
    """
    need_matplotlib()
    needed = {"alns": "alns", **({"torchmetrics": "metrics"} if training else {})}
    for module, extra in needed.items():
        if find_spec(module) is None:
            raise ConfigError(f"{module} is not installed, which the study needs; pip install 'flwr_splitkd[{extra}]'.")
    from flwr_splitkd.case_studies.scct import claims, figures, tables
    from flwr_splitkd.case_studies.scct.latency import algorithm1_steps, algorithm2_steps, latencies
    from flwr_splitkd.case_studies.scct.settings import Scale

    output_folder(output)
    scale = Scale.quick() if quick else Scale()
    first = algorithm1_steps(scale, seed=seed)
    with worker_processes() as pool:
        with progress("figure 7: edges") as on_progress:
            second = algorithm2_steps(scale, seed=seed, mapped=pool.map, on_progress=on_progress)
        with progress("figure 9: clocks") as on_progress:
            clocks = latencies(scale, seed=seed, mapped=pool.map, on_progress=on_progress)
    verdicts = claims.latency_verdicts([*first, *second], clocks)
    written = [
        write(output / "figure-6-algorithm-1.csv", tables.convergence_csv(first)),
        write(output / "figure-6-algorithm-1.png", figures.draw_convergence(first)),
        write(output / "figure-7-algorithm-2.csv", tables.convergence_csv(second)),
        write(output / "figure-7-algorithm-2.png", figures.draw_convergence(second)),
        write(output / "figure-9-latency.csv", tables.clocks_csv(clocks)),
        write(output / "figure-9-latency.png", figures.draw_latency(clocks)),
    ]
    if training:
        learned = _learn(scale, seed=seed, seeds=1 if quick else seeds, quick=quick)
        verdicts += claims.learning_verdicts(learned)
        written += [
            write(output / "figures-8-10-11-rounds.csv", tables.rounds_csv(learned)),
            write(output / "figures-8-10-11-time.csv", tables.time_csv(learned)),
            write(output / "figure-8-loss.png", figures.draw_learned(learned, "heldout_loss", "held-out loss, nats")),
            write(output / "figure-10-f1.png", figures.draw_learned(learned, "f1", "F1 on held-out questions")),
            write(
                output / "figure-11-em.png", figures.draw_learned(learned, "exact_match", "EM on held-out questions")
            ),
        ]
    written.append(write(output / "claims.csv", tables.claims_csv(verdicts)))
    _print_verdicts(verdicts)
    if quick:
        typer.echo(
            "Quick: few draws, short searches, hardly trained models. Leave --quick out for figures that mean something."
        )
    if not training:
        typer.echo("Without training: figures 8, 10 and 11 are left out.")
    typer.echo("")
    for path in written:
        typer.echo(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")


def _learn(scale: Scale, *, seed: int, seeds: int, quick: bool) -> Learned:
    """Make the models if need be, train along the chain and in the cloud alone, and run the clocks."""
    from flwr_splitkd.case_studies.scct.learning import lay_over_clocks
    from flwr_splitkd.small_chain.curve import Training
    from flwr_splitkd.small_chain.models import RECIPES, models_folder
    from flwr_splitkd.small_chain.training import TrainingSettings, train_all

    recipes = RECIPES.shortened(_QUICK_PRETRAINING) if quick else RECIPES
    settings = TrainingSettings(devices=3, rounds=2, iterations=5, heldout=24) if quick else TrainingSettings(devices=5)
    with progress("models, once") as on_progress:
        done = {"SLM": 0, "LLM": recipes.slm.steps, "SLM and LLM": recipes.slm.steps + recipes.llm.steps}
        total = recipes.slm.steps + recipes.llm.steps + recipes.both.steps
        models = models_folder(recipes, lambda part, step, steps, loss: on_progress(done[part] + step, total))
    kinds: tuple[Training, ...] = ("chain", "cloud-only")
    cases = [(kind, number) for kind in kinds for number in range(seed, seed + seeds)]
    with progress("figures 8, 10, 11: trainings") as on_progress:
        curves = train_all(cases, models, settings, on_progress=on_progress)
    with worker_processes() as pool, progress("figures 8, 10, 11: clocks") as on_progress:
        return lay_over_clocks(
            curves[:seeds],
            curves[seeds:],
            scale=scale,
            devices=settings.devices,
            rounds=settings.rounds,
            epochs=settings.epochs,
            iterations=settings.iterations,
            seed=seed,
            mapped=pool.map,
            on_progress=on_progress,
        )


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What the paper says, and what came out; seconds are modelled")
    for name in ("figure", "claim", "setting", "holds", "came out"):
        table.add_column(name, overflow="fold")
    for one in verdicts:
        table.add_row(one.figure, one.claim, one.setting, "yes" if one.holds else "no", one.came_out)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
