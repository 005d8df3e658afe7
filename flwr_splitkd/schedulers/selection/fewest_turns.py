"""Those who are behind."""

from __future__ import annotations

from collections.abc import Sequence

from flwr_splitkd.schedulers.view import Candidate

__all__ = ["FewestTurnsFirst"]


class FewestTurnsFirst:
    """Those with the fewest completed turns first; ties by node id. Late-comers and the once lost catch up."""

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the `num_turns` nodes that are furthest behind."""
        behind = sorted(candidates, key=lambda candidate: (candidate.turns, candidate.node_id))
        return [candidate.node_id for candidate in behind[:num_turns]]
