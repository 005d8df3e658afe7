"""`flwr-splitkd case-study`: a paper's figures, reproduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from flwr_splitkd.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flwr_splitkd.case_studies.split_kd import Outcome

__all__ = ["case_study"]


class Study(str, Enum):
    """Which paper's."""

    split_kd = "split-kd"


def case_study(
    study: Annotated[
        Study,
        typer.Argument(help='split-kd: "Split Knowledge Distillation for Large Models in IoT", section V.'),
    ] = Study.split_kd,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and tables.")] = Path("case-study"),
    seed: Annotated[int, typer.Option(min=0, help="Of streets, vehicles and channels.")] = 0,
    streets: Annotated[int, typer.Option(min=1, help="How many are drawn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="In each street.")] = 4,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer settings, for a first look.")] = False,
) -> None:
    """Reproduce a paper's case study under every setting that the paper leaves open.

    Writes figures 3 and 4 with their numbers, all outcomes, and the paper's claims held against them.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed, which draws the figures; pip install 'flwr_splitkd[report]'.")
    from flwr_splitkd.case_studies.claims import claims_csv, figure_csv, outcomes_csv
    from flwr_splitkd.case_studies.figures import draw_claims, draw_rounds
    from flwr_splitkd.case_studies.settings import REFERENCES, every_setting
    from flwr_splitkd.case_studies.split_kd import channel_states, run_study

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"`--output` is {output}, which is no folder: {error}. Choose another.") from error
    states = channel_states(np.random.default_rng(seed), streets=streets, rounds=rounds)
    with _progress("settings") as on_progress:
        outcomes = run_study(every_setting(quick=quick), states, on_progress=on_progress)
    by_setting = {outcome.setting: outcome for outcome in outcomes}
    shown = [by_setting[setting] for setting in REFERENCES]
    written = [
        _write(output / "figure-3-delay.csv", figure_csv(shown, lambda o: o.delay_s, "s")),
        _write(output / "figure-3-delay.png", draw_rounds(shown, lambda o: o.delay_s / 60, "minutes a round")),
        _write(output / "figure-4-energy.csv", figure_csv(shown, lambda o: o.energy_j, "j")),
        _write(output / "figure-4-energy.png", draw_rounds(shown, lambda o: o.energy_j / 1e3, "kJ a round")),
        _write(output / "claims.csv", claims_csv(outcomes)),
        _write(output / "claims.png", draw_claims(outcomes)),
        _write(output / "outcomes.csv", outcomes_csv(outcomes)),
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

    from flwr_splitkd.case_studies.claims import CLAIMS, verdicts

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

    from flwr_splitkd.case_studies.claims import CLAIMS, count_claims

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


def _write(path: Path, what: str | Figure) -> Path:
    try:
        if isinstance(what, str):
            path.write_text(what, encoding="utf-8")
        else:
            # Without its date and version the same study gives the same file.
            what.savefig(path, dpi=120, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}. Choose another `--output`.") from error
    return path


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is on the standard error."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
