"""A cell whose resources a run measures: it begins from nominal values, and every epoch corrects them.

With what a device's iterations took at its split point s:

- Its speed and its overhead: seconds on the device are ``overhead + work(s) / speed``, fitted by `Correction`. The first epoch
  gives ``speed = work(s) / seconds``; epochs at other split points tell what does not grow with layers, such as loading a batch.
- Its link: the rates of the last epoch, bytes over the seconds in which they came. Where the network really divides its band
  into subcarriers, both become one equivalent channel gain: that with which (15) takes as long as it took (`equivalent_gain`).
- The edge's speed, the bits that really travel, and the seconds of an iteration that no stage explains are learnt from all devices.

Every measured epoch stays on record for the sample average of (28). What cannot be is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload
from flwr_splitkd.costs.chain_latency import link_rates_bps
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.estimates import Correction
from flwr_splitkd.errors import ConfigError

__all__ = ["MeasuredCell", "MeasuredDevice", "equivalent_gain"]

# Beyond these a measurement says nothing of a machine or a link: FLOPs a second, bits a second, seconds of an iteration.
_SPEEDS, _RATES, _MOST_S = (1e3, 1e18), (1e2, 1e13), 1e6
# A payload this short says nothing of the link.
_LEAST_RECEIVE_S = 1e-3
# An epoch counts half as much as the one after it.
_MEMORY = 0.5
# An overhead leaves at least this share of an epoch's seconds to the layers.
_LEAST_OF_LAYERS = 0.05
# Gains that the bisection lies between: nothing gets there, and everything does.
_GAINS, _BISECTIONS = (1e-30, 1e6), 80


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDevice:
    """What a device's iterations of an epoch took, altogether.

    Parameters
    ----------
    split_point
        That they were trained at.
    num_steps
        Iterations; more than 0.
    device_s
        Seconds of its own work: batches, both passes, optimiser.
    edge_s
        Seconds of the edge's work for it.
    edge_wait_s
        Seconds in which that work was waiting for other devices'.
    uplink_s, downlink_s, uplink_bytes, downlink_bytes
        Payload, and the seconds in which it came; per iteration as many messages as steps.
    subcarriers
        beta that it had; only where there are real ones.
    """

    split_point: int
    num_steps: int
    device_s: float
    edge_s: float
    edge_wait_s: float
    uplink_s: float
    downlink_s: float
    uplink_bytes: float
    downlink_bytes: float
    subcarriers: int = 1

    def per_step(self) -> dict[str, float]:
        """Means over the iterations, as part of a line of ``metrics.jsonl``."""
        names = ("device_s", "uplink_s", "downlink_s", "edge_s", "edge_wait_s")
        means = {f"measured_{name}": getattr(self, name) / self.num_steps for name in names}
        return {**means, "measured_uplink_bps": _rate(self, "uplink"), "measured_downlink_bps": _rate(self, "downlink")}

    @property
    def each_s(self) -> float:
        """Seconds of an iteration, the cloud's aside."""
        total = self.device_s + self.uplink_s + self.downlink_s + self.edge_s + self.edge_wait_s
        return total / self.num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """On record: FLOPs of an iteration and its seconds on the device, both rates, and the gain if there is one."""

    work_flops: float
    device_s: float
    uplink_bps: float
    downlink_bps: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a device; `nominal_flops` is the speed that `compute` is relative to: that of its first epoch."""

    nominal_flops: float = 0.0
    compute: Correction = field(default_factory=Correction)
    epochs: tuple[_Epoch, ...] = ()


@dataclass
class MeasuredCell:
    """What devices, links and edge have, as far as a run has measured it. Satisfies `ChainCell`.

    Parameters
    ----------
    device_flops, named_flops
        Speed of a device before its first epoch, FLOPs a second; of some by their names.
    edge_flops
        C_e before the first epoch.
    uplink_bps, downlink_bps
        Rates of a link before the first epoch.
    cloud_bps
        R_ce. No decision depends on it, and it is not corrected.
    num_subcarriers
        None where links are as fast as they are, whatever is decided, as wired and shared ones: then only shares and split
        points are decided on. Otherwise K of a radio that gives each device its own subcarriers for real, as they are allocated.
    channel_gain
        Of a device before its first epoch; with subcarriers.
    subcarrier_hz, device_power_w, edge_power_w, noise_w_per_hz
        As in `ChainResources`; with subcarriers.
    num_records
        Epochs that stay on record for each device.

    Raises
    ------
    ConfigError
        If one is out of range.
    """

    device_flops: float = 1e12
    named_flops: Mapping[str, float] = field(default_factory=dict)
    edge_flops: float = 10e12
    uplink_bps: float = 100e6
    downlink_bps: float = 100e6
    cloud_bps: float = 1e9
    num_subcarriers: int | None = None
    channel_gain: float = 1e-9
    subcarrier_hz: float = 2e6
    device_power_w: float = 0.2
    edge_power_w: float = 10.0
    noise_w_per_hz: float = 10**-20.4
    num_records: int = 50

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("device_flops", "edge_flops", "uplink_bps", "downlink_bps", "cloud_bps", "channel_gain"):
            check_number(name, getattr(self, name), above=0)
        for name, flops in self.named_flops.items():
            check_number(f"named_flops[{name!r}]", flops, above=0, unit="FLOP/s")
        check_number("num_records", self.num_records, minimum=1)
        self._devices: dict[str, _Known] = {}
        self._edge_flops: float | None = None
        self._smashed = self._gradients = 1.0  # bits that travel, over those of the workload
        self._other_s: float | None = None
        self._told: dict[str, float] = {}
        self.resources(["0"], server_round=1, epoch=1)  # which checks the rest

    def fresh(self) -> MeasuredCell:
        """The same cell before anything was measured."""
        return replace(self)

    def introduce(self, device: str, flops: float) -> None:
        """Take a device's own word on its speed, unless `named_flops` has it."""
        if _within(flops, _SPEEDS):
            self._told[device] = flops

    @property
    def other_s(self) -> float | None:
        """Seconds of an iteration that no stage explains: the cloud's above all. None before the first epoch."""
        return self._other_s

    # ---- what is known

    def resources(self, devices: Sequence[str], *, server_round: int, epoch: int) -> ChainResources:
        """What these devices have now, as far as is known: the same in every epoch until more is measured."""
        return self._made([self._present(name) for name in devices])

    def draws(self, devices: Sequence[str], num_draws: int, rng: np.random.Generator) -> ChainResources:
        """Epochs as they may come: for each device some of those on its record, else what is nominal. Arrays are ``[Q, N]``."""
        columns = []
        for name in devices:
            known = self._devices.get(name)
            kept = [self._of(known, one) for one in known.epochs] if known else [self._present(name)]
            columns.append(np.array(kept)[rng.integers(len(kept), size=num_draws)])
        return self._made(np.stack(columns, axis=1))

    def workload(self, nominal: ChainWorkload) -> ChainWorkload:
        """A workload with the bits that really travel: codecs, padding and answers make others than its shape says."""
        return replace(
            nominal,
            smashed_bits=self._smashed * nominal.smashed_bits,
            gradient_bits=self._gradients * nominal.gradient_bits,
        )

    # ---- what is measured

    def observe(
        self, workload: ChainWorkload, devices: Mapping[str, MeasuredDevice], iteration_s: float | None = None
    ) -> list[str]:
        """Learn from an epoch.

        Parameters
        ----------
        workload
            Nominal, not corrected.
        devices
            What each device's iterations took, by its name.
        iteration_s
            What an iteration took, all devices together and the cloud included.

        Returns
        -------
        list of str
            Devices whose measurements were dropped, since they cannot be: numbers that are not finite or not above 0, and
            speeds, rates and seconds beyond any machine's.
        """
        used = {name: one for name, one in devices.items() if self._learn(name, workload, one)}
        self._learn_edge(workload, list(used.values()))
        if used and iteration_s is not None and 0 < iteration_s < _MOST_S:
            other_s = max(iteration_s - max(one.each_s for one in used.values()), 0.0)
            self._other_s = other_s if self._other_s is None else _recent(self._other_s, other_s)
        return sorted(set(devices) - set(used))

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, as JSON holds it."""
        return {
            "devices": {name: asdict(known) for name, known in self._devices.items()},
            "edge_flops": self._edge_flops,
            "smashed": self._smashed,
            "gradients": self._gradients,
            "other_s": self._other_s,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what another cell has learnt."""
        self._devices = {
            str(name): _Known(
                nominal_flops=float(known["nominal_flops"]),
                compute=Correction(**{**known["compute"], "sums": tuple(known["compute"]["sums"])}),
                epochs=tuple(_Epoch(**one) for one in known["epochs"]),
            )
            for name, known in state["devices"].items()
        }
        self._edge_flops = None if state["edge_flops"] is None else float(state["edge_flops"])
        self._smashed, self._gradients = float(state["smashed"]), float(state["gradients"])
        self._other_s = None if state["other_s"] is None else float(state["other_s"])

    # ---- inside: a row is speed, overhead, both rates, and gain

    def _learn(self, name: str, workload: ChainWorkload, one: MeasuredDevice) -> bool:
        if not (1 <= one.split_point <= workload.num_layers and one.num_steps > 0):
            return False
        seconds = (one.device_s, one.uplink_s, one.downlink_s, one.edge_s, one.edge_wait_s)
        work = float(workload.device_work_flops[one.split_point - 1])
        device_s = one.device_s / one.num_steps
        rates = {way: _rate(one, way) for way in ("uplink", "downlink")}
        can_be = all(0 <= value / one.num_steps < _MOST_S for value in seconds) and device_s > 0
        if not (can_be and _within(work / device_s, _SPEEDS) and all(_within(rate, _RATES) for rate in rates.values())):
            return False
        gain = self.channel_gain
        if self.num_subcarriers is not None:
            gain = equivalent_gain(
                self._made([(1.0, 0.0, 1.0, 1.0, gain)]),
                subcarriers=one.subcarriers,
                uplink_bits=8 * one.uplink_bytes,
                downlink_bits=8 * one.downlink_bytes,
                seconds=8 * (one.uplink_bytes / rates["uplink"] + one.downlink_bytes / rates["downlink"]),
            )
        epoch = _Epoch(
            work_flops=work,
            device_s=device_s,
            uplink_bps=rates["uplink"],
            downlink_bps=rates["downlink"],
            gain=gain,
        )
        known = self._devices.get(name) or _Known(nominal_flops=work / device_s)
        compute = known.compute.observe(measured=device_s, nominal=work / known.nominal_flops, num_steps=1)
        self._devices[name] = replace(known, compute=compute, epochs=(*known.epochs, epoch)[-self.num_records :])
        return True

    def _learn_edge(self, workload: ChainWorkload, used: Sequence[MeasuredDevice]) -> None:
        # Who runs its whole encoder says nothing of the edge's speed.
        busy = [one for one in used if workload.edge_work_flops[one.split_point - 1] > 0 and one.edge_s > 0]
        if busy:
            done = sum(one.num_steps * float(workload.edge_work_flops[one.split_point - 1]) for one in busy)
            flops = done / sum(one.edge_s for one in busy)
            if _within(flops, _SPEEDS):
                before = self._edge_flops or flops
                self._edge_flops = 1 / _recent(1 / before, 1 / flops)  # of seconds, as everywhere
        self._smashed = _bits(self._smashed, used, [one.uplink_bytes for one in used], workload.smashed_bits)
        self._gradients = _bits(self._gradients, used, [one.downlink_bytes for one in used], workload.gradient_bits)

    def _present(self, name: str) -> tuple[float, ...]:
        known = self._devices.get(name)
        if known is None:
            flops = self.named_flops.get(name) or self._told.get(name) or self.device_flops
            return (flops, 0.0, self.uplink_bps, self.downlink_bps, self.channel_gain)
        last = known.epochs[-1]
        flops = known.nominal_flops / known.compute.factor
        return (flops, known.compute.offset, last.uplink_bps, last.downlink_bps, last.gain)

    def _of(self, known: _Known, epoch: _Epoch) -> tuple[float, ...]:
        """An epoch on record, by what is known of the overhead today."""
        overhead_s = min(known.compute.offset, (1 - _LEAST_OF_LAYERS) * epoch.device_s)
        flops = epoch.work_flops / (epoch.device_s - overhead_s)
        return (flops, overhead_s, epoch.uplink_bps, epoch.downlink_bps, epoch.gain)

    def _made(self, rows: Sequence[tuple[float, ...]] | np.ndarray) -> ChainResources:
        table = np.asarray(rows, dtype=np.float64)
        if table.ndim < 2:
            raise ConfigError("A cell was asked for the resources of no devices; expected at least one.")
        wired = self.num_subcarriers is None
        return ChainResources(
            device_flops=table[..., 0],
            device_overhead_s=table[..., 1],
            uplink_bps=table[..., 2] if wired else None,
            downlink_bps=table[..., 3] if wired else None,
            channel_gain=table[..., 4],
            edge_flops=self._edge_flops or self.edge_flops,
            # Of a link that is not divided every device has one.
            num_subcarriers=table.shape[-2] if self.num_subcarriers is None else self.num_subcarriers,
            subcarrier_hz=self.subcarrier_hz,
            cloud_bps=self.cloud_bps,
            device_power_w=self.device_power_w,
            edge_power_w=self.edge_power_w,
            noise_w_per_hz=self.noise_w_per_hz,
        )


def equivalent_gain(
    resources: ChainResources, *, subcarriers: int, uplink_bits: float, downlink_bits: float, seconds: float
) -> float:
    """The channel gain with which (15) takes these seconds: by bisection of its logarithm, since more gain is less time.

    One gain stands for both directions, as in the paper, so that the sum of both terms is as measured, and not each of them. A
    link that is faster or slower than any gain makes it gets the bound that it is nearest to.

    Parameters
    ----------
    resources
        Powers, noise and width of the subcarriers, of one device; its gain is not looked at.
    subcarriers
        beta that the device had.
    uplink_bits, downlink_bits
        z^s and z^g.
    seconds
        What both took.
    """
    low, high = (math.log(gain) for gain in _GAINS)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        up, down = link_rates_bps(replace(resources, channel_gain=np.array([math.exp(middle)])), [subcarriers])
        if uplink_bits / float(up[0]) + downlink_bits / float(down[0]) > seconds:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _rate(one: MeasuredDevice, way: str) -> float:
    sides = {"uplink": (one.uplink_bytes, one.uplink_s), "downlink": (one.downlink_bytes, one.downlink_s)}
    num_bytes, seconds = sides[way]
    return 8 * num_bytes / max(seconds, _LEAST_RECEIVE_S)


def _bits(before: float, used: Sequence[MeasuredDevice], num_bytes: Sequence[float], nominal: np.ndarray) -> float:
    expected = sum(one.num_steps * float(nominal[one.split_point - 1]) for one in used)
    now = 8 * sum(num_bytes) / expected if expected > 0 else 0.0
    return now if now > 0 else before


def _recent(before: float, now: float) -> float:
    return _MEMORY * before + (1 - _MEMORY) * now


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]
