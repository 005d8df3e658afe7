"""The systemd units: what systemd says of them, and whether the installed Flower and the package understand their command lines."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from unit_files import (
    BIN,
    SYSTEMD,
    UNITS,
    command_line,
    environment_text,
    for_older_flower,
    options_of,
    read_environment,
    read_unit,
    unit_text,
)

_ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(_ANALYZE is None, reason="systemd-analyze is not on this machine")


def test_every_unit_is_here() -> None:
    assert {path.stem for path in SYSTEMD.glob("*.service")} == set(UNITS)


@pytest.mark.parametrize("unit", UNITS)
def test_unit(unit: str) -> None:
    settings = read_unit(unit_text(unit))
    assert settings["User"] == ["flwr-splitkd"]
    assert settings["EnvironmentFile"] == [f"/etc/flwr_splitkd/{UNITS[unit]}.env"]
    assert settings["Restart"] == ["always"] and settings["StartLimitIntervalSec"] == ["0"]
    environment = dict(pair.split("=", 1) for line in settings["Environment"] for pair in line.split())
    # Flower starts its helpers by bare name, and what is written lies where the unit may write.
    assert environment["PATH"].split(":")[0] == BIN
    state = f"/var/lib/{settings['StateDirectory'][0]}"
    for name in ("HOME", "FLWR_HOME", "FLWR_SPLITKD_CACHE", "HF_HOME"):
        assert environment.get(name, state).startswith(state), name
    if unit != "flwr-splitkd-cloud":
        assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert "FLWR_HOME" in environment


@pytest.mark.parametrize("unit", UNITS)
def test_hardening_leaves_the_gpu(unit: str) -> None:
    settings = read_unit(unit_text(unit))
    for name, value in {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes"}.items():
        assert settings[name] == [value]
    # Each of these takes devices, or memory that can be both written and run, from CUDA.
    assert not {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock", "MemoryDenyWriteExecute"} & set(
        settings
    )
    assert {"video", "render"} <= set(settings["SupplementaryGroups"][0].split())


def test_the_units_are_hardened_alike() -> None:
    hardening = {
        unit_text(unit).partition("# Nothing but its own folder can be written")[2].partition("[Install]")[0]
        for unit in UNITS
    }
    assert len(hardening) == 1 and "" not in hardening


def test_a_device_outlives_its_clientapp() -> None:
    """Otherwise systemd ends the SuperNode when its ClientApp is killed for want of memory, and max-restarts is for nothing."""
    assert read_unit(unit_text("flower-supernode"))["OOMPolicy"] == ["continue"]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["flower-superlink", "flower-supernode"])
def test_the_installed_flower_understands_the_command(unit: str) -> None:
    known = options_of(unit)
    text = environment_text(unit)
    environment = read_environment(text if "--port" in known else for_older_flower(text))
    command = command_line(read_unit(unit_text(unit)), environment)
    assert command[0] == f"{BIN}/{unit}"
    given = {word for word in command if word.startswith("--")}
    assert given <= known, f"not options of {unit}: {sorted(given - known)}"
    assert {"--ssl-ca-certfile", "--enable-supernode-auth"} <= given or {
        "--root-certificates",
        "--auth-supernode-private-key",
    } <= given
    assert "--insecure" not in given


def test_a_node_config_is_one_word() -> None:
    command = command_line(
        read_unit(unit_text("flower-supernode")), read_environment(environment_text("flower-supernode"))
    )
    assert command[command.index("--node-config") + 1] == 'partition-id=0 num-partitions=2 device-name="orin-1"'
    assert command[command.index("--superlink") + 1] == "edge.local:8000"


@pytest.mark.parametrize("unit", ["flower-superlink", "flower-supernode"])
def test_older_flower_keeps_its_own_apis_to_itself(unit: str) -> None:
    """Flower 1.30 listens on all addresses unless it is told otherwise: only the Fleet API belongs there."""
    addresses = read_environment(for_older_flower(environment_text(unit)))["FLOWER_ADDRESSES"].split()
    listening = dict(zip(addresses[::2], addresses[1::2], strict=True))
    listening.pop("--fleet-api-address", None)
    assert listening and all(address.startswith("127.0.0.1:") for address in listening.values())


@needs_systemd
def test_systemd_takes_them(tmp_path: Path) -> None:
    copies = copied(tmp_path)
    done = subprocess.run([_ANALYZE or "", "verify", "--man=no", *copies], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_would_notice(tmp_path: Path) -> None:
    """The test above can fail."""
    path = copied(tmp_path)[0]
    path.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSystem=strictly\nRestartSeconds=1"))
    done = subprocess.run([_ANALYZE or "", "verify", "--man=no", path], capture_output=True, text=True, timeout=60)
    assert "strictly" in done.stderr and "RestartSeconds" in done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_exposure(unit: str, tmp_path: Path) -> None:
    """systemd's own measure, 0 to 10: it is 9.2 without hardening, and what is left is what CUDA needs or could not be tried."""
    paths = {path.stem: path for path in copied(tmp_path)}
    command = [_ANALYZE or "", "security", "--offline=yes", "--no-pager", str(paths[unit])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at files")
    found = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= 3.5


def copied(folder: Path) -> list[Path]:
    """The units with programs that exist."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("flower-superlink", "flower-supernode", "flwr-splitkd"):
        program = programs / name
        program.write_text("#!/bin/sh\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    copies = []
    for unit in UNITS:
        copy = folder / f"{unit}.service"
        copy.write_text(unit_text(unit).replace(f"{BIN}/", f"{programs}/"))
        copies.append(copy)
    return copies
