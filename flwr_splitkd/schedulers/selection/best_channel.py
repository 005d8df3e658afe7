"""Those with the best link."""

from __future__ import annotations

from collections.abc import Sequence

from flwr_splitkd.schedulers.selection.ranking import ranked
from flwr_splitkd.schedulers.view import Candidate, Forecast

__all__ = ["BestChannel"]


class BestChannel:
    """The highest last known uplink rate first; of equals the higher downlink rate, then the fewest turns, then node id.

    Devices that are not known yet go first, so that they become known; those whose turn is infeasible go last. A device whose
    link stays poor may never have a turn where a round has fewer turns than there are devices.
    """

    needs_forecast = True

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the `num_turns` nodes with the best links."""
        return ranked(candidates, num_turns, _rates)


def _rates(_: Candidate, forecast: Forecast) -> tuple[float, float]:
    return -forecast.link.uplink_bps, -forecast.link.downlink_bps
