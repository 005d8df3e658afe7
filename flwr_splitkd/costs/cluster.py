"""How long a cluster takes, whose devices work at the same time and share the edge.

Each device has a link of its own. The edge computes for one cut after another, and goes on to the next step when all devices of
this one are answered. So per step, with ``d`` the device's seconds, ``u`` and ``n`` those of its links and ``e`` the edge's, a
cluster takes at least the larger of ``max_i (d_i + u_i + e_i + n_i)`` and ``sum_i e_i``; with one device it is the turn's own
sum. In between, who waits for whom is followed step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from flwr_splitkd.costs.links import LinkState
from flwr_splitkd.costs.profiles import ServerProfile
from flwr_splitkd.costs.turn import CutTerms
from flwr_splitkd.errors import ConfigError

__all__ = ["MemberTurn", "cluster_s", "member_turn"]

_FORWARD_SHARE = 1 / 3
"""Of a device's work: a backward pass costs twice its forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberTurn:
    """A device's turn as a cluster sees it; seconds are those of all its steps together.

    Parameters
    ----------
    cut
        Blocks on the device; devices of one cut are computed for together.
    num_steps
        Optimiser steps.
    device_s, uplink_s, server_s, downlink_s
        Stages of the steps.
    before_s, after_s
        Layers on their way down and up again, and what comes before the first step.
    """

    cut: int
    num_steps: int
    device_s: float
    uplink_s: float
    server_s: float
    downlink_s: float
    before_s: float = 0.0
    after_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        if self.num_steps < 0:
            raise ConfigError(f"`num_steps` is {self.num_steps}; expected at least 0.")
        for name in ("device_s", "uplink_s", "server_s", "downlink_s", "before_s", "after_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least 0 seconds.")


def member_turn(
    terms: CutTerms, option: int, *, frequency_hz: float, server: ServerProfile, link: LinkState
) -> MemberTurn:
    """Work out one option of a device's turn, as `turn_cost` does.

    Parameters
    ----------
    terms, option
        What was decided.
    frequency_hz
        The server's clock.
    server, link
        Who takes part.
    """
    busy_s = float(terms.server_cycles(server)[option]) / frequency_hz + terms.server_offset_s
    return MemberTurn(
        cut=int(terms.cuts[option]),
        num_steps=terms.num_steps,
        device_s=float(terms.device_s[option]),
        uplink_s=_seconds(float(terms.uplink_bytes[option]), link.uplink_bps),
        server_s=busy_s,
        downlink_s=_seconds(float(terms.downlink_bytes[option]), link.downlink_bps),
        before_s=_seconds(float(terms.handover_downlink_bytes[option]), link.downlink_bps)
        + float(terms.other_s[option]),
        after_s=_seconds(float(terms.handover_uplink_bytes[option]), link.uplink_bps),
    )


def cluster_s(turns: Sequence[MemberTurn], *, clipped: bool = False) -> float:
    """Seconds from a cluster's begin until the last device has handed its layers in.

    Parameters
    ----------
    turns
        Of its devices; the edge takes them by ascending cut, as given among equals.
    clipped
        Whether gradients are clipped: then no device goes on before all have sent the norms of theirs.

    Raises
    ------
    ConfigError
        If there is no turn.
    """
    if not turns:
        raise ConfigError("`turns` is empty; expected at least one.")
    order = sorted(turns, key=lambda turn: turn.cut)
    steps = [max(turn.num_steps, 1) for turn in order]
    # When each device begins a step; a device does nothing else in between.
    begins_s = [turn.before_s for turn in order]
    edge_free_s = 0.0
    for step in range(max(turn.num_steps for turn in order)):
        active = [i for i, turn in enumerate(order) if step < turn.num_steps]
        for _, together in groupby(active, key=lambda i: order[i].cut):
            members = list(together)
            arrived_s = [
                begins_s[i] + (_FORWARD_SHARE * order[i].device_s + order[i].uplink_s) / steps[i] for i in members
            ]
            edge_free_s = max(edge_free_s, *arrived_s) + sum(order[i].server_s / steps[i] for i in members)
            for i in members:
                back_s = (order[i].downlink_s + (1 - _FORWARD_SHARE) * order[i].device_s) / steps[i]
                begins_s[i] = edge_free_s + back_s
        if clipped:
            together_s = max(begins_s[i] for i in active)
            for i in active:
                begins_s[i] = together_s
    return max(begin_s + turn.after_s for begin_s, turn in zip(begins_s, order, strict=True))


def _seconds(num_bytes: float, rate_bps: float) -> float:
    if not num_bytes:
        return 0.0
    return 8 * num_bytes / rate_bps if rate_bps > 0 else math.inf
