"""What measured turns say about the cost model: nominal seconds and bytes, corrected.

Stage by stage the model is ``offset * steps + factor * nominal``. Both numbers are fitted by least squares to the turns so far,
recent ones counting more, with a weak pull towards the profile's word (0 and 1). One turn settles the factor; turns with
another cut tell the factor from the offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from flwr_splitkd.costs.links import LinkState
from flwr_splitkd.costs.turn import CutTerms, TurnCost

__all__ = ["Correction", "DeviceEstimate", "EdgeEstimate", "MeasuredTurn", "correct", "relative_error"]

# A turn counts half as much as the one after it.
_MEMORY = 0.5
# The profile's word counts as this part of a turn; an offset is less likely than a wrong factor.
_PRIOR_FACTOR, _PRIOR_OFFSET = 1e-3, 3e-2
_LEAST_FACTOR = 1e-3
# A payload this short says nothing of the link.
_LEAST_RECEIVE_S = 1e-3
# A rate that changed by no more than this factor is the same link, measured again.
_SAME_LINK = 2.0
# What building a half and committing take at any cut, before it is measured: only the weak pull's unit.
_FIXED_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTurn:
    """What the data plane measured in a turn, and which option it was.

    Parameters
    ----------
    option
        Position in the turn's nominal terms.
    num_steps
        Batches that went through.
    device_s, edge_s
        Seconds of computing.
    uplink_s, downlink_s, uplink_bytes, downlink_bytes
        Payload and the seconds that it took, hand-over included.
    handover_uplink_bytes, handover_downlink_bytes
        Part of the payload.
    fixed_s
        Seconds before and after the steps: building the device's half, commit.
    other_s
        Seconds that nothing else explains.
    """

    option: int
    num_steps: int
    device_s: float
    edge_s: float
    uplink_s: float
    downlink_s: float
    uplink_bytes: float
    downlink_bytes: float
    handover_uplink_bytes: float
    handover_downlink_bytes: float
    fixed_s: float
    other_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """``offset * steps + factor * nominal`` for one stage, and the sums that it was fitted to.

    Parameters
    ----------
    offset
        Per step.
    factor
        On the nominal value.
    sums
        Weighted sums of 1, r, r^2, y and r y over the turns, with r steps per nominal value and y measured per nominal value.
    """

    offset: float = 0.0
    factor: float = 1.0
    sums: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def observe(self, *, measured: float, nominal: float, num_steps: int) -> Correction:
        """Return the correction after one more turn."""
        if not (nominal > 0 and num_steps > 0 and 0 <= measured < math.inf):
            return self
        steps, value = num_steps / nominal, measured / nominal
        new = (1.0, steps, steps**2, value, steps * value)
        sums = tuple(_MEMORY * old + one for old, one in zip(self.sums, new, strict=True))
        weight, s1, s2, y, sy = sums
        scale = s2 / weight  # makes the pull on the offset independent of units
        matrix = np.array([[s2 + _PRIOR_OFFSET * scale, s1], [s1, weight + _PRIOR_FACTOR]])
        offset, factor = np.linalg.solve(matrix, [sy, y + _PRIOR_FACTOR])
        # A part that came out negative is noise: leave it at its least and fit the other one alone.
        if offset < 0:
            offset, factor = 0.0, (y + _PRIOR_FACTOR) / (weight + _PRIOR_FACTOR)
        elif factor < _LEAST_FACTOR:
            factor = _LEAST_FACTOR
            offset = max((sy - factor * s1) / (s2 + _PRIOR_OFFSET * scale), 0.0)
        if not (math.isfinite(offset) and math.isfinite(factor)):
            return self
        return Correction(offset=float(offset), factor=float(factor), sums=sums)  # type: ignore[arg-type]  # five of them


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeEstimate:
    """What is known of the edge, and of bytes, which are the same for every device.

    Parameters
    ----------
    compute
        Of the server's seconds.
    uplink_bytes, downlink_bytes
        Of the steps' payload.
    handover
        Factor on the bytes of layers that a device hands in.
    """

    compute: Correction = Correction()
    uplink_bytes: Correction = Correction()
    downlink_bytes: Correction = Correction()
    handover: float = 1.0

    def observe(self, terms: CutTerms, turn: MeasuredTurn, *, nominal_s: float) -> EdgeEstimate:
        """Return the estimate after one more turn.

        Parameters
        ----------
        terms
            Nominal, not corrected.
        turn
            What was measured.
        nominal_s
            The server's nominal seconds for it at the clock that it ran at.
        """
        k, steps = turn.option, turn.num_steps
        handed = float(terms.handover_uplink_bytes[k])
        return EdgeEstimate(
            compute=self.compute.observe(measured=turn.edge_s, nominal=nominal_s, num_steps=steps),
            uplink_bytes=self.uplink_bytes.observe(
                measured=turn.uplink_bytes - turn.handover_uplink_bytes,
                nominal=float(terms.uplink_bytes[k]),
                num_steps=steps,
            ),
            downlink_bytes=self.downlink_bytes.observe(
                measured=turn.downlink_bytes - turn.handover_downlink_bytes,
                nominal=float(terms.downlink_bytes[k]),
                num_steps=steps,
            ),
            handover=_handover(self.handover, turn.handover_uplink_bytes, handed, first=self.compute.sums[0] == 0),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EdgeEstimate:
        """Read what `dataclasses.asdict` wrote."""
        corrections = {name: _correction(data[name]) for name in ("compute", "uplink_bytes", "downlink_bytes")}
        return cls(**corrections, handover=float(data["handover"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEstimate:
    """What is known of one device and its link.

    Parameters
    ----------
    link
        Last known rates.
    compute
        Of the device's seconds.
    fixed
        Of a turn's seconds before and after its steps: a part for each turn, and one for each block on the device, since what
        is built and committed grows with the cut. Cuts take the place of steps.
    other_s_per_step
        Seconds of a step that no stage explains.
    handover
        Factor on the bytes of layers that it is handed: it has those already that nobody trained since its last turn.
    turns
        How many were measured.
    spent_j
        What the device has spent in them, as its profile's powers and the measured seconds say.
    """

    link: LinkState
    compute: Correction = Correction()
    fixed: Correction = Correction()
    other_s_per_step: float = 0.0
    handover: float = 1.0
    turns: int = 0
    spent_j: float = 0.0

    def observe(self, terms: CutTerms, turn: MeasuredTurn, *, device_j: float = 0.0) -> DeviceEstimate:
        """Return the estimate after one more turn, in which the device spent `device_j`; `terms` are nominal."""
        per_step = turn.other_s / max(turn.num_steps, 1)
        handed = float(terms.handover_downlink_bytes[turn.option])
        first = self.turns == 0
        return DeviceEstimate(
            link=LinkState(
                uplink_bps=_rate(self.link.uplink_bps, turn.uplink_bytes, turn.uplink_s, first=first),
                downlink_bps=_rate(self.link.downlink_bps, turn.downlink_bytes, turn.downlink_s, first=first),
            ),
            compute=self.compute.observe(
                measured=turn.device_s, nominal=float(terms.device_s[turn.option]), num_steps=turn.num_steps
            ),
            fixed=self.fixed.observe(measured=turn.fixed_s, nominal=_FIXED_S, num_steps=int(terms.cuts[turn.option])),
            other_s_per_step=per_step if first else _recent(self.other_s_per_step, per_step),
            handover=_handover(self.handover, turn.handover_downlink_bytes, handed, first=first),
            turns=self.turns + 1,
            spent_j=self.spent_j + device_j,
        )

    def see(self, link: LinkState) -> DeviceEstimate:
        """Return the estimate with other rates."""
        return replace(self, link=link)

    def to_json(self) -> dict[str, Any]:
        """Write it so that it can be read again."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceEstimate:
        """Read what `to_json` wrote."""
        corrections = {name: _correction(data[name]) for name in ("compute", "fixed")}
        return cls(**{**data, **corrections, "link": LinkState(**data["link"])})


def correct(terms: CutTerms, device: DeviceEstimate, edge: EdgeEstimate) -> CutTerms:
    """Nominal terms as measurements correct them."""
    steps = terms.num_steps
    fixed_s = device.fixed.offset * terms.cuts + device.fixed.factor * _FIXED_S if device.turns else 0.0
    return replace(
        terms,
        device_s=steps * device.compute.offset + device.compute.factor * terms.device_s,
        server_flops=edge.compute.factor * terms.server_flops,
        uplink_bytes=steps * edge.uplink_bytes.offset + edge.uplink_bytes.factor * terms.uplink_bytes,
        downlink_bytes=steps * edge.downlink_bytes.offset + edge.downlink_bytes.factor * terms.downlink_bytes,
        handover_uplink_bytes=edge.handover * terms.handover_uplink_bytes,
        handover_downlink_bytes=device.handover * terms.handover_downlink_bytes,
        other_s=terms.other_s + fixed_s + steps * device.other_s_per_step,
        server_offset_s=steps * edge.compute.offset,
    )


def relative_error(predicted: TurnCost, turn: MeasuredTurn) -> dict[str, float]:
    """How far off each stage was, against what was measured; stages as in `TurnCost`."""
    pairs = {
        "device_s": (predicted.device_s, turn.device_s),
        "uplink_s": (predicted.uplink_s, turn.uplink_s),
        "server_s": (predicted.server_s, turn.edge_s),
        "downlink_s": (predicted.downlink_s, turn.downlink_s),
        "other_s": (predicted.other_s, turn.fixed_s + turn.other_s),
    }
    return {name: abs((mine - real) / real) for name, (mine, real) in pairs.items() if real}


def _rate(before_bps: float, num_bytes: float, seconds: float, *, first: bool) -> float:
    """The mean of recent rates; the newest alone if the link has become another, since older turns would only mislead."""
    if num_bytes <= 0:
        return before_bps
    now_bps = 8 * num_bytes / max(seconds, _LEAST_RECEIVE_S)
    if first or not before_bps / _SAME_LINK <= now_bps <= before_bps * _SAME_LINK:
        return now_bps
    return 1 / _recent(1 / before_bps, 1 / now_bps)  # of seconds for a bit, which is what predictions are made of


def _handover(before: float, num_bytes: float, nominal: float, *, first: bool) -> float:
    if nominal <= 0:
        return before
    now = num_bytes / nominal
    return now if first else _recent(before, now)


def _recent(before: float, now: float) -> float:
    return _MEMORY * before + (1 - _MEMORY) * now


def _correction(data: Mapping[str, Any]) -> Correction:
    return Correction(offset=data["offset"], factor=data["factor"], sums=tuple(data["sums"]))
