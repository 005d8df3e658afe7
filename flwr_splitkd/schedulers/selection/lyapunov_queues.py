"""Long-term energy budgets for devices, by virtual queues."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.selection.ranking import ranked
from flwr_splitkd.schedulers.view import Candidate, Forecast

__all__ = ["LyapunovQueues"]


class LyapunovQueues:
    """Least energy while no device spends more than its budget in the long run: drift plus penalty.

    Each device has a virtual queue of the joules that it has spent beyond its budget, 0 at first. After each round
    ``Q <- max(Q + spent - budget, 0)``, so that over ``t`` rounds it has spent at most ``t * budget + Q`` joules: while queues
    stay bounded, budgets hold on average. A round takes the devices with the smallest ``v * total_j + Q * device_j``, where
    ``device_j`` is what the device would spend in its turn and ``total_j`` what both sides would. Where the budgets can be kept
    at all, the energy comes within O(1 / v) of the least possible, and queues grow as O(v). With ``v = 0`` only budgets count.

    Devices that are not known yet go first, so that they become known; those whose turn is infeasible go last. Of equals the
    fewest turns decide, then node id. Neely, "Stochastic Network Optimization with Application to Communication and Queueing
    Systems", 2010, chapter 4.

    Parameters
    ----------
    budget_j_per_round
        What a device may spend per round on average, turn or no turn, more than 0.
    v
        Weight of the energy against the queues, in joules, at least 0.
    """

    needs_forecast = True

    def __init__(self, budget_j_per_round: float, v: float) -> None:
        if not (math.isfinite(budget_j_per_round) and budget_j_per_round > 0):
            raise ConfigError(
                f"`budget_j_per_round` is {budget_j_per_round}; expected a finite number of more than 0 joules."
            )
        if not (math.isfinite(v) and v >= 0):
            raise ConfigError(f"`v` is {v}; expected a finite number of at least 0.")
        self.budget_j_per_round, self.v = budget_j_per_round, v
        self._round = 0
        self._queues_j: dict[int, float] = {}
        self._spent_j: dict[int, float] = {}

    @property
    def queues_j(self) -> dict[int, float]:
        """The queue of each node that has one, in joules; of all others it is empty."""
        return dict(self._queues_j)

    def spent(self, node_id: int, device_j: float) -> None:
        """Take down what a device has spent in a turn, in joules.

        Raises
        ------
        ConfigError
            If it is not a finite number of at least 0.
        """
        if not (math.isfinite(device_j) and device_j >= 0):
            raise ConfigError(f"Node {node_id} has spent {device_j} J; expected a finite number of at least 0.")
        self._spent_j[node_id] = self._spent_j.get(node_id, 0.0) + device_j

    def order(self, candidates: Sequence[Candidate], num_turns: int, server_round: int) -> list[int]:
        """Return the `num_turns` nodes of least drift plus penalty; in a new round the queues move on first."""
        self._move_on(server_round)

        def drift_plus_penalty(candidate: Candidate, forecast: Forecast) -> float:
            return self.v * forecast.total_j + self._queues_j.get(candidate.node_id, 0.0) * forecast.device_j

        return ranked(candidates, num_turns, drift_plus_penalty)

    def _move_on(self, server_round: int) -> None:
        # Asked again within a round, as for its evaluation, the queues stay. A turn that ends late counts in the next one.
        if server_round <= self._round:
            return
        budget_j = (server_round - self._round) * self.budget_j_per_round
        after = {
            node_id: self._queues_j.get(node_id, 0.0) + self._spent_j.get(node_id, 0.0) - budget_j
            for node_id in {**self._queues_j, **self._spent_j}
        }
        self._queues_j = {node_id: queue_j for node_id, queue_j in after.items() if queue_j > 0}
        self._spent_j = {}
        self._round = server_round

    def state_dict(self) -> dict[str, Any]:
        """The queues, and what was spent since they moved on."""
        return {
            "round": self._round,
            "queues_j": {str(node_id): value for node_id, value in self._queues_j.items()},
            "spent_j": {str(node_id): value for node_id, value in self._spent_j.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one has stopped."""
        self._round = int(state["round"])
        self._queues_j = {int(node_id): float(value) for node_id, value in state["queues_j"].items()}
        self._spent_j = {int(node_id): float(value) for node_id, value in state["spent_j"].items()}
