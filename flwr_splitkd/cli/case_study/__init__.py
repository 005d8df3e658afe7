"""`flwr-splitkd case-study`: a paper's figures, worked out again; one file a paper."""

from __future__ import annotations

import typer

from flwr_splitkd.cli.case_study.scct import scct
from flwr_splitkd.cli.case_study.split_kd import split_kd

__all__ = ["case_study"]

case_study = typer.Typer(name="case-study", help="Work a paper's figures out again.", no_args_is_help=True)
case_study.command("split-kd")(split_kd)
case_study.command("scct")(scct)
