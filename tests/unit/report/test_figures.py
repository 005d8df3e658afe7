"""The picture: what is drawn is what was recorded, for one device, for a hundred, and for a run that failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_runs import old_run, write_run

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from flwr_splitkd.report.figures import (
    DRAWINGS,
    FigureFile,
    draw_bytes,
    draw_cuts,
    draw_loss,
    draw_perplexity,
    overview,
)
from flwr_splitkd.report.load import RunData, load_run
from flwr_splitkd.report.style import Drawing
from flwr_splitkd.store import RunFolder


def drawn(draw: object, *runs: RunData) -> dict[str, tuple[list[float], list[float]]]:
    axes = Figure().subplots()
    draw(axes, list(runs))  # type: ignore[operator]
    axes.figure.canvas.draw()
    lines = {str(line.get_label()): line for line in axes.lines}
    return {label: (list(line.get_xdata()), list(line.get_ydata())) for label, line in lines.items()}


def test_curves_hold_the_recorded_numbers(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["0", "1"], failing="1").path)
    loss = drawn(draw_loss, run)
    assert loss["loss"] == ([1, 3], [3.0, 1.0])
    assert loss["failed"][0] == [2, 4]
    perplexity = drawn(draw_perplexity, run)
    assert perplexity["on the server"] == ([0, 2, 4], [403.4, 54.6, 54.6])
    assert drawn(draw_bytes, run)["down"] == ([1, 3], [3.0, 3.0])


def test_the_timeline_has_a_row_for_each_device_and_a_mark_for_each_cut(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["10", "2", "nano"], failing="nano").path)
    cuts = drawn(draw_cuts, run)
    # Rows in the order 2, 10, nano.
    assert {label: list(zip(*points, strict=True)) for label, points in cuts.items()} == {
        "cut 2": [(1, 1), (4, 1)],
        "cut 3": [(2, 0), (5, 0)],
        "failed": [(3, 2), (6, 2)],
    }


def test_two_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    one, two = (load_run(write_run(tmp_path / name, 1, ["0", "1"]).path) for name in ("one", "two"))
    assert drawn(draw_loss, one, two).keys() == {"one", "two"}
    long = [load_run(write_run(tmp_path / f"2026-11-21-optimal-$cut-seed-{i}", 1, ["0"]).path) for i in (1, 2)]
    assert drawn(draw_loss, *long).keys() == {r"2026-11-2…cut-seed-1", r"2026-11-2…cut-seed-2"}
    assert drawn(draw_bytes, one, two).keys() == {"one: up", "one: down", "two: up", "two: down"}


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.title)
def test_any_run_can_be_drawn(drawing: Drawing, tmp_path: Path) -> None:
    many = [f"device $number$ {i} of a factory hall" for i in range(100)]
    for run in (
        load_run(write_run(tmp_path / "many", 3, many, costs="modelled").path),
        load_run(write_run(tmp_path / "one", 1, ["0"], costs="planned").path),
        load_run(write_run(tmp_path / "failed", 1, ["0"], failing="0", costs="modelled").path),
    ):
        drawn(drawing.draw, run)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    drawn(drawing.draw, load_run(tmp_path / "empty"))


def titles(run: RunData) -> list[str]:
    figure = overview(run)
    figure.canvas.draw()
    return [part.get_suptitle() for part in figure.subfigs]


def test_a_picture_has_what_its_run_recorded(tmp_path: Path) -> None:
    plain = ["Loss", "Perplexity", "Bytes", "Cuts"]
    assert titles(old_run(tmp_path / "old")) == plain
    assert titles(load_run(write_run(tmp_path / "plain", 1, ["0"]).path)) == [*plain, "Measured seconds"]
    assert titles(load_run(write_run(tmp_path / "world", 1, ["0"], costs="modelled").path)) == [
        *plain,
        "Measured seconds",
        "Modelled seconds",
        "Progress by modelled time",
        "Progress by modelled energy",
        "Modelled energy",
    ]


def test_two_runs_share_a_drawing_unless_each_needs_its_own(tmp_path: Path) -> None:
    old = old_run(tmp_path / "old")
    one, two = (load_run(write_run(tmp_path / n, 1, ["0"], costs="modelled").path) for n in ("one", "two"))
    groups = {d.title: [[run.name for run in group] for group in d.groups([one, two])] for d in DRAWINGS}
    assert groups["Modelled seconds"] == [["one"], ["two"]]
    assert groups["Progress by modelled time"] == [["one", "two"]]
    assert {d.title: [[run.name for run in group] for group in d.groups([old, two])] for d in DRAWINGS} == {
        **groups,
        "Loss": [["old", "two"]],
        "Perplexity": [["old", "two"]],
        "Bytes": [["old", "two"]],
        "Cuts": [["old"], ["two"]],
        "Measured seconds": [["two"]],
        "Modelled seconds": [["two"]],
        "Progress by modelled time": [["old", "two"]],
        "Progress by modelled energy": [["old", "two"]],
        "Modelled energy": [["old", "two"]],
    }


@pytest.mark.parametrize("error", [None, RuntimeError("the run failed")])
def test_the_picture_is_there_at_the_end(error: BaseException | None, tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1, ["0"])
    callback = FigureFile()
    callback.on_start(folder, {})
    callback.on_end(error)
    assert folder.figure.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_single_record_leaves_no_picture(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    callback = FigureFile()
    callback.on_start(folder, {})
    callback.on_end(None)
    assert not folder.figure.exists()
