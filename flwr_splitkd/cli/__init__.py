"""`flwr-splitkd`: one file a command.

==================  =============================================================
``new``             a Flower App that runs at once
``report``          one page about a run, or about two
``profile``         how fast this machine computes a model's blocks
``plan``            where to cut: what every cut takes; a chain's split points and shares
``case-study``      a paper's figures, reproduced
``cloud``           the cloud of a chain: an LLM, and modules of it that edges train
``ask``             one question through a chain: device, edge and cloud
``certificates``    certificates and keys, to try a deployment with
``restore-clocks``  the clocks of GPUs that killed runs have left set
``doctor``          whether this machine is fit for its role, and what to do if not
==================  =============================================================
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import typer

from flwr_splitkd.cli.ask import ask
from flwr_splitkd.cli.case_study import case_study
from flwr_splitkd.cli.certificates import certificates
from flwr_splitkd.cli.cloud import cloud
from flwr_splitkd.cli.doctor import doctor
from flwr_splitkd.cli.new import new
from flwr_splitkd.cli.plan import plan
from flwr_splitkd.cli.profile import profile
from flwr_splitkd.cli.report import report
from flwr_splitkd.cli.restore_clocks import restore_clocks
from flwr_splitkd.errors import SplitKDError

__all__ = ["app", "main"]

app = typer.Typer(
    name="flwr-splitkd",
    help="Split knowledge distillation for Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(new)
app.command()(report)
app.command()(profile)
app.command()(plan)
app.add_typer(case_study)
app.command()(cloud)
app.command()(ask)
app.command()(certificates)
app.command()(restore_clocks)
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flwr_splitkd {version('flwr_splitkd')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
    ),
) -> None:
    """Split knowledge distillation for Flower."""


def main() -> None:
    """Run the command line; an error of the package is one line, not a traceback."""
    try:
        app()
    except SplitKDError as error:
        typer.echo(f"flwr-splitkd: {error}", err=True)
        sys.exit(1)
