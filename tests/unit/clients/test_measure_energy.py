"""When a device measures the joules of its turns, and what it says when it cannot."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from flwr_splitkd import SplitKDClient
from flwr_splitkd.clients import split_kd
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.telemetry.sensors import Reading

HERE, ELSEWHERE = "127.0.0.1:9095", "192.0.2.1:9095"


class Sensors:
    name = "of the test"

    def __init__(self, value: float | None = 1.0) -> None:
        self.value = value

    def read(self) -> tuple[Reading, ...]:
        return self.energy()

    def energy(self) -> tuple[Reading, ...]:
        return (Reading(quantity="energy_j", name="package-0", source="test", value=self.value, reason="denied"),)


def client(**options: object) -> SplitKDClient:
    return SplitKDClient(student=nn.Identity, data=[{"labels": torch.zeros(1)}], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "address", "measures"),
    [
        ("auto", ELSEWHERE, True),
        ("auto", HERE, False),
        (True, HERE, True),
        (True, ELSEWHERE, True),
        (False, ELSEWHERE, False),
    ],
)
def test_the_machine_is_measured_unless_the_edge_is_on_it(
    choice: object, address: str, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_kd, "find_sensors", lambda: (Sensors(),))
    meter = client(measure_energy=choice)._meter(address)
    assert (meter is not None) == measures
    if meter is not None:
        assert meter.parts == ("package-0",)


@pytest.mark.parametrize(("choice", "level"), [(True, logging.WARNING), ("auto", logging.DEBUG)])
def test_what_cannot_be_measured_is_said_where_it_was_asked_for(
    choice: object, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger=split_kd.__name__)
    monkeypatch.setattr(split_kd, "find_sensors", lambda: (Sensors(None),))
    assert client(measure_energy=choice)._meter(ELSEWHERE) is None
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        level,
        "The joules of this device are not measured: package-0: denied",
    )


def test_another_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="`measure_energy` is 'yes'; expected True, False or 'auto'"):
        client(measure_energy="yes")
