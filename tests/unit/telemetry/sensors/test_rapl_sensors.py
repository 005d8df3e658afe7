"""Processors' counters: which zones count, where a counter starts anew, and what is said when it is not readable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from jetson_trees import write

from flwr_splitkd.telemetry.sensors import EnergyMeter, RaplSensors, find_sensors, nodes

POWERCAP = "sys/class/powercap"


def zone(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000) -> None:
    write(root, f"{POWERCAP}/{folder}/name", name)
    write(root, f"{POWERCAP}/{folder}/energy_uj", f"{energy_uj}")
    write(root, f"{POWERCAP}/{folder}/max_energy_range_uj", f"{range_uj}")


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Two sockets, with cores and memory, the platform, and another way to the first package."""
    zone(tmp_path, "intel-rapl:0", "package-0", 100_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 60_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 30_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 200_000)
    zone(tmp_path, "intel-rapl:1:0", "dram", 40_000)
    zone(tmp_path, "intel-rapl:2", "psys", 900_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100_000)
    (tmp_path / POWERCAP / "intel-rapl").mkdir()
    return tmp_path


def test_all_zones_are_read_and_none_counts_twice(server: Path) -> None:
    (sensors,) = find_sensors(server)
    assert isinstance(sensors, RaplSensors)
    assert {one.name: one.value for one in sensors.read()} == pytest.approx(
        {
            "package-0": 0.1,
            "core of package-0": 0.06,
            "dram of package-0": 0.03,
            "package-1": 0.2,
            "dram of package-1": 0.04,
            "psys": 0.9,
        }
    )
    counted = {one.name: one for one in sensors.energy()}
    assert set(counted) == {"package-0", "dram of package-0", "package-1", "dram of package-1"}
    assert counted["package-1"].source == "/sys/class/powercap/intel-rapl:1/energy_uj"


def test_a_counter_that_starts_anew(server: Path) -> None:
    meter = EnergyMeter(find_sensors(server))
    began = meter.begin()
    for energy_uj in (900_000, 50_000, 40_000):  # up, and twice over the range of 1 J
        zone(server, "intel-rapl:0", "package-0", energy_uj)
        meter.begin()
    energy = meter.joules(began)
    meter.close()
    assert energy.joules == pytest.approx(0.8 + 0.15 + 0.99)


def test_one_that_starts_anew_at_an_unknown_range(server: Path) -> None:
    sensors = RaplSensors(server)
    sensors.read()
    zone(server, "intel-rapl:0", "package-0", 50_000)
    (server / POWERCAP / "intel-rapl:0/max_energy_range_uj").unlink()
    found = {one.name: one for one in sensors.energy()}["package-0"]
    assert found.value is None
    assert found.reason.startswith("the counter started anew, and /sys/class/powercap/intel-rapl:0/max_energy_range_uj")


def test_counters_that_are_roots_alone(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("/energy_uj"):
            raise PermissionError(13, os.strerror(13), path)
        return open(path, *arguments, **options)

    monkeypatch.setattr(nodes, "open", refuse, raising=False)
    sensors = RaplSensors(server)
    readings = sensors.energy()
    assert [one.value for one in readings] == [None] * 4
    assert all("permission denied" in one.reason and "Run as root" in one.reason for one in readings)
    assert all("ZEUSD_SOCK_PATH" in one.reason for one in readings)
    meter = EnergyMeter([sensors])
    assert meter.parts == () and "package-0: permission denied" in meter.reason


def test_a_container_that_hides_the_folder_behind_its_links(tmp_path: Path) -> None:
    folder = tmp_path / POWERCAP
    folder.mkdir(parents=True)
    (folder / "intel-rapl:0").symlink_to("../../devices/virtual/powercap/intel-rapl/intel-rapl:0")
    (reading,) = RaplSensors(tmp_path).read()
    assert (reading.name, reading.value) == ("intel-rapl:0", None)
    assert "a container hides it" in reading.reason


def test_a_machine_without_any(tmp_path: Path) -> None:
    assert not RaplSensors.present(tmp_path)
    assert RaplSensors(tmp_path).read() == ()
