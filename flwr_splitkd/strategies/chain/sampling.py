"""Which of the connected nodes a round calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["sample_nodes"]


def sample_nodes(nodes: Sequence[int], count: int, *, seed: int, server_round: int, evaluating: bool) -> list[int]:
    """Draw some nodes at random, for each round anew and in every run with this seed alike; they stay in their order.

    Parameters
    ----------
    nodes
        In the order of the devices' places in the run, so that the draw depends on who they are, and not on Flower's ids.
    count
        At most all.
    seed, server_round, evaluating
        What the draw is for.
    """
    rng = np.random.default_rng([seed, server_round, int(evaluating)])
    drawn = rng.choice(len(nodes), min(count, len(nodes)), replace=False)
    return [nodes[place] for place in sorted(drawn.tolist())]
