"""When the edge measures the joules of its machine, and what it says of them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from recorded_runs import turns, with_joules
from torch import nn

from flwr_splitkd import SplitKD
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.strategies import console
from flwr_splitkd.telemetry.sensors import EnergyMeter, Reading


class InMemoryGrid:
    """As Flower's grid of simulations is called."""


class Sensors:
    name = "of the test"

    def __init__(self, **values: float | None) -> None:
        self.values = values

    def read(self) -> tuple[Reading, ...]:
        return self.energy()

    def energy(self) -> tuple[Reading, ...]:
        return tuple(
            Reading(quantity="energy_j", name=name, source="test", value=value, reason="" if value else "denied")
            for name, value in self.values.items()
        )


@pytest.mark.parametrize(
    ("settings", "grid", "measures"),
    [
        ({"data_address": "0.0.0.0:9095"}, object(), True),
        ({"data_address": "0.0.0.0:9095"}, InMemoryGrid(), False),
        ({}, object(), False),  # the data plane is on loopback, and so are the devices
        ({"measure_energy": True}, InMemoryGrid(), True),
        ({"data_address": "0.0.0.0:9095", "measure_energy": False}, object(), False),
    ],
)
def test_the_machine_is_measured_unless_devices_are_on_it(settings: dict[str, Any], grid: Any, measures: bool) -> None:
    assert SplitKD(student=nn.Identity, **settings)._measures_energy(grid) == measures


def test_another_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="`measure_energy` is 1.5; expected True, False or 'auto'"):
        SplitKD(student=nn.Identity, measure_energy=1.5)  # type: ignore[arg-type]


def test_a_run_says_what_is_in_its_joules(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    for sensors in ((), (Sensors(gpu=1.0, package=None),), (Sensors(package=None),)):
        console.log_energy(EnergyMeter(sensors))
    console.log_energy(None)
    assert [record.getMessage().removeprefix("\t├──> ").partition(" were found")[0] for record in caplog.records] == [
        "Energy of the edge is not measured: no sensors of power or energy",
        "Energy of the edge: gpu",
        "Not in it: package: denied",
        "Energy of the edge is not measured: package: denied",
    ]


def test_a_turns_line_has_its_joules(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    for turn in (*with_joules(turns(1, ["0", "1"])), *turns(1, ["2"])):
        console.log_turn(turn)
    ends = [record.getMessage().partition("MiB down, ")[2] for record in caplog.records]
    assert ends == ["1.5 s, 8.0 J on the device, 20.0 J on the edge", "1.5 s, 8.0 J on the device", "1.5 s"]
