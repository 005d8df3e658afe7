"""A cell of modelled devices: their speed and their channel in every epoch of a run.

Wang et al. (SCCT), section III.A: device compute and channels are drawn anew at each epoch's start and stay until its end; they are
independent from round to round. What a device gets depends on its name, the epoch and the seed alone, so that runs that decide
differently meet the same resources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from flwr_splitkd.costs.chain import ChainResources
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.radio import SHADOWING_STD_DB, los_path_loss_db, los_probability, nlos_path_loss_db
from flwr_splitkd.errors import ConfigError

__all__ = ["ChainCell", "ModelledCell"]


@runtime_checkable
class ChainCell(Protocol):
    """What devices and edge have in an epoch."""

    def resources(self, devices: Sequence[str], *, server_round: int, epoch: int) -> ChainResources:
        """Return the resources of these devices, in this order; rounds and epochs count from 1."""


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
        Range of the distances from the edge's antenna, drawn evenly over the area between.
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
        check_number("variation", self.variation, minimum=0, maximum=0.99)
        check_number("seed", self.seed, minimum=0)
        self.resources(["0"], server_round=1, epoch=1)  # which checks the rest

    def resources(self, devices: Sequence[str], *, server_round: int, epoch: int) -> ChainResources:
        """Return the resources of these devices in an epoch. Without devices there is nothing to return, which is an error."""
        drawn = [self._draw(name, server_round, epoch) for name in devices]
        return ChainResources(
            device_flops=np.array([flops for flops, _ in drawn]),
            channel_gain=np.array([gain for _, gain in drawn]),
            edge_flops=self.edge_flops,
            num_subcarriers=self.num_subcarriers,
            subcarrier_hz=self.subcarrier_hz,
            cloud_bps=self.cloud_bps,
            device_power_w=_watts(self.device_power_dbm),
            edge_power_w=_watts(self.edge_power_dbm),
            noise_w_per_hz=_watts(self.noise_dbm_per_hz),
            shared_edge_power=self.shared_edge_power,
        )

    def _draw(self, name: str, server_round: int, epoch: int) -> tuple[float, float]:
        """Speed and gain."""
        still = self._generator(name)
        low, high = self.device_flops
        mean = self.named_flops.get(name, low * (high / low) ** still.random())
        near, far = self.distance_m
        distance_m = math.sqrt(near**2 + (far**2 - near**2) * still.random())
        moving = self._generator(name, server_round, epoch)
        flops = mean * (1 + self.variation * (2 * moving.random() - 1))
        los = moving.random() < float(los_probability(distance_m))
        path_loss_db = (los_path_loss_db if los else nlos_path_loss_db)(
            distance_m, carrier_frequency_hz=self.carrier_frequency_hz
        )
        shadowing_db = SHADOWING_STD_DB["los" if los else "nlos"] * moving.standard_normal()
        gain_db = self.device_gain_dbi + self.edge_gain_dbi - float(path_loss_db) - shadowing_db
        return flops, 10 ** (gain_db / 10)

    def _generator(self, name: str, *when: int) -> np.random.Generator:
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng([self.seed, key, *when])


def _watts(dbm: float) -> float:
    return 10 ** (dbm / 10 - 3)
