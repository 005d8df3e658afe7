"""Ordinary Flower apps, before and after the diff that turns them into split knowledge distillation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flower_harness import federation, newest
from import_graph import ROOT

pytest.importorskip("torch", reason="the apps need it, in processes of their own")

APPS = ROOT / "apps" / "drop_in"
NAMES = ("cnn", "text_classifier", "llm_lora")
MOST_LINES = 15
SHORTER = {"text_classifier": {"local-epochs": 1}}


def changed_lines(diff: str) -> tuple[int, int]:
    """Lines that a unified diff adds and removes."""
    lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def converted(name: str, folder: Path) -> Path:
    target = folder / name
    shutil.copytree(APPS / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    # Outside of any repository, or git would look for the files there.
    command = ["git", "apply", "-p1", str(APPS / f"{name}.diff")]
    subprocess.run(
        command, cwd=target, check=True, env={"GIT_CEILING_DIRECTORIES": str(folder), "PATH": "/usr/bin:/bin"}
    )
    return target


def shown(capsys: pytest.CaptureFixture[str], name: str, log: str) -> None:
    with capsys.disabled():
        print(f"\n{name}:")
        for line in re.findall(r"(?:Aggregated )?MetricRecord: \{.*\}", log):
            print(f"    {line}")


@pytest.mark.parametrize("name", NAMES)
def test_the_diff_is_short_and_in_the_docs(name: str, covered: Callable[[str, object], None]) -> None:
    diff = (APPS / f"{name}.diff").read_text(encoding="utf-8")
    added, removed = changed_lines(diff)
    covered(f"lines to convert {name}", f"{added} added, {removed} removed")
    assert 0 < added + removed <= MOST_LINES
    assert diff in (ROOT / "docs" / "how-to" / "drop-in.md").read_text(encoding="utf-8")


def test_every_app_has_its_diff() -> None:
    assert sorted(path.name for path in APPS.iterdir() if path.is_dir()) == sorted(NAMES)
    assert sorted(path.stem for path in APPS.glob("*.diff")) == sorted(NAMES)


@pytest.mark.by_hand  # Flower alone: it changes with the examples
@pytest.mark.parametrize("name", NAMES)
def test_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with federation("simulation", tmp_path / "logs", supernodes=2) as running:
        outcome = running.run(APPS / name, {"output": str(tmp_path / "output")}, timeout_s=200.0)
    assert outcome.completed, outcome.tail()
    assert "Starting FedAvg strategy" in outcome.log
    assert (tmp_path / "output").exists()
    shown(capsys, f"{name}, before", outcome.log)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "cnn" else pytest.mark.by_hand) for name in NAMES]
)
def test_after(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with federation("simulation", tmp_path / "logs", supernodes=2) as running:
        app = converted(name, tmp_path)
        outcome = running.run(app, {"output": str(tmp_path / "output"), **SHORTER.get(name, {})}, timeout_s=200.0)
        assert outcome.completed, outcome.tail()
        # It writes below the ServerApp's working directory, which ends with the federation.
        found = newest(Path(str(running.home)).parent.rglob("metrics.jsonl"))
        turns = [line for line in map(json.loads, found.read_text().splitlines()) if line["kind"] == "turn"]
    assert (tmp_path / "output").exists()
    assert not [turn["error"] for turn in turns if "error" in turn]
    trained = [turn for turn in turns if turn["mode"] == "train"]
    assert len(trained) == 4
    assert all(turn["kl_divergence"] > 0 for turn in trained)
    assert sum(turn["loss"] for turn in trained[2:]) < sum(turn["loss"] for turn in trained[:2])
    shown(capsys, f"{name}, after", outcome.log)
