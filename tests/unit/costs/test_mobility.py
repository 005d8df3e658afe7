"""Ways and where a device is on them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs.mobility import URBAN_SPEED_MPS, Trajectory, street_trajectories
from flwr_splitkd.errors import ConfigError


def test_there_and_back() -> None:
    way = Trajectory(way_points=((-30, 40), (30, 40)), speed_mps=10)
    assert way.length_m == 60
    places = [way.position_m(time_s) for time_s in (0, 3, 6, 9, 12, 15)]
    assert places == [(-30, 40), (0, 40), (30, 40), (0, 40), (-30, 40), (0, 40)]
    assert [way.distance_m(time_s) for time_s in (0, 3, 6)] == [50, 40, 50]
    assert [way.along_m(time_s) for time_s in (1, 11, 13)] == [10, 10, 10]


def test_round_and_round() -> None:
    square = Trajectory(way_points=((0, 0), (10, 0), (10, 10), (0, 10)), speed_mps=1, closed=True)
    assert square.length_m == 40
    assert square.position_m(35) == (0, 5)
    assert square.position_m(40) == square.position_m(0) == (0, 0)
    assert square.position_m(55) == (10, 5)
    assert square.distance_m(55) == math.hypot(10, 5)
    assert square.farthest_m == math.hypot(10, 10)


def test_corners_are_rounded_by_nobody() -> None:
    way = Trajectory(way_points=((0, 3), (4, 3), (4, 0)), speed_mps=1)
    assert [way.position_m(time_s) for time_s in (2, 4, 5.5, 7, 8)] == [(2, 3), (4, 3), (4, 1.5), (4, 0), (4, 1)]


def test_start_along_the_way_and_on_the_way_back() -> None:
    ends = ((0.0, 1.0), (100.0, 1.0))
    out = Trajectory(way_points=ends, speed_mps=10, offset_m=70)
    back = Trajectory(way_points=ends, speed_mps=10, offset_m=130)
    assert out.position_m(0) == back.position_m(0) == (70, 1)
    assert (out.position_m(1), back.position_m(1)) == ((80, 1), (60, 1))


def test_speed_is_kept_on_every_way() -> None:
    rng = np.random.default_rng(3)
    points = tuple((float(x), float(y)) for x, y in rng.uniform(-100, 100, size=(6, 2)))
    for closed in (False, True):
        way = Trajectory(way_points=points, closed=closed)
        assert way.speed_mps == pytest.approx(8.3333, abs=1e-4)
        places = np.array([way.position_m(time_s) for time_s in np.arange(0, 120, 0.01)])
        steps = np.hypot(*np.diff(places, axis=0).T)
        # Shorter than speed x time only where a corner lies within the step.
        assert (steps <= URBAN_SPEED_MPS * 0.01 * (1 + 1e-6)).all()
        assert np.median(steps) == pytest.approx(URBAN_SPEED_MPS * 0.01)
        assert np.hypot(*places.T).max() <= way.farthest_m


def test_standing_still() -> None:
    parked = Trajectory(way_points=((3, 4),))
    assert (parked.length_m, parked.along_m(99), parked.distance_m(99)) == (0, 0, 5)
    stopped = Trajectory(way_points=((0, 0), (8, 0)), speed_mps=0, offset_m=6)
    assert [stopped.distance_m(time_s) for time_s in (0, 50)] == [6, 6]


def test_vehicles_of_a_street() -> None:
    street = street_trajectories(500, np.random.default_rng(1), length_m=300, base_station_m=15, speed_mps=5)
    assert street == street_trajectories(500, np.random.default_rng(1), length_m=300, base_station_m=15, speed_mps=5)
    assert street != street_trajectories(500, np.random.default_rng(2), length_m=300, base_station_m=15, speed_mps=5)
    starts = np.array([vehicle.position_m(0) for vehicle in street])
    assert (starts[:, 1] == 15).all() and np.abs(starts[:, 0]).max() <= 150
    # Evenly over the street: 125 of 500 in each quarter, and half of them each way.
    quarters = np.histogram(starts[:, 0], bins=4, range=(-150, 150))[0]
    assert quarters.min() > 90
    away = sum(vehicle.offset_m < 300 for vehicle in street)
    assert 200 < away < 300
    # It passes the base station, as near as the street does.
    assert min(street[0].distance_m(time_s) for time_s in np.arange(0, 60, 0.05)) == pytest.approx(15, abs=0.01)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"way_points": ()}, "`way_points` is empty; expected at least one place"),
        ({"way_points": 7}, "`way_points` is 7; expected places"),
        ({"way_points": "ab"}, "`way_points` is 'ab'; expected places"),
        ({"way_points": ((1, 2), (3,))}, "`way_points[1]` is (3,); expected two numbers"),
        ({"way_points": ((1, 2), "xy")}, "`way_points[1]` is 'xy'; expected two numbers"),
        ({"way_points": ((1, math.nan),)}, "`way_points[0]` is nan; expected a finite number m"),
        ({"way_points": ((1, "2"),)}, "`way_points[0]` is '2'; expected a finite number m"),
        (
            {"way_points": ((0, 0), (1, 2), (1, 2))},
            "`way_points` 1 and 2 are both (1.0, 2.0); expected different places",
        ),
        ({"way_points": ((1, 2), (3, 4), (1, 2)), "closed": True}, "`way_points` 2 and 0 are both (1.0, 2.0)"),
        ({"way_points": ((1, 2),), "closed": True}, "`way_points` of a closed way has 1 place; expected at least 2"),
        ({"way_points": ((0, 0), (1, 2)), "closed": "no"}, "`closed` is 'no'; expected True or False"),
        (
            {"way_points": ((0, 0), (1, 2)), "speed_mps": -1},
            "`speed_mps` is -1; expected a finite number of at least 0 m/s",
        ),
        (
            {"way_points": ((0, 0), (1, 2)), "offset_m": math.inf},
            "`offset_m` is inf; expected a finite number of at least 0 m",
        ),
    ],
)
def test_ways_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Trajectory(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_vehicles": 0}, "`num_vehicles` is 0; expected at least 1"),
        ({"length_m": 0}, "`length_m` is 0; expected a finite number of more than 0 m"),
        ({"base_station_m": -1}, "`base_station_m` is -1; expected a finite number of at least 0 m"),
        ({"speed_mps": -1}, "`speed_mps` is -1; expected a finite number of at least 0 m/s"),
    ],
)
def test_streets_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        street_trajectories(**{"num_vehicles": 1, "rng": np.random.default_rng(0), **values})
