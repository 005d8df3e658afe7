"""`flwr-splitkd case-study`, as a person calls it."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from flwr_splitkd import cli

FILES = ["claims.csv", "claims.png", "figure-3-delay.csv", "figure-3-delay.png", "figure-4-energy.csv"]
FILES += ["figure-4-energy.png", "outcomes.csv"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "case-study", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def quick(output: Path, seed: int = 0) -> list[str]:
    return ["split-kd", "--quick", "--streets", "1", "--rounds", "1", "--seed", str(seed), "--output", str(output)]


def test_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "study"
    assert call(monkeypatch, *quick(output)) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    shown, progress = capsys.readouterr()
    assert all(str(output / name) in shown for name in FILES)
    said = [re.fullmatch(r"(.+): (\d+) of (\d+)", line) for line in progress.splitlines()]  # no terminal: lines
    assert 1 <= len(said) <= 20 and all(said) and said[-1] is not None and said[-1][2] == said[-1][3]
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith(".png"))
    with (output / "claims.csv").open() as file:
        claims = list(csv.DictReader(file))
    reached = {clock: 0 for clock in ("max", "base", "half", "quarter", "optimal")}
    settings = dict.fromkeys(reached, 0)
    for row in claims:
        if row["claim"] == "energy-vs-device-only":
            settings[row["clock"]] += 1
            reached[row["clock"]] += row["reached"] == "yes"
    for clock, count in reached.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"│ {clock} "))
        assert f"{count} of {settings[clock]}" in line


def test_a_seed_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed gives other numbers: tests/unit/case_studies/test_split_kd.py."""
    for name in ("one", "same"):
        assert call(monkeypatch, *quick(tmp_path / name, seed=3)) == 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "same" / name).read_bytes(), name


def test_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert call(monkeypatch, *quick(tmp_path / "file")) == 1
    error = capsys.readouterr().err
    assert error.startswith("flwr-splitkd: `--output` is") and error.count("\n") == 1


def test_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call(monkeypatch, *quick(tmp_path)) == 1
    assert "pip install 'flwr_splitkd[report]'" in capsys.readouterr().err


@pytest.fixture
def small_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, and a training that is made up."""
    pytest.importorskip("alns")
    from flwr_splitkd.case_studies.scct.settings import Scale
    from flwr_splitkd.schedulers.chain import AlnsSettings

    short = AlnsSettings(cooling=0.5)
    scale = Scale(
        devices=(1, 2), edges=(10e12,), rounds=2, epochs=2, draws=2, cells=1, passes=3, search=short, long_search=short
    )
    monkeypatch.setattr(Scale, "quick", lambda: scale)


@pytest.mark.slow
def test_the_study_of_scct_without_training(
    small_study: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "same"):
        assert call(monkeypatch, "scct", "--quick", "--no-training", "--output", str(tmp_path / name)) == 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    stems = ["figure-6-algorithm-1", "figure-7-algorithm-2", "figure-9-latency"]
    assert files == ["claims.csv", *(f"{stem}.{kind}" for stem in stems for kind in ("csv", "png"))]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "same" / name).read_bytes(), name
    shown = capsys.readouterr().out
    assert "figures 8, 10 and 11 are left out" in shown and "Quick:" in shown


def test_the_study_of_scct_names_its_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["flwr_splitkd.cli.case_study.scct"], "find_spec", lambda name: None)
    assert call(monkeypatch, "scct", "--output", str(tmp_path)) == 1
    assert "pip install 'flwr_splitkd[alns]'" in capsys.readouterr().err
