"""What chooses the devices of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flwr_splitkd.schedulers.view import Candidate

__all__ = ["SelectionPolicy"]


class SelectionPolicy(Protocol):
    """Orders the turns of a round.

    A policy with ``needs_forecast = True`` is given `Candidate.forecast`; one with a method ``spent(node_id, device_j)`` is
    told after each turn what the device has spent.
    """

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the node ids of the round's turns, in order; at most `num_turns`, each once.

        Parameters
        ----------
        candidates
            The nodes that are online.
        num_turns
            Turns of this round.
        server_round
            From 1.
        """
