"""`flwr-splitkd plan --scct`: split points, shares and subcarriers of a chain, before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from flwr_splitkd.cli.plan_chain import plan_chain
from flwr_splitkd.cli.plan_chain_output import chain_json, draw_chain, print_chain
from flwr_splitkd.cli.plan_output import save_figure
from flwr_splitkd.costs import ChainFleet, ChainWorkload, chain_fleet_from_json, load_shape, table_iii_fleet
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.schedulers.chain import Mechanism

__all__ = ["ChainOptions", "show_chain_plan"]

# AdamW's, which a device or the edge keeps for what it trains, whether they are handed over or not.
_KEPT_MOMENTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainOptions:
    """The command's options.

    Parameters
    ----------
    fleet
        Its file; table III's when not given.
    slm
        The devices' encoder.
    batch_size, positions, iterations, epochs, value_bytes, moments
        The work, as in `ChainWorkload.from_shape`.
    mechanism, split_point, literal, seed
        Who decides, as in `mechanism`; the seed is also that of speeds and channels.
    draws, edge_memory
        In place of the fleet's; the latter in GiB.
    """

    fleet: Path | None
    slm: str
    batch_size: int
    positions: int
    iterations: int
    epochs: int
    value_bytes: float
    moments: int
    mechanism: Mechanism
    split_point: int
    literal: bool
    draws: int | None
    edge_memory: float | None
    seed: int


def show_chain_plan(options: ChainOptions, *, as_json: bool, plot: Path | None) -> None:
    """Plan a chain's round, and show it.

    Raises
    ------
    ConfigError
        If an option, or something in the fleet's file, is out of range.
    InfeasibleError
        If memory or subcarriers are not enough.
    StoreError
        If the picture cannot be written.
    """
    shape = load_shape(options.slm)
    workload = ChainWorkload.from_shape(
        shape,
        batch_size=options.batch_size,
        positions=options.positions,
        iterations_per_epoch=options.iterations,
        epochs=options.epochs,
        value_bytes=options.value_bytes,
        weight_bytes=options.value_bytes,
        moments=options.moments,
        kept_moments=max(options.moments, _KEPT_MOMENTS),
    )
    planned = plan_chain(
        _fleet(options),
        shape,
        workload,
        name=options.mechanism,
        split_point=options.split_point,
        literal=options.literal,
        seed=options.seed,
    )
    if plot is not None:
        save_figure(draw_chain(planned), plot)
    batch = (options.batch_size, options.positions)
    if as_json:
        typer.echo(json.dumps(chain_json(planned, batch), indent=2, allow_nan=False))
    else:
        print_chain(planned, batch)
    if plot is not None:
        typer.echo(f"\n{plot}", err=as_json)


def _fleet(options: ChainOptions) -> ChainFleet:
    if options.fleet is None:
        fleet = table_iii_fleet(seed=options.seed)
    else:
        fleet = chain_fleet_from_json(options.fleet, seed=options.seed)
    if options.draws is not None:
        check_number("draws", options.draws, minimum=1, maximum=1000)
        fleet = replace(fleet, num_draws=options.draws)
    if options.edge_memory is not None:
        check_number("edge_memory", options.edge_memory, above=0, unit="GiB")
        fleet = replace(fleet, edge_bytes=options.edge_memory * 2**30)
    return fleet
