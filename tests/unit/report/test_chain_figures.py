"""The chain's drawings: what is drawn is what was recorded, of one run, of two, and of a baseline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import device, epoch, write_baseline, write_chain, write_run

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from flwr_splitkd.report.chain_figures import (
    chain_drawings,
    draw_chain_bytes,
    draw_chain_loss,
    draw_iteration_seconds,
    draw_metric,
    draw_split_points,
)
from flwr_splitkd.report.figures import FigureFile, overview
from flwr_splitkd.report.load import RunData, load_run
from flwr_splitkd.store import RunFolder


def drawn(draw: Callable[..., None], *runs: RunData) -> dict[str, list[tuple[float, float]]]:
    """The points of each labelled curve, and under an empty name those of one without a label."""
    axes = Figure().subplots()
    draw(axes, list(runs))
    axes.figure.canvas.draw()
    lines: Any = axes.lines
    return {
        str(line.get_label()).removeprefix("_child0"): list(
            zip(*(map(float, part) for part in line.get_data()), strict=True)
        )
        for line in lines
    }


def test_curves_hold_the_recorded_numbers(tmp_path: Path) -> None:
    run = load_run(write_chain(tmp_path, 2, ["0", "1", "2"], failing="2", reference=True).path)
    assert drawn(draw_chain_loss, run) == {
        "all devices": [(10, 4.0), (20, 2.0), (30, pytest.approx(4 / 3)), (40, 1.0)],
        "LLM without the encoder": [(10, 5.0), (20, 5.0), (30, 5.0), (40, 5.0)],
    }
    assert drawn(partial(draw_metric, metric="eval-f1"), run) == {"": [(0, 0.0), (1, 7.5), (2, 15.0)]}
    assert drawn(draw_chain_bytes, run) == {
        "up": [(1, 6.0), (2, 6.0)],
        "down": [(1, 8.0), (2, 8.0)],
        "layers, within both": [(1, 6.0), (2, 6.0)],
        "evaluation, both ways": [(0, 3.0), (1, 3.0), (2, 3.0)],
    }
    assert drawn(draw_iteration_seconds, run) == {
        "first epoch of a round": [(10, 1.0), (30, 1.0)],
        "later epochs": [(20, 0.5), (40, 0.5)],
    }


def test_the_timeline_has_a_row_for_each_device_and_a_mark_for_each_split_point(tmp_path: Path) -> None:
    run = load_run(write_chain(tmp_path, 2, ["10", "2", "nano"], failing="nano").path)
    # Rows in the order 2, 10, nano.
    assert drawn(draw_split_points, run) == {
        "split point 1": [(1, 1), (2, 1)],
        "split point 2": [(1, 0), (2, 0)],
        "left out": [(1, 2), (2, 2)],
    }


def test_a_run_that_only_evaluated_has_a_timeline_too(tmp_path: Path) -> None:
    run = load_run(write_chain(tmp_path, 0, ["0"]).path)
    assert drawn(draw_split_points, run) == {"split point 1": [(0, 0)]}


def test_two_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    one = load_run(write_chain(tmp_path / "one", 1, ["0"], reference=True).path)
    two = load_run(write_baseline(tmp_path / "two", 1).path)
    assert drawn(draw_chain_loss, one, two).keys() == {"one", "one: without the encoder", "two"}
    assert drawn(partial(draw_metric, metric="eval-f1"), one, two) == {
        "one": [(0, 0.0), (1, 7.5)],
        "two": [(0, 0.0), (1, 3.0)],
    }
    assert drawn(draw_chain_bytes, one, two).keys() == {"one: up", "one: down"}
    assert drawn(draw_iteration_seconds, one, two).keys() == {"one: first", "one: later", "two: first", "two: later"}


def test_one_epoch_a_round_needs_no_second_curve(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for server_round in (1, 2):
        folder.append_metrics(epoch(server_round, 1).to_json())
    assert drawn(draw_iteration_seconds, load_run(tmp_path)) == {"": [(10, 1.0), (20, 1.0)]}


def titles(run: RunData) -> list[str]:
    figure = overview(run)
    figure.canvas.draw()
    return [part.get_suptitle() for part in figure.subfigs]


def test_a_picture_has_what_its_run_recorded(tmp_path: Path) -> None:
    metrics = ["Evaluation: exact match", "Evaluation: F1", "Evaluation: loss"]
    chain = load_run(write_chain(tmp_path / "chain", 1, ["0"]).path)
    assert titles(chain) == ["Loss", *metrics, "Bytes", "Seconds an iteration", "Split points"]
    cloud_only = load_run(write_baseline(tmp_path / "cloud", 1).path)
    assert titles(cloud_only) == ["Loss", *metrics[1:], "Seconds an iteration"]
    device_only = load_run(write_baseline(tmp_path / "device", 1, epochs=False).path)
    assert titles(device_only) == metrics[1:]
    folder = write_chain(tmp_path / "begun", 0, [])
    folder.metrics.write_text("")
    assert titles(load_run(folder.path)) == []


def test_any_run_can_be_drawn(tmp_path: Path) -> None:
    many = load_run(write_chain(tmp_path / "$many$", 3, [f"device $number$ {i} of a hall" for i in range(100)]).path)
    many.evaluations[1] = {"$x_{$": 1.0, "eval-$": 2.0}
    assert "On the server: " in " ".join(titles(many))
    failed = load_run(write_chain(tmp_path / "failed", 1, ["0"], failing="0").path)
    assert titles(failed)
    for drawing in chain_drawings([many, failed]):
        drawn(drawing.draw, many, failed)


def test_what_the_users_function_returned_is_told_from_what_devices_evaluated(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, 0, ["0"])
    folder.append_metrics({"kind": "evaluation", "server_round": 0, "eval-loss": 2.0, "loss": 3.0})
    names = [drawing.title for drawing in chain_drawings([load_run(tmp_path)])]
    assert names[1:3] == ["Evaluation: loss", "On the server: loss"]


def test_slugs_are_names_whatever_metrics_are_called(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"kind": "evaluation", "server_round": 0, 'eval-a" b': 2.0, "eval-a' b": 3.0})
    folder.append_metrics(device(1, 0, "0").to_json())
    slugs = [drawing.slug for drawing in chain_drawings([load_run(tmp_path)]) if drawing.slug]
    assert slugs == ["metric-0-", "metric-1-"]


def test_the_picture_is_there_at_the_end(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, 1, ["0"])
    callback = FigureFile()
    callback.on_start(folder, {})
    callback.on_end(None)
    assert folder.figure.read_bytes().startswith(b"\x89PNG")


def test_turns_have_no_drawing_of_the_chain(tmp_path: Path) -> None:
    assert "Split points" not in titles(load_run(write_run(tmp_path, 1, ["0"]).path))
