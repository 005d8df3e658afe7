"""A cell of modelled devices: their speed and their channel in every epoch of a run.

Wang et al. (SCCT), section III.A: device compute and channels are drawn anew at each epoch's start and stay until its end; they are
independent from round to round. What a device gets depends on its name, the epoch and the seed alone, so that runs that decide
differently meet the same resources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from flwr_splitkd.costs.chain import ChainResources
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.radio import (
    MAX_DISTANCE_M,
    SHADOWING_STD_DB,
    los_path_loss_db,
    los_probability,
    nlos_path_loss_db,
)
from flwr_splitkd.errors import ConfigError

__all__ = ["CellDevice", "ChainCell", "ModelledCell"]


@runtime_checkable
class ChainCell(Protocol):
    """What devices and edge have in an epoch."""

    def resources(self, devices: Sequence[str], *, server_round: int, epoch: int) -> ChainResources:
        """Return the resources of these devices, in this order; rounds and epochs count from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellDevice:
    """What stays of a device from epoch to epoch.

    Parameters
    ----------
    flops
        Its mean speed, FLOPs a second.
    distance_m, los
        From the edge's antenna, and whether a line of sight is likelier than not; None for one whose channel gain is named.
    gain_db
        Of its channel without shadowing, antennas included.
    """

    flops: float
    distance_m: float | None
    los: bool | None
    gain_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledCell:
    """Devices around one edge, drawn at random. The defaults are table III of the paper where it says something.

    Parameters
    ----------
    edge_flops
        C_e, FLOPs a second.
    device_flops
        Range of the devices' mean speeds, FLOPs a second, of which the logarithm is drawn evenly. The paper names none: the
        defaults are what boards of the Jetson family deliver at half precision.
    named_flops
        Mean speeds of devices by their names, instead.
    variation
        Speeds of an epoch are within this share around the mean.
    distance_m
        Range of the distances from the edge's antenna, drawn evenly over the area between. Each epoch has a line of sight or not.
    named_distance_m
        Distances of devices by their names, instead; these have a line of sight where that is likelier than not.
    named_gain_db
        Channel gains of devices by their names, in place of distance and antennas: received power over sent power.
    named_power_dbm
        What devices send with, where that is not `device_power_dbm`.
    shadowing
        Whether channels vary from epoch to epoch beyond their line of sight.
    num_subcarriers, subcarrier_hz
        K and B_s.
    device_power_dbm, edge_power_dbm
        P_d and P_e.
    device_gain_dbi, edge_gain_dbi
        G_d and G_e.
    noise_dbm_per_hz
        N_0.
    carrier_frequency_hz
        Of the path loss (TR 38.901, UMi street canyon).
    cloud_bps
        R_ce.
    shared_edge_power
        As in `ChainResources`.
    seed
        Of everything that is drawn.

    Raises
    ------
    ConfigError
        If one is out of range.
    """

    edge_flops: float = 312e12
    device_flops: tuple[float, float] = (0.5e12, 5e12)
    named_flops: Mapping[str, float] = field(default_factory=dict)
    variation: float = 0.3
    distance_m: tuple[float, float] = (20.0, 200.0)
    named_distance_m: Mapping[str, float] = field(default_factory=dict)
    named_gain_db: Mapping[str, float] = field(default_factory=dict)
    named_power_dbm: Mapping[str, float] = field(default_factory=dict)
    shadowing: bool = True
    num_subcarriers: int = 200
    subcarrier_hz: float = 2e6
    device_power_dbm: float = 23.0
    edge_power_dbm: float = 50.0
    device_gain_dbi: float = 5.0
    edge_gain_dbi: float = 20.0
    noise_dbm_per_hz: float = -174.0
    carrier_frequency_hz: float = 3.5e9
    cloud_bps: float = 1e9
    shared_edge_power: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("device_flops", "distance_m"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ConfigError(
                    f"`{name}` is {(low, high)}; expected two finite numbers above 0, the smaller one first."
                )
        for name, flops in self.named_flops.items():
            check_number(f"named_flops[{name!r}]", flops, above=0, unit="FLOP/s")
        for name, distance_m in self.named_distance_m.items():
            check_number(f"named_distance_m[{name!r}]", distance_m, above=0, maximum=MAX_DISTANCE_M, unit="m")
        for name, gain_db in self.named_gain_db.items():
            check_number(f"named_gain_db[{name!r}]", gain_db, minimum=-300, maximum=0, unit="dB")
        for name, power_dbm in self.named_power_dbm.items():
            check_number(f"named_power_dbm[{name!r}]", power_dbm, minimum=-100, maximum=100, unit="dBm")
        check_number("variation", self.variation, minimum=0, maximum=0.99)
        check_number("seed", self.seed, minimum=0)
        self.resources(["0"], server_round=1, epoch=1)  # which checks the rest

    def resources(self, devices: Sequence[str], *, server_round: int, epoch: int) -> ChainResources:
        """Return the resources of these devices in an epoch. Without devices there is nothing to return, which is an error."""
        drawn = [self._draw(name, server_round, epoch) for name in devices]
        return self._resources(devices, [flops for flops, _ in drawn], [gain_db for _, gain_db in drawn])

    def typical(self, devices: Sequence[str]) -> ChainResources:
        """Return their mean speeds, and channels without shadowing, with a line of sight where that is likelier than not."""
        means = [self.device(name) for name in devices]
        return self._resources(devices, [mean.flops for mean in means], [mean.gain_db for mean in means])

    def draws(self, devices: Sequence[str], num_draws: int) -> ChainResources:
        """Return what these devices have in the first epochs of a run's first round, with an axis of draws."""
        epochs = [self.resources(devices, server_round=1, epoch=epoch) for epoch in range(1, num_draws + 1)]
        return replace(
            epochs[0],
            device_flops=np.stack([one.device_flops for one in epochs]),
            channel_gain=np.stack([one.channel_gain for one in epochs]),
            device_power_w=np.stack([one.device_power_w for one in epochs]),
        )

    def device(self, name: str) -> CellDevice:
        """Return what stays of a device, whatever the epoch."""
        still = self._generator(name)
        low, high = self.device_flops
        flops = self.named_flops.get(name, low * (high / low) ** still.random())
        near, far = self.distance_m
        drawn_m = math.sqrt(near**2 + (far**2 - near**2) * still.random())
        if name in self.named_gain_db:
            return CellDevice(flops=flops, distance_m=None, los=None, gain_db=self.named_gain_db[name])
        distance_m = self.named_distance_m.get(name, drawn_m)
        los = float(los_probability(distance_m)) >= 0.5
        return CellDevice(flops=flops, distance_m=distance_m, los=los, gain_db=self._gain_db(distance_m, los))

    def _resources(self, devices: Sequence[str], flops: Sequence[float], gain_db: Sequence[float]) -> ChainResources:
        return ChainResources(
            device_flops=np.array(flops),
            channel_gain=np.array([10 ** (one / 10) for one in gain_db]),
            edge_flops=self.edge_flops,
            num_subcarriers=self.num_subcarriers,
            subcarrier_hz=self.subcarrier_hz,
            cloud_bps=self.cloud_bps,
            device_power_w=np.array(
                [_watts(self.named_power_dbm.get(name, self.device_power_dbm)) for name in devices]
            ),
            edge_power_w=_watts(self.edge_power_dbm),
            noise_w_per_hz=_watts(self.noise_dbm_per_hz),
            shared_edge_power=self.shared_edge_power,
        )

    def _draw(self, name: str, server_round: int, epoch: int) -> tuple[float, float]:
        """Speed and gain in dB."""
        mean = self.device(name)
        moving = self._generator(name, server_round, epoch)
        flops = mean.flops * (1 + self.variation * (2 * moving.random() - 1))
        # Drawn in any case, so that what comes after it is the same.
        luck, los, gain_db = moving.random(), mean.los is not False, mean.gain_db
        if mean.distance_m is not None and name not in self.named_distance_m:
            los = luck < float(los_probability(mean.distance_m))
            gain_db = self._gain_db(mean.distance_m, los)
        shadowing_db = SHADOWING_STD_DB["los" if los else "nlos"] * moving.standard_normal()
        return flops, gain_db - (shadowing_db if self.shadowing else 0.0)

    def _gain_db(self, distance_m: float, los: bool) -> float:
        path_loss_db = (los_path_loss_db if los else nlos_path_loss_db)(
            distance_m, carrier_frequency_hz=self.carrier_frequency_hz
        )
        return self.device_gain_dbi + self.edge_gain_dbi - float(path_loss_db)

    def _generator(self, name: str, *when: int) -> np.random.Generator:
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng([self.seed, key, *when])


def _watts(dbm: float) -> float:
    return 10 ** (dbm / 10 - 3)
