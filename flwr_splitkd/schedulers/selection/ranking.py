"""What the policies that look ahead have in common: who is not known yet, who can take a turn, who cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flwr_splitkd.schedulers.view import Candidate, Forecast

__all__ = ["grouped", "ranked"]

Known = tuple[Candidate, Forecast]


def grouped(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Known], list[Known]]:
    """Part candidates without a forecast, with a feasible one, and with an infeasible one or one that never ends.

    Each group has the fewest completed turns first; ties by node id.
    """
    unknown: list[Candidate] = []
    feasible: list[Known] = []
    infeasible: list[Known] = []
    for candidate in sorted(candidates, key=lambda candidate: (candidate.turns, candidate.node_id)):
        forecast = candidate.forecast
        if forecast is None:
            unknown.append(candidate)
        else:
            # A fixed cut has no say about a link that is down: its turn lasts for ever.
            able = not forecast.infeasible and math.isfinite(forecast.duration_s)
            (feasible if able else infeasible).append((candidate, forecast))
    return unknown, feasible, infeasible


def ranked(candidates: Sequence[Candidate], num_turns: int, key: Callable[[Candidate, Forecast], Any]) -> list[int]:
    """Order node ids: who is not known yet, so that it becomes known; the feasible, least key first; the infeasible."""
    unknown, feasible, infeasible = grouped(candidates)
    best = [candidate for candidate, _ in sorted(feasible, key=lambda known: key(*known))]
    last = [candidate for candidate, _ in infeasible]
    return [candidate.node_id for candidate in (unknown + best + last)[:num_turns]]
