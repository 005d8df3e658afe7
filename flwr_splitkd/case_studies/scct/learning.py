"""Figures 8, 10 and 11: what a training has learned, by round and by modelled time.

SCCTT, SCCTL and SCCTS train the same weights, up to rounding: where an encoder is split and who gets which share decide how long a
step takes, not what it does (tests/integration/chain). So one training stands for the three, and each mechanism's clock says when
it is where.
CloudO has no devices and no edge; the model has no seconds of the cloud's own, so that it has no place on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flwr_splitkd.case_studies.scct.clock import Clock, run_clock
from flwr_splitkd.case_studies.scct.latency import Mapped
from flwr_splitkd.case_studies.scct.settings import ALGORITHMS, Algorithms, Scale
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain import MECHANISMS, Mechanism
from flwr_splitkd.small_chain.curve import Curve

__all__ = ["Learned", "lay_over_clocks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """Trainings with the clocks of the mechanisms.

    Parameters
    ----------
    chain, cloud_only
        One curve for each seed.
    clocks
        For each edge, with each of the algorithms, one for each mechanism.
    iterations, epochs
        J and T of the training.
    """

    chain: tuple[Curve, ...]
    cloud_only: tuple[Curve, ...]
    clocks: tuple[Clock, ...]
    iterations: int
    epochs: int

    def round_ends_s(self, clock: Clock, *, cloud_link: bool = False) -> Float:
        """Modelled time at which each evaluation is due: at the start, and at each round's end."""
        return clock.ends_s(self.iterations, cloud_link=cloud_link)[:: self.epochs]

    def reached_by(self, clock: Clock, seconds: float, measure: Callable[[Curve], Sequence[float]]) -> float:
        """Mean over the seeds of what the last evaluation before a time has found."""
        due = self.round_ends_s(clock)
        last = int(np.searchsorted(due, seconds * (1 + 1e-9), side="right")) - 1
        return float(np.mean([measure(curve)[last] for curve in self.chain]))


def lay_over_clocks(
    chain: Sequence[Curve],
    cloud_only: Sequence[Curve],
    *,
    scale: Scale,
    devices: int,
    rounds: int,
    epochs: int,
    iterations: int,
    seed: int,
    mapped: Mapped = map,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Learned:
    """Run every mechanism's clock for the length of a training.

    Parameters
    ----------
    chain, cloud_only
        Curves of the same seeds.
    scale
        Edges, draws and search.
    devices, rounds, epochs, iterations
        Of the training.
    seed
        Of the cell.
    mapped
        As in `latencies`.
    on_progress
        Told how many clocks of how many are done.
    """
    cases = [(name, algorithms, edge) for edge in scale.edges for algorithms in ALGORITHMS for name in MECHANISMS]
    one = partial(_clock, devices=devices, scale=scale, seed=seed, iterations=iterations, epochs=epochs, rounds=rounds)
    clocks: list[Clock] = []
    for clock in mapped(one, cases):
        clocks.append(clock)
        on_progress(len(clocks), len(cases))
    return Learned(
        chain=tuple(chain),
        cloud_only=tuple(cloud_only),
        clocks=tuple(clocks),
        iterations=iterations,
        epochs=epochs,
    )


def _clock(case: tuple[Mechanism, Algorithms, float], **settings: Any) -> Clock:
    name, algorithms, edge_flops = case
    return run_clock(name, algorithms, edge_flops=edge_flops, **settings)
