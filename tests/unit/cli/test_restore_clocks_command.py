"""`flwr-splitkd restore-clocks`, as a person calls it after a crash."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fake_nvml
import pytest
from fake_nvml import Machine

from flwr_splitkd import cli

pytest.importorskip("torch", reason="the command needs it")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "gpus.json")
    monkeypatch.setenv(fake_nvml.STATE, str(made.path))
    monkeypatch.setenv("FLWR_SPLITKD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    return made


def call(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "restore-clocks"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def left_behind(machine: Machine, tmp_path: Path) -> Path:
    machine.set(locked_mhz=[600, 600])
    path = tmp_path / "state" / "clocks" / fake_nvml.GPU["uuid"] / "clock.json"
    path.parent.mkdir(parents=True)
    entry = {"gpu": "the GPU", "process_id": 2**22 + 1, "started_ticks": 5, "boot_id": "", "limits": {}}
    path.write_text(json.dumps(entry))
    return path


def test_what_it_says(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 0
    said = capsys.readouterr().out
    assert said == f"No clock was left set by a run that remembers its clocks in {tmp_path / 'state' / 'clocks'}.\n"
    path = left_behind(machine, tmp_path)
    assert call(monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.startswith("NVIDIA H100") and "process 4194305 had left set, is put back" in said
    assert machine.locked_mhz is None and not path.exists()


def test_without_the_right_it_ends_with_an_error_of_one_line(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(machine, tmp_path)
    machine.set(root=False)
    assert call(monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("flwr-splitkd: The clock of NVIDIA H100") and said.count("\n") == 1
    assert "Insufficient Permissions" in said
    assert machine.locked_mhz == [600, 600]
