"""Those whose battery feels the turn least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flwr_splitkd.schedulers.selection.ranking import ranked
from flwr_splitkd.schedulers.view import Candidate, Forecast

__all__ = ["EnergyAware"]


class EnergyAware:
    """The smallest share of the remaining battery first.

    A turn takes the share ``device_j / battery_j`` of what is left in the device's battery. A device whose share is over 1 is
    left out: its battery does not hold the turn, or no turn is feasible for it now. On mains the share is 0, so that devices
    on mains come before those on batteries. Of equals the fewest joules of both sides, ``total_j``, decide, then the fewest
    turns, then node id. Devices that are not known yet go first, so that they become known; those on mains whose turn is
    infeasible go last.
    """

    needs_forecast = True

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return at most `num_turns` nodes; none if nobody's battery holds a turn."""
        able = [candidate for candidate in candidates if candidate.forecast is None or _share(candidate.forecast) <= 1]
        return ranked(able, num_turns, lambda _, forecast: (_share(forecast), forecast.total_j))


def _share(forecast: Forecast) -> float:
    if forecast.battery_j is None or forecast.device_j == 0:
        return 0.0
    return forecast.device_j / forecast.battery_j if forecast.battery_j > 0 else math.inf
