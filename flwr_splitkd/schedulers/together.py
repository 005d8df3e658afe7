"""Which devices of a round have their turns together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from flwr_splitkd.schedulers.clusters import cluster_by_similarity, similarity_features
from flwr_splitkd.schedulers.view import Candidate

__all__ = ["AlikeTogether", "ClusterPolicy", "InOrder"]


class ClusterPolicy(Protocol):
    """Parts the turns of a round into clusters; one with ``needs_forecast = True`` is given `Candidate.forecast`."""

    def part(self, order: Sequence[int], size: int, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Return the round's clusters, each of at most `size` nodes; every node of `order` is in one.

        Parameters
        ----------
        order
            Node ids in the order that the selection has chosen.
        size
            At least 1.
        candidates
            What is known of these nodes.
        """


class InOrder:
    """As many as fit, in the order of the selection."""

    def part(self, order: Sequence[int], size: int, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Return the round's order, cut into pieces."""
        return [list(order[first : first + size]) for first in range(0, len(order), size)]


class AlikeTogether:
    """Devices of similar speed, memory and link, so that none waits long for another.

    They are parted by Ward's criterion, see `cluster_by_similarity`, into as many clusters as the size asks for; one that
    comes out larger is cut into pieces in the round's order. Clusters follow one another as their first devices do. Devices that
    are not known yet are clusters of their own kind, in the round's order. Li et al., "Split Knowledge Distillation for Large
    Models in IoT", section III, clustered collaborative training.
    """

    needs_forecast = True

    def part(self, order: Sequence[int], size: int, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Return clusters of similar devices."""
        forecasts = {one.node_id: one.forecast for one in candidates if one.forecast is not None}
        known = [node_id for node_id in order if node_id in forecasts]
        labels: dict[int, int] = dict.fromkeys(order, -1)
        if known:
            features = similarity_features(
                [forecasts[node_id].device for node_id in known], [forecasts[node_id].link for node_id in known]
            )
            found = cluster_by_similarity(features, math.ceil(len(known) / size))
            labels.update(zip(known, found, strict=True))
        alike: dict[int, list[int]] = {}
        for node_id in order:
            alike.setdefault(labels[node_id], []).append(node_id)
        pieces = [piece for nodes in alike.values() for piece in InOrder().part(nodes, size, candidates)]
        place = {node_id: position for position, node_id in enumerate(order)}
        return sorted(pieces, key=lambda piece: place[piece[0]])
