"""`flwr-splitkd report`, as a person calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from recorded_runs import write_run

from flwr_splitkd import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", 1, ["0"])
    assert call(monkeypatch, "report", str(tmp_path / "run")) == 0
    target = tmp_path / "run" / "report.html"
    assert capsys.readouterr().out.startswith(f"{target} (")
    assert target.read_text().startswith("<!DOCTYPE html>")


def test_two_runs_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, 1, ["0"])
    target = tmp_path / "both.html"
    assert call(monkeypatch, "report", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(target)) == 0
    assert "one against two" in target.read_text()


def test_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "report", str(tmp_path / "nothing")) == 1
    error = capsys.readouterr().err
    assert error.startswith("flwr-splitkd: ") and error.count("\n") == 1
    assert "Expected a folder with metrics.jsonl" in error
    write_run(tmp_path / "run", 1, ["0"])
    assert call(monkeypatch, "report", str(tmp_path / "run"), "-o", str(tmp_path / "no" / "x.html")) == 1
    assert "`--output` is" in capsys.readouterr().err


def test_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call(monkeypatch, "report", str(tmp_path)) == 1
    assert "pip install 'flwr_splitkd[report]'" in capsys.readouterr().err
