"""What decides on both timescales: pass your own object with the same method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, MemoryLimits
from flwr_splitkd.costs.chain_latency import ChainLatency, chain_latency
from flwr_splitkd.costs.shape import Float

__all__ = ["Allocation", "AllocationPolicy", "SplitDecision", "SplitPointPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Allocation:
    """Who gets what of the edge in an epoch. Arrays are ``[N]``, or ``[Q, N]`` for Q draws of resources.

    Parameters
    ----------
    shares
        alpha, of the edge's compute.
    subcarriers
        beta.
    latency
        What an iteration takes with them.
    method
        Who decided.
    history_s
        The slowest device's seconds after each step of a method that goes step by step.
    """

    shares: Float
    subcarriers: Ints
    latency: ChainLatency
    method: str
    history_s: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        workload: ChainWorkload,
        resources: ChainResources,
        split_points: Ints,
        *,
        shares: Float,
        subcarriers: Ints,
        method: str,
        history_s: tuple[float, ...] = (),
    ) -> Allocation:
        """Work out what a decision takes."""
        latency = chain_latency(workload, resources, split_points=split_points, subcarriers=subcarriers, shares=shares)
        return cls(shares=shares, subcarriers=subcarriers, latency=latency, method=method, history_s=history_s)

    @property
    def reason(self) -> str:
        """The decision in a line."""
        return self.explain([f"device {position}" for position in range(self.shares.shape[-1])])

    def explain(self, devices: Sequence[str]) -> str:
        """The decision in a line, with devices called by these names."""
        latency = self.latency
        if latency.each_s.ndim > 1:
            return f"{self.method}: {float(latency.slowest_s.mean()):.4g} s an iteration on average over {len(self.shares)} draws"
        slowest = int(np.argmax(latency.each_s))
        return (
            f"{self.method}: {float(latency.slowest_s):.4g} s an iteration and {latency.cloud_link_s:.4g} s of the cloud link; "
            f"{devices[slowest]} takes longest: {latency.device_s[slowest]:.4g} s of its own, {latency.link_s[slowest]:.4g} s with "
            f"{self.subcarriers[slowest]} subcarriers, {latency.edge_s[slowest]:.4g} s with {self.shares[slowest]:.3g} of the edge"
        )


@runtime_checkable
class AllocationPolicy(Protocol):
    """Decides at the start of every epoch."""

    def allocate(self, workload: ChainWorkload, resources: ChainResources, split_points: Ints) -> Allocation:
        """Give everyone a share of the edge and whole subcarriers.

        Parameters
        ----------
        workload
            What an iteration takes.
        resources
            This epoch's; or those of Q draws, each of which is then divided for itself.
        split_points
            This round's, ``1 .. L``. Shape ``[N]``.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitDecision:
    """Split points of a round, and why.

    Parameters
    ----------
    split_points
        Shape ``[N]``.
    objective_s
        (29): the hand-over, and the T epochs' seconds on average over the draws.
    handover_s
        The first of both.
    cloud_link_s
        What of it is the link to the cloud, which no decision changes.
    lower_bound_s
        No split points do better than this, whatever is allocated; 0 where it was not worked out.
    evaluations
        Sets of split points whose objective was worked out.
    method
        Who decided.
    history_s
        The objective of what was kept after each step of a method that goes step by step; it may be worse than before.
    """

    split_points: Ints
    objective_s: float
    handover_s: float
    cloud_link_s: float
    lower_bound_s: float
    evaluations: int
    method: str
    history_s: tuple[float, ...] = ()

    @property
    def gap(self) -> float:
        """How far the objective may be from the best, relative to the bound; both without the link to the cloud."""
        bound = self.lower_bound_s - self.cloud_link_s
        return (self.objective_s - self.cloud_link_s) / bound - 1 if bound > 0 else np.inf

    @property
    def reason(self) -> str:
        """The decision in a line."""
        low, high = int(self.split_points.min()), int(self.split_points.max())
        text = (
            f"{self.method}: split points {low}..{high}, {self.objective_s:.4g} s a round, of them {self.handover_s:.4g} s of "
            f"hand-over and {self.cloud_link_s:.4g} s of the cloud link"
        )
        return text + (f"; at most {100 * self.gap:.2g} % above the best" if np.isfinite(self.gap) else "")


@runtime_checkable
class SplitPointPolicy(Protocol):
    """Decides at the start of every round."""

    def choose(
        self,
        workload: ChainWorkload,
        draws: ChainResources,
        limits: MemoryLimits,
        handover_s: Float | None = None,
    ) -> SplitDecision:
        """Choose split points.

        Parameters
        ----------
        workload
            What an iteration takes.
        draws
            Resources as they may be in the round's epochs, from the run's own records.
        limits
            Memory.
        handover_s
            Seconds that each device's change to each split point takes, as `handover_table_s` gives them; None for no change at
            all to count. Shape ``[N, L]``.
        """
