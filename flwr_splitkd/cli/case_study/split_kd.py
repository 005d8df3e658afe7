"""`flwr-splitkd case-study split-kd`: paper 1's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from flwr_splitkd.cli.case_study.output import need_matplotlib, output_folder, progress, write

if TYPE_CHECKING:
    from flwr_splitkd.case_studies.split_kd.study import Outcome

__all__ = ["split_kd"]


def split_kd(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and tables.")] = Path("case-study"),
    seed: Annotated[int, typer.Option(min=0, help="Of streets, vehicles and channels.")] = 0,
    streets: Annotated[int, typer.Option(min=1, help="How many are drawn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="In each street.")] = 4,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer settings, for a first look.")] = False,
) -> None:
    """Work out section V of "Split Knowledge Distillation for Large Models in IoT", under every setting that it leaves open.

    Writes figures 3 and 4 with their numbers, all outcomes, and the paper's claims held against them.
    """
    need_matplotlib()
    from flwr_splitkd.case_studies.split_kd.claims import claims_csv, figure_csv, outcomes_csv
    from flwr_splitkd.case_studies.split_kd.figures import draw_claims, draw_rounds
    from flwr_splitkd.case_studies.split_kd.settings import REFERENCES, every_setting
    from flwr_splitkd.case_studies.split_kd.study import channel_states, run_study

    output_folder(output)
    states = channel_states(np.random.default_rng(seed), streets=streets, rounds=rounds)
    with progress("settings") as on_progress:
        outcomes = run_study(every_setting(quick=quick), states, on_progress=on_progress)
    by_setting = {outcome.setting: outcome for outcome in outcomes}
    shown = [by_setting[setting] for setting in REFERENCES]
    written = [
        write(output / "figure-3-delay.csv", figure_csv(shown, lambda o: o.delay_s, "s")),
        write(output / "figure-3-delay.png", draw_rounds(shown, lambda o: o.delay_s / 60, "minutes a round")),
        write(output / "figure-4-energy.csv", figure_csv(shown, lambda o: o.energy_j, "j")),
        write(output / "figure-4-energy.png", draw_rounds(shown, lambda o: o.energy_j / 1e3, "kJ a round")),
        write(output / "claims.csv", claims_csv(outcomes)),
        write(output / "claims.png", draw_claims(outcomes)),
        write(output / "outcomes.csv", outcomes_csv(outcomes)),
    ]
    _print_references(shown)
    _print_counts(outcomes)
    typer.echo("")
    for path in written:
        typer.echo(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")


def _print_references(shown: Sequence[Outcome]) -> None:
    """The settings of the figures: each claim in its worst channel."""
    from rich.console import Console
    from rich.table import Table

    from flwr_splitkd.case_studies.split_kd.claims import CLAIMS, verdicts

    table = Table(title="The settings of the figures: reduction in the worst channel, and its spread over rounds")
    table.add_column("models, baselines' clock", no_wrap=True)
    for claim in CLAIMS:
        table.add_column(f"{claim.name.replace('-', ' ')} ({claim.at_least:.0%})", justify="right")
    for outcome in shown:
        cells = []
        for verdict in verdicts(outcome):
            spread = verdict.spreads[verdict.reductions.index(verdict.worst)]
            cells.append(f"{verdict.worst:.1%} ± {spread:.1%}\n{'reached' if verdict.reached else 'not reached'}")
        blocks = outcome.setting.models.split("-bf16")[0]
        table.add_row(f"{blocks}, {outcome.setting.clock}", *cells)
    Console().print(table)


def _print_counts(outcomes: Sequence[Outcome]) -> None:
    """In how many settings each claim is reached."""
    from rich.console import Console
    from rich.table import Table

    from flwr_splitkd.case_studies.split_kd.claims import CLAIMS, count_claims

    table = Table(title="All settings: how many reach each claim, and from what to what they reduce")
    table.add_column("baselines' clock")
    for claim in CLAIMS:
        table.add_column(f"{claim.name.replace('-', ' ')} ({claim.at_least:.0%})", justify="right")
    table.add_column("first two", justify="right")
    table.add_column("all three", justify="right")
    for count in count_claims(outcomes):
        ranges = zip(count.reached, count.least, count.most, strict=True)
        table.add_row(
            count.clock,
            *(f"{reached} of {count.settings}\n{least:.0%} to {most:.0%}" for reached, least, most in ranges),
            str(count.delay_and_energy),
            str(count.every),
        )
    Console().print(table)
