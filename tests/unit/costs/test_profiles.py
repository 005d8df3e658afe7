"""What machines can do: the paper's machines, what is refused, and profiles in JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from flwr_splitkd.costs import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    BlockTimes,
    DeviceProfile,
    ServerProfile,
    device_from_json,
    server_from_json,
    to_json,
)
from flwr_splitkd.errors import ConfigError

TIMES = BlockTimes(
    model="a model", batch_size=4, sequence_length=64, forward_s=(0.1, 0.2), backward_s=(0.3, 0.4), embedding_s=0.01
)


def test_the_devices_of_table_ii() -> None:
    assert len(TABLE_II_DEVICES) == 10
    assert [device.frequency_hz / 1e9 for device in TABLE_II_DEVICES] == pytest.approx(
        [1.3, 1.3, 1.0, 1.0, 0.91, 0.91, 0.76, 0.76, 1.2, 1.2]
    )
    assert [device.cores for device in TABLE_II_DEVICES] == [2048] * 4 + [1024] * 4 + [512] * 2
    assert all(device.battery_j is None and device.blocks is None for device in TABLE_II_DEVICES)


@pytest.mark.parametrize(("device", "rated_hz", "rated_w"), [(0, 1.3e9, 60), (4, 0.918e9, 25), (8, 1.377e9, 30)])
def test_power_at_the_rated_clock_is_the_rated_power(device: int, rated_hz: float, rated_w: float) -> None:
    profile = TABLE_II_DEVICES[device]
    assert replace(profile, frequency_hz=rated_hz).compute_power_w == pytest.approx(rated_w)
    assert profile.compute_power_w == pytest.approx(rated_w * (profile.frequency_hz / rated_hz) ** 3)


def test_the_server_of_table_ii() -> None:
    assert TABLE_II_SERVER.cores == 16384
    assert TABLE_II_SERVER.nominal_frequency_hz == TABLE_II_SERVER.max_frequency_hz == 2.52e9
    assert TABLE_II_SERVER.flops_at(2.52e9) == pytest.approx(82.6e12, rel=1e-3)  # as its data sheet says
    assert TABLE_II_SERVER.power_coefficient * 2.52e9**3 == pytest.approx(450)
    assert TABLE_II_SERVER.idle_power_w == 0


def test_generic_machines_say_that_they_are() -> None:
    assert "unknown" in GENERIC_DEVICE.name and "unknown" in GENERIC_SERVER.name
    assert GENERIC_SERVER.flops_at(1e9) == TABLE_II_SERVER.flops_at(1e9)


def test_speed_and_power() -> None:
    device = DeviceProfile(name="a", frequency_hz=2e9, cores=3, flops_per_cycle=4, power_coefficient=1e-27)
    assert device.flops == pytest.approx(24e9)
    assert device.compute_power_w == pytest.approx(8)
    server = ServerProfile(
        name="b",
        max_frequency_hz=2e9,
        cores=3,
        power_coefficient=1e-27,
        idle_activity=0.25,
        idle_frequency_hz=1e9,
    )
    assert server.flops_at(1e9) == pytest.approx(6e9)
    assert server.idle_power_w == pytest.approx(0.25)


def test_what_a_server_does_not_say() -> None:
    server = ServerProfile(name="b", max_frequency_hz=2e9, cores=3)
    assert server.min_frequency_hz == server.idle_frequency_hz == pytest.approx(2e8)
    assert server.nominal_frequency_hz == 2e9


@pytest.mark.parametrize(
    "profile",
    [
        *TABLE_II_DEVICES[::4],
        replace(GENERIC_DEVICE, battery_j=5e4, blocks=TIMES),
        DeviceProfile(name="a", frequency_hz=1e9, cores=8),
    ],
)
def test_devices_survive_json(profile: DeviceProfile) -> None:
    assert device_from_json(json.loads(json.dumps(to_json(profile)))) == profile


@pytest.mark.parametrize("profile", [TABLE_II_SERVER, ServerProfile(name="b", max_frequency_hz=2e9, cores=3)])
def test_servers_survive_json(profile: ServerProfile) -> None:
    assert server_from_json(json.loads(json.dumps(to_json(profile)))) == profile


_DEVICE = {"name": "a", "frequency_hz": 1e9, "cores": 8}
_SERVER = {"name": "b", "max_frequency_hz": 2e9, "cores": 8}
_BLOCKS = {"model": "m", "batch_size": 1, "sequence_length": 8, "forward_s": [0.1], "backward_s": [0.2]}


def test_a_device_with_block_times_in_json() -> None:
    blocks = device_from_json(_DEVICE | {"blocks": _BLOCKS}).blocks
    assert blocks is not None
    assert (blocks.forward_s, blocks.backward_s, blocks.embedding_s) == ((0.1,), (0.2,), 0.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "A DeviceProfile is [1]; expected an object"),
        ("fast", "A DeviceProfile is 'fast'; expected an object"),
        (_DEVICE | {"colour": "red"}, "A DeviceProfile has 'colour'; expected fields among"),
        ({"name": "a", "cores": 8}, "A DeviceProfile of {'name': 'a', 'cores': 8} cannot be made: "),
        (_DEVICE | {"frequency_hz": None}, "`frequency_hz` of a is None; expected a finite number of more than 0"),
        (_DEVICE | {"cores": "many"}, "`cores` of a is 'many'; expected a finite number of more than 0"),
        (_DEVICE | {"cores": True}, "`cores` of a is True; expected a finite number of more than 0"),
        (_DEVICE | {"memory_bytes": 0}, "`memory_bytes` of a is 0; expected a finite number of more than 0"),
        (_DEVICE | {"battery_j": -1}, "`battery_j` of a is -1; expected a finite number of at least 0"),
        (_DEVICE | {"transmit_power_w": math.inf}, "`transmit_power_w` of a is inf; expected a finite number of at"),
        (_DEVICE | {"blocks": 3}, "A BlockTimes is 3; expected an object"),
        (_DEVICE | {"blocks": _BLOCKS | {"forward_s": ["x"]}}, "cannot be made: could not convert string to float"),
        (_DEVICE | {"blocks": _BLOCKS | {"forward_s": []}}, "`forward_s` of m has 0 blocks and `backward_s` 1"),
        (
            _DEVICE | {"blocks": _BLOCKS | {"backward_s": [0.0]}},
            "`backward_s` of m is (0.0,); expected seconds of more",
        ),
        (_DEVICE | {"blocks": _BLOCKS | {"batch_size": 0}}, "The block times of m are of 0 x 8 tokens"),
        (_DEVICE | {"blocks": _BLOCKS | {"embedding_s": math.nan}}, "the embedding's nan s; expected"),
    ],
)
def test_no_device(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        device_from_json(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "A ServerProfile is 7; expected an object"),
        (_SERVER | {"max_frequency_hz": "fast"}, "A ServerProfile of {"),
        (_SERVER | {"max_frequency_hz": -2e9}, "`max_frequency_hz` of b is -2000000000.0; expected a finite number"),
        (_SERVER | {"min_frequency_hz": 3e9}, "`min_frequency_hz` of b is 3e+09; expected at most 2e+09"),
        (_SERVER | {"nominal_frequency_hz": 1e8}, "`nominal_frequency_hz` of b is 1e+08; expected 2e+08 to 2e+09"),
        (_SERVER | {"idle_frequency_hz": -1.0}, "`idle_frequency_hz` of b is -1.0; expected a finite number of more"),
        (_SERVER | {"idle_activity": 1.5}, "`idle_activity` of b is 1.5; expected 0 to 1"),
        (_SERVER | {"static_power_w": -1}, "`static_power_w` of b is -1; expected a finite number of at least 0"),
    ],
)
def test_no_server(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        server_from_json(data)
