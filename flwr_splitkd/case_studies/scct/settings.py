"""Table III of the paper, and what it leaves open.

Wang et al. (SCCT), section V.A gives radio, edge, cloud link, numbers of devices and lengths. It does not give the devices' speeds
and places, the batch, the split point of SCCTS, operators and temperatures of Algorithm 2, or Q of the sample average.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flwr_splitkd.costs import ChainWorkload, MemoryLimits, ModelledCell, named_shape
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import AlnsSettings

__all__ = ["ALGORITHMS", "LIMITS", "PAPER_EDGE_FLOPS", "SLM", "Algorithms", "Scale", "cell", "workload"]

Algorithms = Literal["exact", "paper"]
ALGORITHMS: tuple[Algorithms, ...] = ("exact", "paper")
"""Ours, or the paper's Algorithms 1 and 2."""

PAPER_EDGE_FLOPS = 312e12
"""C_e of table III."""

SLM = "roberta-large/12"
"""RoBERTa-large's layers, as many as table III has: 12."""

LIMITS = MemoryLimits(edge_bytes=6e12)
"""M_e of table III; the devices' memory is not given."""

_BATCH_SIZE, _POSITIONS = 8, 384


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is worked out.

    Parameters
    ----------
    devices
        Numbers N of devices of figure 9.
    edges
        C_e in FLOPs a second: the paper's, and slower ones, since with the paper's the edge is hardly ever what is waited for.
    rounds, epochs
        Of each clock; table III has 100 and 60, which average over more channels.
    draws
        Q, epochs of the run's own records that split points are decided on.
    cells
        Cells that are drawn, for mean and spread.
    passes
        I of Algorithm 1 in figure 6.
    search
        Of Algorithm 2 in figure 9.
    long_search
        Of Algorithm 2 in figure 7.
    split_point
        Of SCCTS.
    """

    devices: tuple[int, ...] = (10, 20, 30)
    edges: tuple[float, ...] = (PAPER_EDGE_FLOPS, 31e12, 10e12)
    rounds: int = 2
    epochs: int = 20
    draws: int = 10
    cells: int = 2
    passes: int = 100
    search: AlnsSettings = field(default_factory=lambda: AlnsSettings(cooling=0.97))
    long_search: AlnsSettings = field(default_factory=lambda: AlnsSettings(cooling=0.99))
    split_point: int = 6

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("rounds", "epochs", "draws", "cells", "passes"):
            check_number(name, getattr(self, name), minimum=1)
        check_number("split_point", self.split_point, minimum=1, maximum=named_shape(SLM).num_blocks)
        if not self.devices or not self.edges:
            raise ConfigError(f"`devices` is {self.devices}, `edges` is {self.edges}; expected at least one of each.")

    @classmethod
    def quick(cls) -> Scale:
        """Less of all, for a first look."""
        return cls(
            edges=(PAPER_EDGE_FLOPS, 10e12),
            rounds=2,
            epochs=5,
            draws=3,
            cells=1,
            search=AlnsSettings(cooling=0.92),
            long_search=AlnsSettings(cooling=0.98),
        )


def workload(*, iterations: int = 60, epochs: int = 60) -> ChainWorkload:
    """Return an iteration of `SLM`, by default for the lengths J and T of table III."""
    return ChainWorkload.from_shape(
        named_shape(SLM), batch_size=_BATCH_SIZE, positions=_POSITIONS, iterations_per_epoch=iterations, epochs=epochs
    )


def cell(edge_flops: float = PAPER_EDGE_FLOPS, *, seed: int = 0) -> ModelledCell:
    """Return a cell of table III: its radio, edge and cloud link are the defaults of `ModelledCell`."""
    return ModelledCell(edge_flops=edge_flops, seed=seed)
