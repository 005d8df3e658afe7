"""Which devices take a turn in a round, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flwr_splitkd.schedulers.generators import generator_state, set_generator_state
from flwr_splitkd.schedulers.view import Candidate

__all__ = ["FewestTurnsFirst", "RandomOrder", "RoundRobin", "SelectionPolicy"]


class SelectionPolicy(Protocol):
    """Orders the turns of a round."""

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


class RoundRobin:
    """By node id; each round goes on where the one before stopped, so that everyone gets the same number of turns."""

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the next `num_turns` nodes of the circle."""
        circle = sorted(candidate.node_id for candidate in candidates)
        start = (server_round - 1) * num_turns % max(len(circle), 1)
        return (circle[start:] + circle[:start])[:num_turns]


class RandomOrder:
    """A fresh random choice and order each round.

    Parameters
    ----------
    rng
        Where the draws come from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return generator_state(self.rng)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another generator of the same kind was."""
        set_generator_state(self.rng, state)

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Draw `num_turns` nodes without replacement."""
        circle = sorted(candidate.node_id for candidate in candidates)
        return [circle[i] for i in self.rng.permutation(len(circle))[:num_turns]]


class FewestTurnsFirst:
    """Those with the fewest completed turns first; ties by node id. Late-comers and the once lost catch up."""

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the `num_turns` nodes that are furthest behind."""
        behind = sorted(candidates, key=lambda candidate: (candidate.turns, candidate.node_id))
        return [candidate.node_id for candidate in behind[:num_turns]]
