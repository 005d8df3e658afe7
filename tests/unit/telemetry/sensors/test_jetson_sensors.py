"""What a Jetson's nodes say, module by module, and what becomes of nodes that say nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from jetson_trees import MODULES, make_tree, write

from flwr_splitkd.telemetry.sensors import QUANTITIES, JetsonSensors, Reading, find_sensors, nodes

HWMON = "sys/class/hwmon"


def values(root: Path, quantity: str) -> dict[str, float | None]:
    return {one.name: one.value for one in JetsonSensors(root).read() if one.quantity == quantity}


def reading(root: Path, quantity: str, name: str) -> Reading:
    (found,) = (one for one in JetsonSensors(root).read() if (one.quantity, one.name) == (quantity, name))
    return found


def total(root: Path) -> Reading:
    (whole,) = JetsonSensors(root).energy()
    return whole


@pytest.mark.parametrize("name", MODULES)
def test_a_jetson_is_found_with_all_it_has(name: str, tmp_path: Path) -> None:
    root = make_tree(tmp_path, name)
    (sensors,) = find_sensors(root)
    assert isinstance(sensors, JetsonSensors) and sensors.name == "Jetson"
    readings = sensors.read()
    assert {one.quantity for one in readings} == set(QUANTITIES) - {"energy_j"}
    for one in readings:
        assert one.source.startswith(("/sys/", "/proc/")) and (root / one.source[1:]).exists() == (
            one.value is not None
        )
        assert (one.reason == "") == (one.value is not None)


def test_values_and_units_of_agx_orin(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "agx-orin")
    assert values(root, "gpu_frequency_hz") == {"17000000.gpu": 1.3005e9}
    assert values(root, "gpu_load") == pytest.approx({"17000000.gpu": 0.873})
    rails = {"VDD_GPU_SOC": 12.0, "VDD_CPU_CV": 6.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 1.5}
    assert values(root, "power_w") == pytest.approx(rails)
    assert values(root, "temperature_c") == pytest.approx(
        {"cpu-thermal": 48.5, "gpu-thermal": 46.031, "tj-thermal": 48.5}
    )
    assert values(root, "memory_total_bytes") == {"RAM": 1024 * 64e6}
    assert values(root, "memory_used_bytes") == {"RAM": 1024 * 24e6}
    assert reading(root, "power_w", "VDD_CPU_CV").source == "/sys/class/hwmon/hwmon1/curr2_input"


@pytest.mark.parametrize(
    ("name", "of", "watts"),
    [
        ("agx-orin", "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 23.0),  # DDR's 1.5 W are in the last one
        ("orin-nano", "VDD_IN", 6.0),
        ("xavier-nx", "VDD_IN", 9.8),
        ("agx-xavier", "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 1.9 + 0.95 + 1.9 + 0.0 + 0.38 + 2.5),
        ("thor", "VIN", 62.75),
        ("nano", "POM_5V_IN", 3.9),
    ],
)
def test_the_total_counts_no_rail_twice(name: str, of: str, watts: float, tmp_path: Path) -> None:
    whole = total(make_tree(tmp_path, name))
    assert (whole.quantity, whole.name) == ("power_w", of)
    assert whole.value == pytest.approx(watts)


def test_thor_without_a_monitor_at_the_boards_input(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "thor")
    (root / HWMON / "hwmon10/name").write_text("something else\n")
    assert total(root).name == "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"
    assert total(root).value == pytest.approx(30.0 + 12.0 + 6.5)


def test_thors_nodes(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "thor")
    assert values(root, "gpu_frequency_hz") == {"gpu-gpc-0": 1.575e9, "gpu-nvd-0": 1.377e9}
    load = reading(root, "gpu_load", "gpu-gpc-0")
    assert load.value is None
    assert "/sys/class/devfreq/gpu-gpc-0/device/load is not there" in load.reason
    assert "pip install 'flwr_splitkd[energy]'" in load.reason


def test_the_load_where_older_releases_have_it(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "agx-xavier")
    load = root / "sys/class/devfreq/17000000.gv11b/device/load"
    load.unlink()
    write(root, "sys/devices/gpu.0/load", "250")
    found = reading(root, "gpu_load", "17000000.gv11b")
    assert (found.value, found.source) == (0.25, "/sys/devices/gpu.0/load")


@pytest.mark.parametrize(
    ("path", "text", "quantity", "name", "reason"),
    [
        ("sys/class/devfreq/17000000.gpu/cur_freq", "fast", "gpu_frequency_hz", "17000000.gpu", "says 'fast'"),
        (
            "sys/class/devfreq/17000000.gpu/cur_freq",
            "",
            "gpu_frequency_hz",
            "17000000.gpu",
            "says ''; expected a number",
        ),
        ("sys/class/devfreq/17000000.gpu/cur_freq", "nan", "gpu_frequency_hz", "17000000.gpu", "expected a number"),
        (
            "sys/class/devfreq/17000000.gpu/device/load",
            "1001",
            "gpu_load",
            "17000000.gpu",
            "says 1001; expected 0 to 1000",
        ),
        (f"{HWMON}/hwmon1/curr1_input", "-81", "power_w", "VDD_GPU_SOC", "says -81; expected at least -80"),
        (f"{HWMON}/hwmon1/in1_input", "-20", "power_w", "VDD_GPU_SOC", "says -20; expected at least 0"),
        (f"{HWMON}/hwmon1/in1_input", "12 V", "power_w", "VDD_GPU_SOC", "hwmon1/in1_input says '12 V'"),
        (
            "sys/class/thermal/thermal_zone1/temp",
            "-256000",
            "temperature_c",
            "gpu-thermal",
            "says -256000; expected -60000",
        ),
        ("proc/meminfo", "MemTotal: many kB", "memory_total_bytes", "RAM", "lacks MemTotal or MemAvailable"),
        ("proc/meminfo", "MemTotal: 1000 kB", "memory_used_bytes", "RAM", "lacks MemTotal or MemAvailable"),
    ],
)
def test_odd_nodes(path: str, text: str, quantity: str, name: str, reason: str, tmp_path: Path) -> None:
    root = make_tree(tmp_path, "agx-orin")
    before = {(one.quantity, one.name): one for one in JetsonSensors(root).read()}
    write(root, path, text)
    after = {(one.quantity, one.name): one for one in JetsonSensors(root).read()}
    odd = after.pop((quantity, name))
    assert odd.value is None and reason in odd.reason and f"/{path}" in odd.reason
    shared = ("memory_used_bytes", "memory_total_bytes")  # one file
    assert all(after[key] == before[key] for key in after if key[0] not in shared)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EAGAIN, "has no value now (Resource temporarily unavailable): what it measures is switched off"),
        (errno.EACCES, "permission denied: /sys/class/thermal/thermal_zone1/temp is not for this user. Run as root"),
        (errno.EIO, "cannot be read: Input/output error"),
        (errno.ENOENT, "is not there: this kernel's driver has none, or a container hides it"),
    ],
)
def test_nodes_that_cannot_be_read(number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file gives these errors to root, who may run the tests."""
    root = make_tree(tmp_path, "agx-orin")

    def refuse(path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith("thermal_zone1/temp"):
            raise OSError(number, os.strerror(number), path)
        return open(path, *arguments, **options)

    monkeypatch.setattr(nodes, "open", refuse, raising=False)
    found = reading(root, "temperature_c", "gpu-thermal")
    assert found.value is None and reason in found.reason
    assert reading(root, "temperature_c", "cpu-thermal").value == 48.5


def test_a_total_with_a_rail_missing_is_unknown(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "agx-orin")
    write(root, f"{HWMON}/hwmon1/curr2_input", "-500")
    whole = total(root)
    assert whole.value is None
    assert whole.name == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert "hwmon1/curr2_input says -500" in whole.reason


def test_a_rail_at_rest_is_a_little_below_zero(tmp_path: Path) -> None:
    """As tegrastats shows Thor's GPU at rest: -392 mW, one step of its monitor over a shunt of 2 mOhm."""
    root = make_tree(tmp_path, "thor")
    (root / HWMON / "hwmon10/name").write_text("something else\n")
    for node, text in {"in1_input": "19600", "curr1_input": "-20", "in2_input": "19600", "curr2_input": "200"}.items():
        write(root, f"{HWMON}/hwmon1/{node}", text)
    assert values(root, "power_w")["VDD_GPU"] == pytest.approx(-0.392)
    assert total(root).value == pytest.approx(-0.392 + 3.92 + 6.5)


def test_a_whole_module_is_not_below_zero(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "orin-nano")
    write(root, f"{HWMON}/hwmon1/curr1_input", "-40")
    assert (total(root).value, total(root).reason) == (None, "VDD_IN is -0.2 W; expected at least 0.")


def test_what_two_nodes_make_is_a_number_too(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "orin-nano")
    for node in ("in1_input", "curr1_input"):
        write(root, f"{HWMON}/hwmon1/{node}", "1e300")
    whole = total(root)
    assert whole.value is None and whole.reason.endswith("hwmon1/in1_input is inf; expected a number.")


def test_rails_of_an_unknown_module_are_not_added_up(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "orin-nano")
    write(root, f"{HWMON}/hwmon1/in1_label", "VDD_NEW")
    whole = total(root)
    assert whole.value is None
    assert whole.reason.startswith("the rails are VDD_NEW, VDD_CPU_GPU_CV, VDD_SOC; expected those of a known module")


def test_a_jetson_with_no_nodes_at_all(tmp_path: Path) -> None:
    write(tmp_path, "sys/devices/soc0/family", "Tegra")
    (sensors,) = find_sensors(tmp_path)
    assert {one.quantity for one in sensors.read()} == {"memory_used_bytes", "memory_total_bytes"}
    assert all(one.value is None and "/proc/meminfo is not there" in one.reason for one in sensors.read())
    assert "the rails are none" in sensors.energy()[0].reason


def test_other_machines_are_none(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B\0")
    write(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert find_sensors(tmp_path) == ()
    assert find_sensors(tmp_path / "nothing") == ()
