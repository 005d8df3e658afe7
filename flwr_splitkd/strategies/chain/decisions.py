"""Split points and shares of a run of SCCT: from the strategy's policies, or from its planner, which learns what they led to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from logging import INFO, WARNING
from statistics import median
from typing import Any, Protocol

from flwr_splitkd.schedulers import DeviceView
from flwr_splitkd.schedulers.chain import Allocation
from flwr_splitkd.schedulers.chain.planner import ChainPlanner, ModelledEpoch
from flwr_splitkd.strategies.chain.calls import Called
from flwr_splitkd.strategies.chain.measurement import measured_since, predictions
from flwr_splitkd.strategies.console import log
from flwr_splitkd.tiers.edge.chain import ChainEdge

__all__ = ["ChainPolicies", "Decisions"]

_LEAST_SHARE = 1e-6


class ChainPolicies(Protocol):
    """Who decides; with a planner, it alone."""

    planner: ChainPlanner | None

    def split_point(self, device: DeviceView) -> int:
        """Return how many blocks the device runs in this round."""

    def shares(self, devices: Sequence[DeviceView]) -> Sequence[float]:
        """Return each device's share of the edge."""


class Decisions:
    """What was decided for the devices of the present round.

    Parameters
    ----------
    policies
        Who decides.
    edge
        Gets the shares.
    note
        Takes a line for ``metrics.jsonl``.
    """

    def __init__(self, policies: ChainPolicies, edge: ChainEdge, note: Callable[[Mapping[str, Any]], None]) -> None:
        self._policies, self._edge, self._note = policies, edge, note
        self._round: Sequence[Called] = ()
        self._views: dict[int, DeviceView] = {}
        self._lock = threading.Lock()  # a policy is asked by one thread at a time
        self._epoch = 0
        self._predicted: dict[str, dict[str, float]] = {}
        self._subcarriers: dict[str, int] = {}
        self._iteration_s: float | None = None

    def begin_round(self, called: Sequence[Called], server_round: int, *, training: bool) -> None:
        """Decide the split points of all devices of a round, before the first has come (SCCT, section III.A)."""
        planner = self._policies.planner
        with self._lock:
            self._round = called
            if planner is None:
                for one in called:
                    known = self._views.get(one.position)
                    one.split_point = self._policies.split_point(
                        self._view(
                            one,
                            server_round,
                            name=one.name,
                            num_examples=known.num_examples if known else 0,
                            num_batches=known.num_batches if known else 0,
                        )
                    )
                return
        if training:
            self._plan(planner, server_round)
        for one in called:  # an evaluation is at the split points of its round
            one.split_point = planner.split_point(one.name)

    def meet(self, one: Called, server_round: int, *, training: bool) -> None:
        """Remember what a device says of itself; who comes while others train gets its share at once."""
        hello = one.session.hello
        if hello is None:
            raise ValueError("Only a connected device has said who it is.")
        with self._lock:
            self._views[one.position] = self._view(
                one,
                server_round,
                name=hello.device_name,
                num_examples=hello.num_examples,
                num_batches=hello.num_batches,
            )
        if training and self._policies.planner is None:
            self._share()

    def begin_epoch(self, server_round: int, epoch: int) -> None:
        """Share the edge's compute until the epoch's end (alpha of the paper)."""
        planner = self._policies.planner
        if planner is None:
            self._share()
            return
        if epoch > 1:
            self._learn(planner, server_round)
        self._epoch, self._predicted, self._iteration_s = epoch, {}, None
        there = [one for one in self._round if one.record is None]
        if not there:
            return
        allocation = planner.begin_epoch([one.name for one in there], server_round, epoch)
        log(INFO, "\tround %d epoch %d: %s", server_round, epoch, allocation.reason)
        shares = dict(zip((one.position for one in there), allocation.shares.tolist(), strict=True))
        # Who runs its whole encoder needs nothing of the edge; the queue wants a weight all the same.
        self._edge.set_shares({position: max(share, _LEAST_SHARE) for position, share in shares.items()})
        self._keep(there, allocation)
        self._note(
            {
                "kind": "allocation",
                "server_round": server_round,
                "epoch": epoch,
                "shares": {one.name: shares[one.position] for one in there},
                "subcarriers": self._subcarriers,
                "reason": allocation.reason,
            }
        )

    def end_epoch(self, iterations_s: Sequence[float]) -> ModelledEpoch | None:
        """Let the planner's time pass, if there is one; `iterations_s` are the seconds of the epoch's iterations."""
        planner = self._policies.planner
        # In a round's first one devices still come, and layers change hands.
        usual_s = iterations_s[1:] if self._epoch == 1 else iterations_s
        self._iteration_s = median(usual_s) if usual_s else None
        return planner.end_epoch(len(iterations_s)) if planner is not None else None

    def end_round(self, server_round: int) -> None:
        """Let the planner learn from the last epoch, when all devices have said their last word on it."""
        if self._policies.planner is not None:
            self._learn(self._policies.planner, server_round)

    def _keep(self, there: Sequence[Called], allocation: Allocation) -> None:
        """What the epoch is expected to take, until it is known."""
        names = [one.name for one in there]
        self._subcarriers = {name: int(beta) for name, beta in zip(names, allocation.subcarriers, strict=True)}
        self._predicted = predictions(names, allocation.latency)

    def _learn(self, planner: ChainPlanner, server_round: int) -> None:
        if planner.measured is None:
            return
        measured = {}
        for one in self._round:
            reading, before, one.seen = one.meter.reading, one.seen, one.meter.reading
            found = measured_since(before, reading, one.split_point, self._subcarriers.get(one.name, 1))
            if found is not None:
                measured[one.name] = found
        if not measured:
            return
        dropped = planner.learn(measured, self._iteration_s)
        if dropped:
            log(WARNING, "\tround %d epoch %d: measured what cannot be of %s", server_round, self._epoch, dropped)
        self._note(
            {
                "kind": "measurement",
                "server_round": server_round,
                "epoch": self._epoch,
                "measured_iteration_s": self._iteration_s,
                "devices": {
                    name: {
                        "split_point": one.split_point,
                        "num_steps": one.num_steps,
                        **self._predicted.get(name, {}),
                        **one.per_step(),
                    }
                    for name, one in measured.items()
                    if name not in dropped
                },
                "dropped": dropped,
            }
        )

    def _plan(self, planner: ChainPlanner, server_round: int) -> None:
        names = [one.name for one in self._round]
        decision = planner.begin_round(names, server_round)
        log(INFO, "\tround %d: %s", server_round, decision.reason)
        self._note(
            {
                "kind": "decision",
                "server_round": server_round,
                "split_points": dict(zip(names, decision.split_points.tolist(), strict=True)),
                f"{planner.word}_objective_s": decision.objective_s,
                f"{planner.word}_handover_s": decision.handover_s,
                f"{planner.word}_lower_bound_s": decision.lower_bound_s,
                **({} if planner.measured is not None else {"modelled_clock_s": planner.clock_s}),
                "reason": decision.reason,
            }
        )

    def _share(self) -> None:
        """By the policy, between the devices that are there: at each epoch's start, and when one has come."""
        with self._lock:
            there = [one.position for one in self._round if one.session.connected and one.position in self._views]
            if there:
                shares = self._policies.shares([self._views[position] for position in there])
                self._edge.set_shares(dict(zip(there, shares, strict=True)))

    def _view(self, one: Called, server_round: int, *, name: str, num_examples: int, num_batches: int) -> DeviceView:
        return DeviceView(
            node_id=one.node_id,
            name=name,
            server_round=server_round,
            turn=one.position,
            num_blocks=self._edge.layout.num_blocks,
            num_examples=num_examples,
            num_batches=num_batches,
        )
