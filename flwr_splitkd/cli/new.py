"""`flwr-splitkd new`: a Flower App that runs at once."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from flwr_splitkd.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # elsewhere before Python 3.11

__all__ = ["new"]

_SUFFIX = ".tmpl"


def new(
    name: Annotated[str, typer.Argument(help="The app's name, such as my-app.")],
    directory: Annotated[
        Optional[Path],  # noqa: UP045  # typer reads the annotations, also on Python 3.10
        typer.Option("--directory", "-d", help="Where to make it; a folder of the app's name here when not given."),
    ] = None,
) -> None:
    """Make a Flower App that distills a small language model on virtual devices, to start your own from.

    It needs no download: teacher, student and text are small and built in. Its README and its comments say what to replace
    with your own.
    """
    package = _package_name(name)
    folder = directory or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists; expected a new or an empty folder. Choose another name or --directory.")
    names = {"name": name, "package": package}
    try:
        for path, text in _templates(files("flwr_splitkd.cli").joinpath("template"), Path()):
            target = folder / Path(*(package if part == "package" else part for part in path.parts))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(text).substitute(names), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error}.") from error
    typer.echo(f"Made {folder}. To run it on virtual devices:\n")
    typer.echo(f"  cd {folder}")
    typer.echo("  export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1")
    typer.echo("  flwr run . --stream\n")
    typer.echo("Its README.md says what a run leaves, and what to replace with your own models and data.")
    if find_spec("ray") is None:
        typer.echo("Virtual devices need Ray, which is not installed: pip install 'flwr_splitkd[simulation]'")


def _package_name(name: str) -> str:
    """Name of the Python package; the workers of a simulation import it by this name alone."""
    package = re.sub(r"[-.]+", "_", name).lower()
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) or keyword.iskeyword(package):
        raise ConfigError(
            f"`name` is {name!r}; expected letters, digits, '-', '_' and '.', a letter first and no keyword of Python, "
            "such as my-app."
        )
    if package in sys.stdlib_module_names or find_spec(package) is not None:
        raise ConfigError(f"`name` is {name!r}, and a Python package {package!r} is installed already; choose another.")
    return package


def _templates(folder: Traversable, path: Path) -> Iterator[tuple[Path, str]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _templates(item, path / item.name)
        elif item.name.endswith(_SUFFIX):
            name = item.name.removesuffix(_SUFFIX)
            yield path / (".gitignore" if name == "gitignore" else name), item.read_text(encoding="utf-8")
