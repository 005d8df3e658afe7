"""Devices of one kind after another."""

from __future__ import annotations

from collections.abc import Sequence

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.clusters import cluster_by_similarity, similarity_features
from flwr_splitkd.schedulers.selection.ranking import grouped
from flwr_splitkd.schedulers.view import Candidate, Forecast

__all__ = ["ClusteredOrder"]


class ClusteredOrder:
    """Devices of one cluster after another, so that cut and codec change seldom within a round.

    The round goes to those with the fewest completed turns, as with `FewestTurnsFirst`. They are laid out by clusters of
    similar speed, memory and link, see `similarity_features`, of all devices that can take a turn; first comes the cluster of
    the device that is furthest behind. Devices that are not known yet go first, so that they become known; those whose turn
    is infeasible go last. Li et al., "Split Knowledge Distillation for Large Models in IoT", section III, clustered
    collaborative training.

    Parameters
    ----------
    num_clusters
        At least 1; with fewer devices each is a cluster.
    """

    needs_forecast = True

    def __init__(self, num_clusters: int) -> None:
        if num_clusters < 1:
            raise ConfigError(f"`num_clusters` is {num_clusters}; expected at least 1.")
        self.num_clusters = num_clusters

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the `num_turns` nodes that are furthest behind, cluster by cluster."""
        unknown, feasible, infeasible = grouped(candidates)
        chosen = [candidate.node_id for candidate in unknown][:num_turns]
        known = [candidate.node_id for candidate, _ in feasible][: num_turns - len(chosen)]
        cluster = self._clusters(feasible)
        first: dict[int, int] = {}
        for position, node_id in enumerate(known):
            first.setdefault(cluster[node_id], position)
        chosen += sorted(known, key=lambda node_id: first[cluster[node_id]])
        return (chosen + [candidate.node_id for candidate, _ in infeasible])[:num_turns]

    def _clusters(self, known: Sequence[tuple[Candidate, Forecast]]) -> dict[int, int]:
        """The cluster of each node; by node id, so that ties are settled alike in every round."""
        if not known:
            return {}
        forecasts = {candidate.node_id: forecast for candidate, forecast in known}
        forecasts = {node_id: forecasts[node_id] for node_id in sorted(forecasts)}
        features = similarity_features(
            [forecast.device for forecast in forecasts.values()], [forecast.link for forecast in forecasts.values()]
        )
        labels = cluster_by_similarity(features, min(self.num_clusters, len(forecasts)))
        return dict(zip(forecasts, labels, strict=True))
