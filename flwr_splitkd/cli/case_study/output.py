"""What the case studies' commands share: where figures and tables go, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flwr_splitkd.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["need_matplotlib", "output_folder", "progress", "write"]


def need_matplotlib() -> None:
    """Refuse to begin what cannot be drawn in the end."""
    if find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed, which draws the figures; pip install 'flwr_splitkd[report]'.")


def output_folder(path: Path) -> None:
    """Make the folder for figures and tables."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"`--output` is {path}, which is no folder: {error}. Choose another.") from error


def write(path: Path, what: str | Figure) -> Path:
    """Write a table or a figure."""
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
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is on the standard error: as a bar where that is a terminal, else a line for each tenth."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str) -> None:
        self._what, self._tenths = what, 0

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // total
        if tenths > self._tenths:
            self._tenths = tenths
            typer.echo(f"{self._what}: {done} of {total}", err=True)
