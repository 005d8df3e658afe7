"""What the paper leaves open, as settings."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from flwr_splitkd.case_studies.split_kd.settings import CLOCKS, MODELS, REFERENCES, WORKLOAD, Setting, every_setting
from flwr_splitkd.costs import TABLE_II_DEVICES, TABLE_II_SERVER, cut_terms, named_shape
from flwr_splitkd.errors import ConfigError


def test_names_are_unique_and_say_everything() -> None:
    settings = every_setting()
    assert len({setting.name for setting in settings}) == len(set(settings)) == len(settings) == 600
    assert REFERENCES[0].name == "real-32-16-bf16-24GiB/baseline-max/slack-10%/static-0W/device-100%/both"


@pytest.mark.parametrize("quick", [False, True])
def test_the_references_are_among_them(quick: bool) -> None:
    assert set(REFERENCES) <= set(every_setting(quick=quick))
    assert set(every_setting(quick=True)) <= set(every_setting())


@pytest.mark.parametrize("models", list(MODELS))
def test_block_counts_and_memory_are_as_the_name_says(models: str) -> None:
    teacher, student = named_shape(MODELS[models].teacher), named_shape(MODELS[models].student)
    assert f"-{teacher.num_blocks}-{student.num_blocks}-" in models
    assert models.endswith(MODELS[models].memory)
    terms = cut_terms(student, teacher, WORKLOAD, TABLE_II_DEVICES[0])
    fits = bool((terms.server_memory_bytes <= TABLE_II_SERVER.memory_bytes).all())
    assert fits == (MODELS[models].memory == "24GiB"), "the limit is lifted where it would forbid, and only there"
    assert (terms.server_memory_bytes <= Setting(models=models).server().memory_bytes).all()


def test_machines_follow_the_setting() -> None:
    plain = Setting()
    assert plain.server() == TABLE_II_SERVER
    assert plain.devices() == TABLE_II_DEVICES
    other = Setting(clock="half", static_power_w=60, device_efficiency=0.3, counted="server")
    assert (other.server().nominal_frequency_hz, other.frequency) == (1.26e9, "nominal")
    assert other.server().static_power_w == 60
    for device, full in zip(other.devices(), TABLE_II_DEVICES, strict=True):
        assert device.flops == pytest.approx(0.3 * full.flops)
        assert device.compute_power_w == device.transmit_power_w == 0
        half = replace(plain, device_efficiency=0.5).devices()
    assert [device.compute_power_w for device in half] == [device.compute_power_w for device in TABLE_II_DEVICES]
    assert Setting(clock="optimal").frequency == "optimal"
    assert all(Setting(clock=clock).server().max_frequency_hz == 2.52e9 for clock in CLOCKS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("models", "real", "`models` is 'real'; expected one of"),
        ("clock", "low", "`clock` is 'low'"),
        ("counted", "device", "`counted` is 'device'"),
        ("slack", -0.1, "`slack` is -0.1; expected a finite number of at least 0"),
        ("static_power_w", float("inf"), "`static_power_w` is inf"),
        ("device_efficiency", 0.0, "`device_efficiency` is 0.0; expected a finite number of more than 0"),
        ("device_efficiency", 1.1, "at most 1"),
    ],
)
def test_out_of_range(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Setting(**{name: value})
