"""Fleets of the chain from their descriptions."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import TABLE_II_DEVICES, TABLE_II_SERVER, ModelledCell, to_json
from flwr_splitkd.costs.chain_io import chain_fleet_from_json, table_iii_fleet
from flwr_splitkd.costs.radio import los_path_loss_db, nlos_path_loss_db
from flwr_splitkd.errors import ConfigError

DEVICE = {"flops": 2e12, "distance_m": 30}


def test_every_part_is_read(tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text(json.dumps(to_json(TABLE_II_DEVICES[7])))
    (tmp_path / "edge.json").write_text(json.dumps(to_json(TABLE_II_SERVER)))
    own = {"name": "own", "frequency_hz": 1e9, "cores": 64, "memory_bytes": 3e9}
    (tmp_path / "chain.json").write_text(
        json.dumps(
            {
                "edge": {"profile": "edge.json", "memory_bytes": 4.8e10, "power_dbm": 43, "gain_dbi": 15},
                "radio": {
                    "num_subcarriers": 64,
                    "subcarrier_hz": 1e6,
                    "noise_dbm_per_hz": -170,
                    "carrier_frequency_hz": 2.6e9,
                    "device_gain_dbi": 0,
                    "shadowing": False,
                    "shared_edge_power": False,
                },
                "cloud_bps": 2e8,
                "draws": 7,
                "variation": 0.1,
                "default": {"power_dbm": 20, "profile": 9, "distance_m": 30, "memory_bytes": 7e9},
                "devices": {
                    "van": {"profile": "board.json"},
                    "far": {"flops": 4e11, "distance_m": 150, "memory_bytes": 2e9},
                    "hut": {"profile": own, "gain_db": -95, "power_dbm": 10},
                    "bus": {},
                },
            }
        )
    )
    fleet = chain_fleet_from_json(tmp_path / "chain.json", seed=3)
    assert fleet.devices == ("van", "far", "hut", "bus")
    assert fleet.device_bytes == (7e9, 2e9, 7e9, 7e9)
    assert (fleet.edge, fleet.edge_bytes, fleet.num_draws, fleet.cell.seed) == ("RTX 4090", 4.8e10, 7, 3)
    found = fleet.typical
    assert found.device_flops.tolist() == [TABLE_II_DEVICES[7].flops, 4e11, 1.28e11, TABLE_II_DEVICES[8].flops]
    assert found.edge_flops == TABLE_II_SERVER.flops_at(TABLE_II_SERVER.max_frequency_hz)
    np.testing.assert_allclose(found.device_power_w, [0.1, 0.1, 0.01, 0.1])
    assert found.edge_power_w == pytest.approx(10**1.3)
    assert found.noise_w_per_hz == pytest.approx(1e-20)
    assert (found.num_subcarriers, found.subcarrier_hz, found.cloud_bps) == (64, 1e6, 2e8)
    assert not found.shared_edge_power
    # 0 and 15 dBi of the antennas; 30 m in sight, 150 m behind houses, and a gain that has everything in it.
    near, far = los_path_loss_db(30, carrier_frequency_hz=2.6e9), nlos_path_loss_db(150, carrier_frequency_hz=2.6e9)
    np.testing.assert_allclose(10 * np.log10(found.channel_gain), [15 - near, 15 - far, -95, 15 - near])
    draws = fleet.draws()
    assert draws.device_flops.shape == draws.channel_gain.shape == (7, 4)
    np.testing.assert_allclose(draws.channel_gain, np.broadcast_to(found.channel_gain, (7, 4)))
    spread = draws.device_flops / found.device_flops - 1
    assert 0.02 < np.abs(spread).max() <= 0.1
    assert fleet.limits.edge_bytes == 4.8e10 and list(np.ravel(fleet.limits.device_bytes)) == [7e9, 2e9, 7e9, 7e9]


def test_what_is_left_out_is_table_iii() -> None:
    fleet = chain_fleet_from_json({"devices": {"a": DEVICE}})
    assert (fleet.cell.edge_flops, fleet.edge_bytes, fleet.device_bytes, fleet.num_draws) == (
        312e12,
        6e12,
        (math.inf,),
        50,
    )
    common = ModelledCell()
    for name in ("num_subcarriers", "subcarrier_hz", "cloud_bps", "edge_power_dbm", "edge_gain_dbi", "variation"):
        assert getattr(fleet.cell, name) == getattr(common, name)
    slower = chain_fleet_from_json({"devices": {"a": DEVICE}, "edge": {"flops": 1e13}})
    assert (slower.cell.edge_flops, slower.edge_bytes) == (1e13, math.inf)
    assert chain_fleet_from_json({"devices": {"a": {"profile": 9, "gain_db": -80}}}).device_bytes == (32 * 2.0**30,)


def test_the_papers_fleet() -> None:
    fleet = table_iii_fleet(20, seed=4)
    assert fleet.devices == tuple(map(str, range(20)))
    assert fleet.cell == ModelledCell(edge_flops=312e12, seed=4) and fleet.edge_bytes == 6e12
    with pytest.raises(ConfigError, match="`num_devices` is 0"):
        table_iii_fleet(0)


def test_channels_vary_unless_told(tmp_path: Path) -> None:
    description = {"devices": {"a": DEVICE, "b": {"flops": 1e12, "gain_db": -90}}, "draws": 200}
    draws = chain_fleet_from_json(description).draws()
    gains_db = 10 * np.log10(draws.channel_gain)
    assert (
        np.abs(gains_db.mean(axis=0) - 10 * np.log10(chain_fleet_from_json(description).typical.channel_gain)).max() < 1
    )
    # A line of sight's shadowing alone: a place that is named stays in sight.
    assert np.all((gains_db.std(axis=0) > 3.4) & (gains_db.std(axis=0) < 4.6))
    other = chain_fleet_from_json(description, seed=1).draws()
    assert not np.isin(other.channel_gain, draws.channel_gain).any()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "The fleet has no devices; expected at least one"),
        ({"server": "RTX 4090"}, "The fleet has `server`; expected keys among edge, radio, cloud_bps"),
        ({"devices": []}, "The fleet: `devices` is []; expected an object"),
        ({"devices": {" ": DEVICE}}, "The fleet: `devices` has the name ' '; expected names that can be read"),
        ({"devices": {"a": 5}}, "The fleet: `devices.a` is 5; expected an object"),
        ({"devices": {"a": {"link": "good"}}}, "has `devices.a.link`; expected keys among profile, flops"),
        (
            {"devices": {"a": {"flops": 1e12}}},
            "`devices.a` has neither `distance_m` nor `gain_db`; expected one of them",
        ),
        ({"devices": {"a": {"gain_db": -90}}}, "`devices.a` has neither `profile` nor `flops`; expected one of them"),
        ({"devices": {"a": {**DEVICE, "profile": 1}}}, "`devices.a` has `profile` and `flops`; expected one of them"),
        ({"devices": {"a": {**DEVICE, "gain_db": -9}}}, "`devices.a` has `distance_m` and `gain_db`; expected one"),
        ({"devices": {"a": {"profile": 11, "gain_db": -9}}}, "`devices.a.profile`: The device is '11', and there is"),
        (
            {"devices": {"a": {"profile": None, "gain_db": -9}}},
            "`devices.a.profile`: The device is None; expected 1..10",
        ),
        ({"devices": {"a": {**DEVICE, "flops": "fast"}}}, "`devices.a.flops` is 'fast'; expected a finite number"),
        ({"devices": {"a": {**DEVICE, "flops": 0}}}, "`devices.a.flops` is 0; expected"),
        ({"devices": {"a": {**DEVICE, "distance_m": -3}}}, "`devices.a.distance_m` is -3; expected"),
        ({"devices": {"a": {**DEVICE, "distance_m": 6000}}}, "`devices.a.distance_m` is 6000; expected"),
        ({"devices": {"a": {**DEVICE, "distance_m": True}}}, "`devices.a.distance_m` is True; expected"),
        ({"devices": {"a": {**DEVICE, "distance_m": 10**400}}}, "`devices.a.distance_m` is 1000"),
        ({"devices": {"a": {"flops": 1e12, "gain_db": 5}}}, "`devices.a.gain_db` is 5; expected"),
        ({"devices": {"a": {**DEVICE, "power_dbm": math.nan}}}, "`devices.a.power_dbm` is nan; expected a finite"),
        ({"devices": {"a": {**DEVICE, "memory_bytes": 0}}}, "`devices.a.memory_bytes` is 0; expected"),
        ({"default": {"flops": -1}}, "`default.flops` is -1; expected"),
        ({"default": {"cores": 1}}, "has `default.cores`; expected keys among profile"),
        ({"edge": {"profile": "A100"}}, "`edge.profile`: The server is 'A100', and there is no file"),
        ({"edge": {"profile": "generic", "flops": 1e12}}, "`edge` has `profile` and `flops`; expected one of them"),
        ({"edge": "RTX 4090"}, "`edge` is 'RTX 4090'; expected an object"),
        ({"edge": {"power_dbm": 200}}, "`edge.power_dbm` is 200; expected"),
        ({"radio": {"num_subcarriers": 0}}, "`radio.num_subcarriers` is 0; expected"),
        ({"radio": {"num_subcarriers": 2.5}}, "`radio.num_subcarriers` is 2.5; expected a whole number"),
        ({"radio": {"shadowing": 1}}, "`radio.shadowing` is 1; expected true or false"),
        ({"radio": {"carrier_frequency_hz": 3.5}}, "`radio.carrier_frequency_hz` is 3.5; expected"),
        ({"radio": {"subcarriers": 3}}, "has `radio.subcarriers`; expected keys among num_subcarriers"),
        ({"cloud_bps": 0}, "`cloud_bps` is 0; expected"),
        ({"draws": 2000}, "`draws` is 2000; expected"),
        ({"draws": 2.0}, "`draws` is 2.0; expected a whole number"),
        ({"variation": 1}, "`variation` is 1; expected"),
    ],
)
def test_what_is_malformed_is_named(description: dict[str, Any], message: str) -> None:
    whole = description if "devices" in description or not description else {**description, "devices": {"a": DEVICE}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        chain_fleet_from_json(whole)


def test_a_file_that_holds_no_fleet(tmp_path: Path) -> None:
    file = tmp_path / "chain.json"
    file.write_text("[1]")
    with pytest.raises(ConfigError, match=rf"The fleet {re.escape(str(file))} is \[1\]; expected an object"):
        chain_fleet_from_json(file)
    with pytest.raises(ConfigError, match="no.json cannot be read"):
        chain_fleet_from_json(tmp_path / "no.json")
