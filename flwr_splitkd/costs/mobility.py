"""Where a device is: along way points at constant speed, with the base station at the origin."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.errors import ConfigError

__all__ = ["URBAN_SPEED_MPS", "Trajectory", "street_trajectories"]

URBAN_SPEED_MPS = 30 / 3.6
"""30 km/h, the speed of the vehicles of Li et al., "Split Knowledge Distillation for Large Models in IoT", section V."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A way at constant speed, there and back again or round and round.

    Parameters
    ----------
    way_points
        Places on the ground as ``(x, y)`` in metres from the base station. One alone is a device that stands still.
    speed_mps
        Metres a second, at least 0.
    closed
        Whether the way goes on from the last way point to the first, instead of turning round at both ends.
    offset_m
        Metres that the device has travelled at time 0. On an open way of length L it is coming back from L to 2 L.
    """

    way_points: tuple[tuple[float, float], ...]
    speed_mps: float = URBAN_SPEED_MPS
    closed: bool = False
    offset_m: float = 0.0
    _corners: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the way, and measure it.

        Raises
        ------
        ConfigError
            If a way point is no place, two in a row are the same, or a number is out of range.
        """
        points = _places(self.way_points)
        check_number("speed_mps", self.speed_mps, minimum=0, unit="m/s")
        check_number("offset_m", self.offset_m, minimum=0, unit="m")
        if not isinstance(self.closed, bool):
            raise ConfigError(f"`closed` is {self.closed!r}; expected True or False.")
        if self.closed and len(points) < 2:
            raise ConfigError(f"`way_points` of a closed way has {len(points)} place; expected at least 2.")
        way = (*points, points[0]) if self.closed else points
        steps = [math.dist(here, there) for here, there in pairwise(way)]
        if 0.0 in steps:
            position = steps.index(0.0)
            raise ConfigError(
                f"`way_points` {position} and {(position + 1) % len(points)} are both {points[position]}; expected different "
                "places. Leave one of them out."
            )
        object.__setattr__(self, "way_points", points)
        corners = np.concatenate([[0.0], np.cumsum(steps)])
        columns = (corners, *np.array(way, dtype=np.float64).T)
        object.__setattr__(self, "_corners", tuple(tuple(map(float, column)) for column in columns))

    @property
    def length_m(self) -> float:
        """From the first way point to the last, or all the way round; 0 for a single one."""
        return self._corners[0][-1]

    @property
    def farthest_m(self) -> float:
        """Largest distance from the base station on the way. On a straight stretch it is at one of its ends."""
        return max(math.hypot(x, y) for x, y in self.way_points)

    def along_m(self, time_s: float) -> float:
        """Metres from the first way point, along the way, after some seconds; ``0 .. length_m``."""
        length = self.length_m
        if length == 0:
            return 0.0
        travelled = self.offset_m + self.speed_mps * time_s
        if self.closed:
            return travelled % length
        along = travelled % (2 * length)
        return min(along, 2 * length - along)

    def position_m(self, time_s: float) -> tuple[float, float]:
        """Place after some seconds, as ``(x, y)``."""
        along, (corners, xs, ys) = self.along_m(time_s), self._corners
        return float(np.interp(along, corners, xs)), float(np.interp(along, corners, ys))

    def distance_m(self, time_s: float) -> float:
        """Distance from the base station on the ground, after some seconds."""
        return math.hypot(*self.position_m(time_s))


def street_trajectories(
    num_vehicles: int,
    rng: np.random.Generator,
    *,
    length_m: float = 400.0,
    base_station_m: float = 20.0,
    speed_mps: float = URBAN_SPEED_MPS,
) -> tuple[Trajectory, ...]:
    """Vehicles that go up and down a straight street, which passes the base station at its middle.

    Parameters
    ----------
    num_vehicles
        At least 1.
    rng
        Where each vehicle's place and direction at time 0 are drawn from, evenly.
    length_m
        Of the street. 400 m reach 200 m to both sides, the distance between two base stations in TR 38.901, table 7.2-1 (UMi).
    base_station_m
        Distance of the base station from the street.
    speed_mps
        Of all vehicles.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    if num_vehicles < 1:
        raise ConfigError(f"`num_vehicles` is {num_vehicles}; expected at least 1.")
    check_number("length_m", length_m, above=0, unit="m")
    check_number("base_station_m", base_station_m, minimum=0, unit="m")
    ends = ((-length_m / 2, float(base_station_m)), (length_m / 2, float(base_station_m)))
    offsets = rng.uniform(0, 2 * length_m, size=num_vehicles)
    return tuple(Trajectory(way_points=ends, speed_mps=speed_mps, offset_m=float(offset)) for offset in offsets)


def _places(way_points: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(way_points, Iterable) or isinstance(way_points, str):
        raise ConfigError(f"`way_points` is {way_points!r}; expected places, such as [[-200, 20], [200, 20]].")
    points = []
    for position, point in enumerate(way_points):
        if isinstance(point, str) or not isinstance(point, Iterable) or len(pair := tuple(point)) != 2:
            raise ConfigError(f"`way_points[{position}]` is {point!r}; expected two numbers, x and y in metres.")
        for value in pair:
            check_number(f"way_points[{position}]", value, unit="m")
        points.append((float(pair[0]), float(pair[1])))
    if not points:
        raise ConfigError("`way_points` is empty; expected at least one place, such as [[0, 20]].")
    return tuple(points)
