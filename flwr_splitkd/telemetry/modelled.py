"""A world made of the cost model: in a simulation its clock, links and batteries take the place of real ones.

Training is real; the seconds and joules of this world are not, and everything that comes from it is named ``modelled_*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr_splitkd.costs import (
    CutTerms,
    DeviceProfile,
    Fleet,
    LinkState,
    TurnCost,
    cluster_s,
    member_turn,
    turn_cost,
)
from flwr_splitkd.errors import InfeasibleError

__all__ = ["ModelledTurn", "ModelledWorld", "Payment"]

_STEP_S = 1.0
_LONGEST_OUTAGE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledTurn:
    """What a turn took in the modelled world.

    Parameters
    ----------
    cost
        Seconds and joules with the link as it was when the turn began.
    link
        Its rates then.
    waited_s
        Seconds before that in which the device was out of reach.
    clock_s
        The world's time at the end of the turn.
    battery_j
        What is left in the device's battery; None on mains.
    lasted_s
        Seconds from its begin to its end: those of the whole cluster when several devices had their turns together; those of its
        stages when not given.
    """

    cost: TurnCost
    link: LinkState
    waited_s: float
    clock_s: float
    battery_j: float | None
    lasted_s: float | None = None

    @property
    def total_s(self) -> float:
        """Seconds that went by, the wait for the device included."""
        return (self.cost.total_s if self.lasted_s is None else self.lasted_s) + self.waited_s

    def to_json(self) -> dict[str, Any]:
        """As part of a line of ``metrics.jsonl``."""
        cost = self.cost
        return {
            "modelled_device_s": cost.device_s,
            "modelled_uplink_s": cost.uplink_s,
            "modelled_server_s": cost.server_s,
            "modelled_downlink_s": cost.downlink_s,
            "modelled_s": self.total_s,
            "modelled_j": cost.total_j,
            "modelled_device_j": cost.device_j,
            "modelled_clock_s": self.clock_s,
            "modelled_uplink_bps": self.link.uplink_bps,
            "modelled_downlink_bps": self.link.downlink_bps,
            "modelled_battery_j": self.battery_j,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Payment:
    """A turn to be taken.

    Parameters
    ----------
    device, profile
        Its name, and what it is.
    terms, option, frequency_hz
        What was decided, see `turn_cost`.
    """

    device: str
    profile: DeviceProfile
    terms: CutTerms
    option: int
    frequency_hz: float


class ModelledWorld:
    """Time, links and batteries of a fleet.

    Parameters
    ----------
    fleet
        Machines and links. Its links are asked at the world's time only.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.now_s, self.total_j = 0.0, 0.0
        self._spent_j: dict[str, float] = {}

    def link(self, device: str) -> LinkState:
        """Rates of a device's link now."""
        return self._fleet.link(device).at(self.now_s)

    def battery_j(self, device: str, profile: DeviceProfile) -> float | None:
        """What is left in a device's battery; None on mains."""
        full_j = profile.battery_j
        return None if full_j is None else max(full_j - self._spent_j.get(device, 0.0), 0.0)

    def pay(
        self, device: str, profile: DeviceProfile, terms: CutTerms, option: int, *, frequency_hz: float
    ) -> ModelledTurn:
        """Take a turn: the world's time and the device's battery go on by what it costs now.

        Parameters
        ----------
        device, profile
            Its name, and what it is.
        terms, option, frequency_hz
            What was decided, see `turn_cost`.

        Raises
        ------
        InfeasibleError
            If the device stays out of reach for an hour.
        """
        payment = Payment(device=device, profile=profile, terms=terms, option=option, frequency_hz=frequency_hz)
        return self.pay_together([payment])[0]

    def pay_together(self, payments: Sequence[Payment], *, clipped: bool = False) -> list[ModelledTurn]:
        """Take the turns of a cluster, which begins when all devices can be reached.

        Stages and the devices' joules are each device's own; the time that goes on is the cluster's, see `cluster_s`, in which
        the server spends its static and idle power once: each turn is told an equal share of it.

        Parameters
        ----------
        payments
            At least one.
        clipped
            Whether gradients are clipped.

        Raises
        ------
        InfeasibleError
            If a device stays out of reach for an hour.
        """
        started_s = self.now_s
        links = [self._reach(payment.device, started_s) for payment in payments]
        waited_s = self.now_s - started_s
        server = self._fleet.server
        costs = [
            turn_cost(
                one.terms, one.option, frequency_hz=one.frequency_hz, device=one.profile, server=server, link=link
            )
            for one, link in zip(payments, links, strict=True)
        ]
        lasted_s = costs[0].total_s
        if len(payments) > 1:
            turns = [
                member_turn(one.terms, one.option, frequency_hz=one.frequency_hz, server=server, link=link)
                for one, link in zip(payments, links, strict=True)
            ]
            lasted_s = cluster_s(turns, clipped=clipped)
            busy_s = sum(turn.server_s - one.terms.server_offset_s for one, turn in zip(payments, turns, strict=True))
            static_j = server.static_power_w * lasted_s / len(payments)
            idle_j = server.idle_power_w * max(lasted_s - busy_s, 0.0) / len(payments)
            costs = [replace(cost, server_static_j=static_j, server_idle_j=idle_j) for cost in costs]
        self.now_s += lasted_s
        for one, cost in zip(payments, costs, strict=True):
            self.total_j += cost.total_j
            self._spent_j[one.device] = self._spent_j.get(one.device, 0.0) + cost.device_j
        return [
            ModelledTurn(
                cost=cost,
                link=link,
                waited_s=waited_s,
                clock_s=self.now_s,
                battery_j=self.battery_j(one.device, one.profile),
                lasted_s=lasted_s,
            )
            for one, cost, link in zip(payments, costs, links, strict=True)
        ]

    def _reach(self, device: str, started_s: float) -> LinkState:
        """Let time go on until a device's link is up."""
        link = self.link(device)
        while min(link.uplink_bps, link.downlink_bps) <= 0:
            if self.now_s - started_s >= _LONGEST_OUTAGE_S:
                raise InfeasibleError(
                    f"Device {device} is out of reach for {_LONGEST_OUTAGE_S:g} s of modelled time; expected a link within it. "
                    "Check its trajectory or trace, and the noise and powers of its radio."
                )
            self.now_s += _STEP_S
            link = self.link(device)
        return link

    def state_dict(self) -> dict[str, Any]:
        """Time and what was spent; links draw on from where they are."""
        return {"now_s": self.now_s, "total_j": self.total_j, "spent_j": dict(self._spent_j)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another world has stopped."""
        self.now_s, self.total_j = float(state["now_s"]), float(state["total_j"])
        self._spent_j = {str(name): float(joules) for name, joules in state["spent_j"].items()}
