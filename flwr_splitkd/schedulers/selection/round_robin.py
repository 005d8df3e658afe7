"""Everyone in turn."""

from __future__ import annotations

from collections.abc import Sequence

from flwr_splitkd.schedulers.view import Candidate

__all__ = ["RoundRobin"]


class RoundRobin:
    """By node id; each round goes on where the one before stopped, so that everyone gets the same number of turns."""

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the next `num_turns` nodes of the circle."""
        circle = sorted(candidate.node_id for candidate in candidates)
        start = (server_round - 1) * num_turns % max(len(circle), 1)
        return (circle[start:] + circle[:start])[:num_turns]
