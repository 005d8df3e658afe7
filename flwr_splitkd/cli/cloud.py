"""`flwr-splitkd cloud`: the cloud of the chain device - edge - cloud."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flwr_splitkd.report.prometheus import CloudEndpoint
    from flwr_splitkd.tiers.cloud import CloudSetup

__all__ = ["cloud"]


def cloud(
    config: Annotated[Path, typer.Option(help="The cloud's configuration, cloud.toml.")],
    check: Annotated[
        bool, typer.Option("--check", help="Read the configuration, say what it means, and leave.")
    ] = False,
) -> None:
    """Serve a large language model to edges, which train a module of it for each task.

    Runs until it is interrupted (Ctrl-C or SIGTERM); then what was trained is made durable. When it is started again it goes on
    from there, and edges that are in the midst of a round go on too.
    """
    from flwr_splitkd.tiers.cloud import open_cloud
    from flwr_splitkd.tiers.cloud.config import read_cloud_config

    setup = read_cloud_config(config)
    for name, task in setup.tasks.items():
        edges = ", ".join(sorted(setup.task_edges.get(name, frozenset(setup.edges))))
        kind = type(task.peft).__name__.removesuffix("Config")
        typer.echo(f"Task {name}: {kind}, encoders {task.slm_width} wide, for {edges}")
    if check:
        _check_files(setup)
        typer.echo("The configuration can be used; the model was not loaded.")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _metrics(setup) as endpoint:  # first: a port that is taken shows before a model is loaded
        typer.echo(f"Loading {setup.llm!r} ...")
        service = open_cloud(setup)
        if endpoint is not None:
            endpoint.watch(service.reading)
        stop = threading.Event()
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # not before: there is nothing to save, and loading may take long
            signal.signal(number, lambda *_: stop.set())
        try:
            typer.echo(f"The cloud listens at {service.address}; state in {setup.state_folder}")
            stop.wait()
            typer.echo("Shutting down ...")
        finally:
            service.close()


def _check_files(setup: CloudSetup) -> None:
    """Certificates can be read, and what metrics need is there."""
    if setup.tls is not None:
        setup.tls.server_credentials()
        setup.tls.root()
    if setup.metrics is not None:
        from flwr_splitkd.report.prometheus.callback import require_library

        require_library()
        setup.metrics.tls()
        typer.echo(f"Metrics at {setup.metrics.address}")


@contextmanager
def _metrics(setup: CloudSetup) -> Iterator[CloudEndpoint | None]:
    """Serve metrics for the ``with`` block, if they are asked for."""
    if setup.metrics is None:
        yield None
        return
    from flwr_splitkd.report.prometheus import CloudEndpoint

    endpoint = CloudEndpoint(setup.metrics)
    try:
        yield endpoint
    finally:
        endpoint.close()
