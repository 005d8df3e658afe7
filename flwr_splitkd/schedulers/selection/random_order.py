"""Whoever is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flwr_splitkd.schedulers.generators import generator_state, set_generator_state
from flwr_splitkd.schedulers.view import Candidate

__all__ = ["RandomOrder"]


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
