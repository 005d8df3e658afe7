"""Everyone in turn, by their own names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flwr_splitkd.schedulers.view import Candidate

__all__ = ["ByName"]


class ByName:
    """By the device's own name in natural order ("2" before "10"); a circle as `RoundRobin`'s.

    A simulation draws node ids anew each time, so that this order can be repeated where that of `RoundRobin` cannot. A node
    whose name is not known yet goes first, by node id, and takes no place in the circle: the circle can be repeated from the
    round on in which everyone is known. A forecast decides nothing here, so that an infeasible one changes nothing.
    """

    needs_names = True

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return who is not known yet, then the next nodes of the circle; `num_turns` together."""
        unknown = sorted(candidate.node_id for candidate in candidates if not candidate.name)
        named = sorted((_natural(candidate.name), candidate.node_id) for candidate in candidates if candidate.name)
        circle = [node_id for _, node_id in named]
        start = (server_round - 1) * num_turns % max(len(circle), 1)
        return (unknown + circle[start:] + circle[:start])[:num_turns]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Digits count as the number they are, and come before letters."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [
        (False, len(number), number)
        if (number := part.lstrip("0")) != part or part[0] in "0123456789"
        else (True, 0, part)
        for part in parts
    ]
