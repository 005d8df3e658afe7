"""`flwr-splitkd report`: one page about a run, or about two."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Optional

import typer

from flwr_splitkd.errors import ConfigError, StoreError

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/<id>.")],
    other: Annotated[Optional[Path], typer.Argument(help="A second run to compare it with.")] = None,  # noqa: UP045
    output: Annotated[
        Optional[Path],  # noqa: UP045  # typer reads the annotations, also on Python 3.10
        typer.Option("--output", "-o", help="The page; report.html in the first run's folder when not given."),
    ] = None,
) -> None:
    """Write one HTML page with the figures of a run and the numbers behind them.

    The page is one file that needs no network; open it in any browser, or send it to someone. With two runs it compares
    them: both in each figure, and what differs in their settings and results.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed, which draws the figures; pip install 'flwr_splitkd[report]'.")
    from flwr_splitkd.report.html import page
    from flwr_splitkd.report.load import load_run

    runs = [load_run(path) for path in (run, other) if path is not None]
    target = output or runs[0].path / "report.html"
    text = page(runs)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"`--output` is {target}, which cannot be written: {error}.") from error
    typer.echo(f"{target} ({len(text.encode()) / 1024:.0f} KiB)")
