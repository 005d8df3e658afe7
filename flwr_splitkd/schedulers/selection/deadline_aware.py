"""As many turns as fit into a round."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.selection.ranking import grouped
from flwr_splitkd.schedulers.view import Candidate

__all__ = ["DeadlineAware"]


class DeadlineAware:
    """The shortest turns first, as many as fit one after another: the largest ``k`` with ``T_1 + ... + T_k <= deadline``.

    Taking the shortest gives the most turns. One turn at least takes place, whatever the deadline, so that the run goes on.
    Devices that are not known yet go first, so that they become known, and count as no time; those whose turn is infeasible
    are left out, unless there is nobody else: then the cut policy says why. Of equals the fewest turns decide, then node id.

    Parameters
    ----------
    round_deadline_s
        For all turns of a round, more than 0.
    """

    needs_forecast = True

    def __init__(self, round_deadline_s: float) -> None:
        if not round_deadline_s > 0:
            raise ConfigError(f"`round_deadline_s` is {round_deadline_s}; expected more than 0 seconds.")
        self.round_deadline_s = round_deadline_s

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the nodes whose turns fit, `num_turns` at most and 1 at least, if `num_turns` is."""
        unknown, feasible, infeasible = grouped(candidates)
        chosen = [candidate.node_id for candidate in unknown]
        durations: list[float] = []
        for candidate, forecast in sorted(feasible, key=lambda known: known[1].duration_s):
            durations.append(forecast.duration_s)
            if chosen and math.fsum(durations) > self.round_deadline_s:
                break
            chosen.append(candidate.node_id)
        return (chosen or [candidate.node_id for candidate, _ in infeasible[:1]])[:num_turns]
