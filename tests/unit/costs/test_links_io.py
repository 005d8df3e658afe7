"""Links from their descriptions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs.links import WiredLink
from flwr_splitkd.costs.links_io import link_from_json
from flwr_splitkd.costs.mobility import Trajectory, street_trajectories
from flwr_splitkd.costs.radio import GOOD, NORMAL, POOR, RadioSettings
from flwr_splitkd.costs.radio_link import RadioLink
from flwr_splitkd.costs.trace import TraceLink
from flwr_splitkd.errors import ConfigError, DataError


def _radio(description: Any, seed: int = 0) -> RadioLink:
    link = link_from_json(description, rng=np.random.default_rng(seed))
    assert isinstance(link, RadioLink)
    return link


@pytest.mark.parametrize(
    ("name", "rate_bps"),
    [("wired-100m", 1e8), ("wired-1g", 1e9), ("wired-2.5g", 2.5e9), ("wired-64k", 64e3)],
)
def test_wired_by_name(name: str, rate_bps: float) -> None:
    assert link_from_json(name) == WiredLink(uplink_bps=rate_bps, downlink_bps=rate_bps)


@pytest.mark.parametrize(("name", "settings"), [("good", GOOD), ("normal", NORMAL), ("poor", POOR)])
def test_radio_by_name_is_a_vehicle_in_a_street(name: str, settings: RadioSettings) -> None:
    link = _radio(name, seed=3)
    assert link.settings == settings
    assert link.trajectory == street_trajectories(1, np.random.default_rng(3))[0]
    assert link.trajectory != _radio(name, seed=4).trajectory
    assert [link.at(time_s) for time_s in (0, 9)] == [_radio(name, seed=3).at(time_s) for time_s in (0, 9)]


def test_wired_by_fields() -> None:
    description = json.loads('{"kind": "wired", "uplink_bps": 2e7, "downlink_bps": 100000000}')
    assert link_from_json(description) == WiredLink(uplink_bps=2e7, downlink_bps=1e8)
    assert description["kind"] == "wired", "the description is left as it was"


def test_trace_by_fields(tmp_path: Path) -> None:
    (tmp_path / "drive.csv").write_text("time_s,uplink_bps,downlink_bps\n0,1,2\n5,3,4\n")
    there = link_from_json({"kind": "trace", "path": "drive.csv", "repeat": True}, folder=tmp_path)
    assert there == TraceLink(times_s=(0, 5), uplink_bps=(1, 3), downlink_bps=(2, 4), repeat=True)
    absolute = link_from_json({"kind": "trace", "path": str(tmp_path / "drive.csv")}, folder="/nowhere")
    assert absolute == replace(there, repeat=False)
    with pytest.raises(DataError, match="other.csv cannot be read"):
        link_from_json({"kind": "trace", "path": "other.csv"}, folder=tmp_path)


def test_radio_by_fields() -> None:
    text = """{"kind": "radio", "preset": "poor", "table": "cqi-2", "los": "nlos", "device_power_dbm": 20, "speed_mps": 14,
      "way_points": [[-50, 20], [50, 20], [50, 90]], "closed": true, "offset_m": 30}"""
    link = _radio(json.loads(text))
    assert link.settings == replace(POOR, table="cqi-2", los="nlos", device_power_dbm=20)
    points = ((-50.0, 20.0), (50.0, 20.0), (50.0, 90.0))
    assert link.trajectory == Trajectory(way_points=points, speed_mps=14, closed=True, offset_m=30)


def test_radio_without_a_way_keeps_what_is_said_of_it() -> None:
    assert _radio({"kind": "radio"}).settings == RadioSettings()
    link = _radio({"kind": "radio", "speed_mps": 3, "offset_m": 200})
    assert (link.trajectory.speed_mps, link.trajectory.offset_m, link.trajectory.position_m(0)) == (3, 200, (0, 20))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("excellent", "A link is 'excellent'; expected 'good', 'normal', 'poor', 'wired-<rate>' such as 'wired-100m'"),
        ("wired-fast", "A link is 'wired-fast'; expected"),
        ("wired-100M", "A link is 'wired-100M'; expected"),
        ("wired-0m", "`uplink_bps` is 0.0; expected a finite number of more than 0 bits a second"),
        (7, "A link is 7; expected"),
        ({}, "`kind` of a link is None; expected one of 'wired', 'trace', 'radio'"),
        ({"kind": "laser"}, "`kind` of a link is 'laser'; expected one of 'wired', 'trace', 'radio'"),
        ({"kind": ["wired"]}, "`kind` of a link is ['wired']; expected one of"),
        (
            {"kind": "wired", "uplink": 1},
            "A wired link has 'uplink'; expected fields among 'uplink_bps', 'downlink_bps'",
        ),
        (
            {"kind": "wired", "uplink_bps": 1},
            "A wired link has no 'downlink_bps'; expected 'uplink_bps' and 'downlink_bps'",
        ),
        ({"kind": "wired", "uplink_bps": "1", "downlink_bps": 1}, "`uplink_bps` is '1'; expected a finite number"),
        ({"kind": "trace"}, "A trace link has no 'path'; expected 'path'"),
        ({"kind": "trace", "path": 3}, "`path` of a trace is 3; expected the name of a CSV file"),
        ({"kind": "trace", "path": "a", "repeat": 1}, "`repeat` of a trace is 1; expected true or false"),
        (
            {"kind": "radio", "speed": 3},
            "A radio link has 'speed'; expected fields among 'preset', 'speed_mps', 'way_points'",
        ),
        ({"kind": "radio", "preset": "best"}, "`preset` is 'best'; expected one of 'good', 'normal', 'poor'"),
        ({"kind": "radio", "gap_db": -3}, "`gap_db` is -3; expected a finite number of at least 0 dB"),
        ({"kind": "radio", "speed_mps": None}, "`speed_mps` is None; expected a finite number of at least 0 m/s"),
        ({"kind": "radio", "way_points": 5}, "`way_points` is 5; expected places"),
        ({"kind": "radio", "closed": True}, "`closed` of a radio link is given without `way_points`"),
    ],
)
def test_descriptions_of_nothing(description: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        link_from_json(description, rng=np.random.default_rng(0))


def test_a_radio_asks_for_a_generator() -> None:
    for description in ("good", {"kind": "radio", "way_points": [[0, 20]]}):
        with pytest.raises(
            ConfigError, match="A radio link has no generator; expected one, for its channel. Pass `rng`"
        ):
            link_from_json(description)
