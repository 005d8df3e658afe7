"""The link of a moving device: statistics of its channel, and that it can be repeated."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from flwr_splitkd.costs.links import Link, LinkState
from flwr_splitkd.costs.mobility import Trajectory, street_trajectories
from flwr_splitkd.costs.radio import CQI_EFFICIENCIES, GOOD, NORMAL, POOR, RadioSettings, los_probability
from flwr_splitkd.costs.radio_link import CORRELATION_DISTANCE_M, RadioLink, RadioState, correlated_field
from flwr_splitkd.errors import ConfigError

STREET = Trajectory(way_points=((-200.0, 20.0), (200.0, 20.0)))


def _states(link: RadioLink, times_s: np.ndarray) -> list[RadioState]:
    states = []
    for time_s in times_s.tolist():
        rates = link.at(time_s)
        assert link.state is not None and link.state.link == rates
        states.append(link.state)
    return states


@pytest.mark.parametrize("correlation_m", sorted(CORRELATION_DISTANCE_M.values()))
@pytest.mark.parametrize("closed", [False, True])
def test_field_has_unit_variance_and_falls_by_e_over_the_correlation_distance(
    correlation_m: float, closed: bool
) -> None:
    # 20 km and cells of 1 m: some hundreds of independent stretches even at 50 m.
    field = correlated_field(20_000, correlation_m, np.random.default_rng(7), closed=closed)
    assert field.shape == (20_000,)
    spread = math.sqrt(2 * correlation_m / 20_000)  # standard error of the mean
    assert abs(field.mean()) < 4 * spread
    assert field.std() == pytest.approx(1, abs=3 * spread)
    for metres in (1, round(correlation_m / 2), round(correlation_m), round(2 * correlation_m)):
        seen = float(np.mean(field[metres:] * field[:-metres]))
        assert seen == pytest.approx(math.exp(-metres / correlation_m), abs=0.1)


def test_field_of_a_round_way_closes() -> None:
    """Over many draws: the ends of an open way of 60 m are strangers, those of a closed one are neighbours."""
    rng = np.random.default_rng(5)
    open_ways = np.array([correlated_field(60, 10, rng) for _ in range(3000)])
    closed_ways = np.array([correlated_field(60, 10, rng, closed=True) for _ in range(3000)])
    assert np.mean(open_ways[:, 0] * open_ways[:, -1]) == pytest.approx(math.exp(-5.9), abs=0.06)
    assert np.mean(closed_ways[:, 0] * closed_ways[:, -1]) == pytest.approx(math.exp(-0.1), abs=0.06)
    assert np.mean(closed_ways[:, 0] * closed_ways[:, 30]) == pytest.approx(math.exp(-3), abs=0.06)
    for draws in (open_ways, closed_ways):  # the same everywhere
        assert draws.std(axis=0) == pytest.approx(np.ones(60), abs=0.06)


@pytest.mark.parametrize(("los", "std_db", "correlation_m"), [("los", 4.0, 10.0), ("nlos", 7.82, 13.0)])
def test_shadowing_of_a_link(los: str, std_db: float, correlation_m: float) -> None:
    # 1 m between two times; the way does not repeat.
    way = Trajectory(way_points=((-4900.0, 20.0), (4900.0, 20.0)), speed_mps=1.0)
    settings = replace(NORMAL, los=los)  # type: ignore[arg-type]
    states = _states(RadioLink(settings, way, np.random.default_rng(11)), np.arange(0.5, 9000))
    shadowing = np.array([state.shadowing_db for state in states])
    assert {state.los for state in states} == {los == "los"}
    assert shadowing.std() == pytest.approx(std_db, rel=0.08)
    assert abs(shadowing.mean()) < 0.2 * std_db
    lag = round(correlation_m)
    seen = float(np.mean(shadowing[lag:] * shadowing[:-lag])) / std_db**2
    assert seen == pytest.approx(math.exp(-1), abs=0.1)


def test_shadowing_is_the_place_s_field_in_decibels() -> None:
    """Drawn once more in the same order: with a line of sight, without one, and the line of sight itself."""
    rng = np.random.default_rng(12)
    fields = {
        los: std_db * correlated_field(400, metres, rng)
        for los, std_db, metres in (("los", 4.0, 10.0), ("nlos", 7.82, 13.0))
    }
    sight = correlated_field(400, 50.0, rng)
    for los in ("los", "nlos", "probability"):
        way = replace(STREET, speed_mps=1.0)
        link = RadioLink(replace(NORMAL, los=los), way, np.random.default_rng(12))  # type: ignore[arg-type]
        for cell, state in enumerate(_states(link, np.arange(0.5, 400))):
            if los == "probability":
                chance = float(los_probability(math.hypot(cell + 0.5 - 200, 20)))
                assert state.los == (NormalDist().cdf(sight[cell]) < chance)
            assert state.shadowing_db == fields["los" if state.los else "nlos"][cell]


def test_line_of_sight_is_as_frequent_as_the_standard_says_and_lasts() -> None:
    # Round the base station at a distance that hardly changes: a polygon of many corners.
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    points = tuple((60 * math.cos(angle), 60 * math.sin(angle)) for angle in angles)
    way = Trajectory(way_points=points, closed=True, speed_mps=1.0)
    rng = np.random.default_rng(2)
    rings = np.array(
        [[state.los for state in _states(RadioLink(NORMAL, way, rng), np.arange(0.5, 376, 5))] for _ in range(120)]
    )
    assert rings.mean() == pytest.approx(float(los_probability(60.0)), abs=0.05)
    changes = (rings[:, 1:] != rings[:, :-1]).mean()
    by_chance = 2 * rings.mean() * (1 - rings.mean())
    assert 0 < changes < 0.4 * by_chance


def test_near_the_base_station_there_is_always_a_line_of_sight() -> None:
    way = Trajectory(way_points=((-17.0, 5.0), (17.0, 5.0)))
    for seed in range(20):
        assert all(state.los for state in _states(RadioLink(POOR, way, np.random.default_rng(seed)), np.arange(0, 8.0)))


def test_the_same_times_give_the_same_rates() -> None:
    times_s = np.cumsum(np.random.default_rng(0).exponential(3, size=100))
    first, second = (_states(RadioLink(NORMAL, STREET, np.random.default_rng(9)), times_s) for _ in range(2))
    assert first == second
    other = _states(RadioLink(NORMAL, STREET, np.random.default_rng(10)), times_s)
    assert [state.path_loss_db for state in first] != [state.path_loss_db for state in other]


def test_rates_do_not_depend_on_when_somebody_asks() -> None:
    often = _states(RadioLink(NORMAL, STREET, np.random.default_rng(4)), np.arange(0, 60, 0.5))
    seldom = _states(RadioLink(NORMAL, STREET, np.random.default_rng(4)), np.arange(0, 60, 15.0))
    assert seldom == often[::30]


def test_the_way_back_finds_the_same_shadows() -> None:
    link = RadioLink(
        NORMAL, Trajectory(way_points=((-50.0, 20.0), (50.0, 20.0)), speed_mps=1), np.random.default_rng(1)
    )
    there = _states(link, np.arange(0.5, 100))
    back = _states(link, np.arange(100.5, 200))
    assert [state.path_loss_db for state in there] == [state.path_loss_db for state in reversed(back)]


def test_two_vehicles_can_share_a_street() -> None:
    ahead = replace(STREET, offset_m=STREET.speed_mps * 10)
    first = _states(RadioLink(NORMAL, ahead, np.random.default_rng(6)), np.arange(0.03, 20))
    second = _states(RadioLink(NORMAL, STREET, np.random.default_rng(6)), np.arange(10.03, 30))
    assert [state.shadowing_db for state in first] == [state.shadowing_db for state in second]


def test_a_repeated_time_draws_nothing_and_an_earlier_one_is_refused() -> None:
    rng = np.random.default_rng(3)
    link: Link = RadioLink(NORMAL, STREET, rng)
    drawn = rng.bit_generator.state
    first = link.at(5.0)
    assert link.at(5.0) is first
    assert isinstance(link, RadioLink)
    with pytest.raises(
        ConfigError, match=re.escape("`time_s` is 4.9; expected a finite number of at least 5 s. Times do not")
    ):
        link.at(4.9)
    assert link.at(5.0) is first
    link.at(6.0)
    assert rng.bit_generator.state == drawn


@pytest.mark.parametrize("time_s", [-1.0, math.nan, math.inf])
def test_times_that_are_none(time_s: float) -> None:
    with pytest.raises(ConfigError, match="`time_s` is .*; expected a finite number of at least 0 s"):
        RadioLink(NORMAL, STREET, np.random.default_rng(0)).at(time_s)


def test_state_is_readable_and_adds_up() -> None:
    """The budget worked out once more: 100 m, line of sight, 103.376 dB, no shadowing."""
    settings = RadioSettings(
        los="los",
        shadowing=False,
        device_gain_dbi=0.0,
        base_station_gain_dbi=0.0,
        noise_dbm_per_hz=-163.0,
        noise_figure_db=0.0,
        downlink_bandwidth_hz=50e6,
        gap_db=0.0,
    )
    link = RadioLink(settings, Trajectory(way_points=((0.0, 100.0),)), np.random.default_rng(0))
    assert (link.state, link.snr_db, link.cqi) == (None, None, None)
    rates = link.at(0)
    # 23 - 103.376 + 163 - 80 = 2.624 dB: log2(1 + 1.8298) = 1.5007, CQI 7. 3 dB less noise and 12 dB more power down: CQI 15.
    assert link.snr_db == pytest.approx(2.624, abs=1e-3)
    assert link.cqi == 7
    assert link.state == RadioState(
        time_s=0,
        distance_m=100,
        los=True,
        shadowing_db=0,
        path_loss_db=pytest.approx(103.376, abs=1e-4),
        uplink_snr_db=link.snr_db,
        downlink_snr_db=pytest.approx(2.624 + 12 + 10 * math.log10(2), abs=1e-3),
        uplink_cqi=7,
        downlink_cqi=15,
        link=rates,
    )
    assert rates == LinkState(uplink_bps=100e6 * 1.4766, downlink_bps=50e6 * 5.5547)


def test_shannon_has_no_cqi() -> None:
    link = RadioLink(replace(NORMAL, table="shannon"), STREET, np.random.default_rng(0))
    state = _states(link, np.array([1.0]))[0]
    assert (state.uplink_cqi, state.downlink_cqi, link.cqi) == (None, None, None)
    assert state.link.uplink_bps == pytest.approx(100e6 * math.log2(1 + 10 ** ((state.uplink_snr_db - 3) / 10)))


def test_better_channels_have_better_rates() -> None:
    """On the same streets: other settings leave the fields as they were."""
    means = []
    for settings in (GOOD, NORMAL, POOR):
        rng = np.random.default_rng(8)
        links = [RadioLink(settings, way, rng) for way in street_trajectories(20, rng)]
        states = [state for link in links for state in _states(link, np.arange(0, 90, 5.0))]
        means.append(np.mean([state.link.uplink_bps for state in states]))
        rates = {state.link.uplink_bps for state in states}
        assert rates <= {0.0, *(100e6 * efficiency for efficiency in CQI_EFFICIENCIES["cqi-1"])}
        assert len(rates) > 5
    assert means[0] > means[1] > means[2]


def test_switching_an_effect_off_leaves_the_others() -> None:
    times_s = np.arange(0, 90, 5.0)
    full, plain = (
        _states(RadioLink(replace(NORMAL, shadowing=shadowing), STREET, np.random.default_rng(8)), times_s)
        for shadowing in (True, False)
    )
    assert [state.los for state in full] == [state.los for state in plain]
    assert {state.shadowing_db for state in plain} == {0.0}
    differences = [one.path_loss_db - other.path_loss_db for one, other in zip(full, plain, strict=True)]
    assert differences == pytest.approx([state.shadowing_db for state in full])


def test_ways_that_lead_too_far() -> None:
    with pytest.raises(ConfigError, match="`way_points` reach 5001 m from the base station; expected at most 5000 m"):
        RadioLink(NORMAL, Trajectory(way_points=((0, 5001), (0, 10))), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("length_m", "correlation_m", "cell_m", "message"),
    [
        (-1, 10, 1, "`length_m` is -1; expected a finite number of at least 0 m"),
        (10, 0, 1, "`correlation_m` is 0; expected a finite number of more than 0 m"),
        (10, 10, 0, "`cell_m` is 0; expected a finite number of more than 0 m"),
    ],
)
def test_fields_that_are_none(length_m: float, correlation_m: float, cell_m: float, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        correlated_field(length_m, correlation_m, np.random.default_rng(0), cell_m=cell_m)
