"""Sensors of machines that are written down in a folder."""

from __future__ import annotations

from pathlib import Path

from flwr_splitkd.cli.doctor.finding import Finding, Status
from flwr_splitkd.cli.doctor.telemetry import check_telemetry
from flwr_splitkd.telemetry.sensors import find_sensors

ZONE = "sys/class/powercap/intel-rapl:0"


def zone(root: Path, **files: str) -> Path:
    (root / ZONE).mkdir(parents=True)
    for name, content in files.items():
        (root / ZONE / name).write_text(content)
    return root


def look(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_telemetry(find_sensors(root))}


def test_a_machine_without_sensors_is_a_warning(tmp_path: Path) -> None:
    (found,) = look(tmp_path).values()
    assert found.status is Status.WARNING and found.seen.startswith("none")
    assert "cost model alone" in found.remedy and "host's /sys" in found.remedy


def test_a_counter_that_can_be_read(tmp_path: Path) -> None:
    found = look(zone(tmp_path, name="package-0\n", energy_uj="5000000\n", max_energy_range_uj="262143328850\n"))
    assert found["RAPL package-0 energy_j"].status is Status.OK
    assert all(finding.status is Status.OK for finding in found.values())


def test_a_counter_that_cannot_be_read(tmp_path: Path) -> None:
    found = look(zone(tmp_path, name="package-0\n", max_energy_range_uj="262143328850\n"))
    unavailable, energy = found["RAPL package-0 energy_j"], found["measured energy"]
    assert unavailable.status is Status.SKIPPED and unavailable.seen.startswith("unavailable: ")
    assert energy.status is Status.WARNING and energy.seen == unavailable.seen
    assert "cost model alone" in energy.remedy
