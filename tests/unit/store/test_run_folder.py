"""What a run leaves behind."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.store import RunFolder


def test_metrics_config_and_summary(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "1")
    folder.append_metrics({"kind": "turn", "loss": 1.5})
    folder.append_metrics({"kind": "round", "perplexity": math.inf})
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [
        {"kind": "turn", "loss": 1.5},
        {"kind": "round", "perplexity": None},
    ]
    folder.write_config({"seed": 1, "path": Path("x")})
    merged = folder.write_config({"seed": 2, "strategy": {}})
    assert merged == json.loads((folder.path / "config.json").read_text()) == {"seed": 2, "path": "x", "strategy": {}}
    folder.write_summary("the table\n")
    assert (folder.path / "summary.txt").read_text() == "the table\n"
    assert {path.name for path in folder.path.iterdir()} == {"config.json", "metrics.jsonl", "summary.txt"}
    assert folder.commits.parent == folder.student.parent == folder.path


def test_a_relative_path_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("runs"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.append_metrics({})
    assert (tmp_path / "runs" / "metrics.jsonl").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"`run_folder` is {tmp_path / 'file' / 'x'}; it cannot be created"):
        RunFolder(tmp_path / "file" / "x")


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.metrics.mkdir()
    with pytest.raises(StoreError, match="metrics.jsonl cannot be written"):
        folder.append_metrics({"kind": "turn"})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with pytest.raises(StoreError, match=f"is in use by process {os.getpid()}; expected one at a time"):
            with RunFolder(tmp_path / "run").locked():
                pytest.fail("both are in")
    with RunFolder(tmp_path / "run").locked():  # free again
        pass


def test_a_half_written_line_is_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"kind": "turn", "loss": 1.0})
    with folder.metrics.open("a") as file:
        file.write('{"kind": "tu')
    with folder.locked():
        folder.append_metrics({"kind": "turn", "loss": 2.0})
    assert [json.loads(line)["loss"] for line in folder.metrics.read_text().splitlines()] == [1.0, 2.0]


def test_a_run_to_resume_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`resume` is '.*nowhere'; expected the folder of an earlier run"):
        RunFolder.existing(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert RunFolder.existing(tmp_path).path == tmp_path


def test_a_config_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert RunFolder(tmp_path).read_config() == {}
