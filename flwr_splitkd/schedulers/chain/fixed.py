"""Split points that stay: what the paper's SCCTS does on the large timescale."""

from __future__ import annotations

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, MemoryLimits, check_split_points
from flwr_splitkd.costs.checks import gib_at_least
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import InfeasibleError
from flwr_splitkd.schedulers.chain.bound import decision
from flwr_splitkd.schedulers.chain.objective import RoundObjective
from flwr_splitkd.schedulers.chain.policy import SplitDecision

__all__ = ["FixedSplitPoints"]

_GIB = float(1 << 30)


class FixedSplitPoints:
    """The same split points in every round: what the paper's SCCTS does on the large timescale.

    Parameters
    ----------
    split_points
        One for all devices, or one for each.
    """

    def __init__(self, split_points: int | Ints) -> None:
        self.split_points = split_points

    def choose(
        self, workload: ChainWorkload, draws: ChainResources, limits: MemoryLimits, handover_s: Float | None = None
    ) -> SplitDecision:
        """Work out what they take.

        Raises
        ------
        InfeasibleError
            If they do not fit in memory.
        """
        objective = RoundObjective(workload, draws, limits=limits, handover_s=handover_s)
        points = np.array(np.broadcast_to(self.split_points, (draws.num_devices,)))
        points = check_split_points(points, workload.num_layers, draws.num_devices)
        if not objective.fits(points[None])[0]:
            raise InfeasibleError(self._too_much(objective, points))
        values, _ = objective.evaluate(points[None])
        return decision(objective, points, float(values[0]), "fixed", (), bound=False)

    def _too_much(self, objective: RoundObjective, points: Ints) -> str:
        if not objective.allowed[np.arange(len(points)), points - 1].all():
            bound = f"; expected at most {objective.highest.min()}, what the smallest device holds. Lower it"
        else:
            left_bytes = objective.workload.edge_memory_bytes[points - 1].sum()
            bound = (
                f", which leaves {gib_at_least(left_bytes)} to the edge; expected at most {objective.edge_bytes / _GIB:.4g} GiB. "
                "Raise it"
            )
        return f"`split_points` is {self.split_points}{bound}, or let `optimize_split_points` (SCCTT) choose."
