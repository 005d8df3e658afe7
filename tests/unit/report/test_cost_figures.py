"""Drawings of costs: each bar and each mark is what a turn recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import write_run

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flwr_splitkd.report.cost_figures import (
    draw_modelled_energy,
    draw_modelled_seconds,
    draw_progress_by_energy,
    draw_progress_by_time,
    draw_seconds,
)
from flwr_splitkd.report.load import RunData, load_run


def drawn(draw: Any, *runs: RunData) -> Axes:
    axes = Figure(layout="constrained").subplots()
    draw(axes, list(runs))
    axes.figure.canvas.draw()
    return axes


def heights(axes: Axes) -> dict[str, list[float]]:
    """Of the parts of each bar, without the gaps between bars."""
    parts = {str(patch.get_label()): patch.get_data() for patch in axes.patches}
    return {
        label: [top - low for top, low in zip(data.values, data.baseline, strict=True) if not math.isnan(top)]
        for label, data in parts.items()
    }


def marks(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.lines
    }


def test_a_bar_is_as_high_as_the_turn_was_long(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["0", "1"], failing="1", costs="planned").path)
    axes = drawn(draw_seconds, run)
    assert heights(axes) == {
        "device": pytest.approx([0.5, 0.5]),
        "uplink": pytest.approx([0.2, 0.2]),
        "server": pytest.approx([0.4, 0.4]),
        "downlink": pytest.approx([0.1, 0.1]),
        "set-up, commits": pytest.approx([0.2, 0.2]),
        "other": pytest.approx([0.1, 0.1]),
    }
    edges = axes.patches[0].get_data().edges
    assert [(a + b) / 2 for a, b in zip(edges[::2], edges[1::2], strict=True)] == pytest.approx([1, 3])
    assert axes.patches[-1].get_data().values[0] == pytest.approx(1.5)
    # 13 s were predicted for turns of 1.5 s: such marks stay inside the drawing, and say so.
    shown = marks(axes)
    assert [x for x, _ in shown["predicted, off the scale"]] == [1, 3]
    assert [x for x, _ in shown["failed"]] == [2, 4]
    assert axes.get_ylim()[1] < 2


def test_modelled_seconds_and_what_was_predicted(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1", "2"], costs="modelled", waited_s=2.5).path)
    axes = drawn(draw_modelled_seconds, run)
    assert heights(axes) == {
        "device": pytest.approx([4, 4, 4]),
        "uplink": pytest.approx([6, 3, 2]),
        "server": pytest.approx([2, 2, 2]),
        "downlink": pytest.approx([1, 1, 1]),
        "out of reach": pytest.approx([0, 2.5, 0]),
    }
    assert marks(axes)["predicted"] == [(1, 13), (2, 13), (3, 10)]
    assert axes.get_ylabel() == "modelled seconds"
    # What a simulation itself took is not what was predicted.
    assert not [label for label in marks(drawn(draw_seconds, run)) if label.startswith("predicted")]


@pytest.mark.parametrize(
    ("draw", "ends", "axis"),
    [
        (draw_progress_by_time, [0, 13, 13 + 10], "modelled time, s"),
        (draw_progress_by_energy, [0, 26, 26 + 24.5], "modelled energy, J"),
    ],
)
def test_policies_are_compared_at_equal_modelled_costs(draw: Any, ends: list[float], axis: str, tmp_path: Path) -> None:
    one = load_run(write_run(tmp_path / "one", 2, ["0"], costs="modelled").path)
    two = load_run(write_run(tmp_path / "two", 2, ["0"], costs="modelled", factor=2.0).path)
    axes = drawn(draw, one, two)
    shown = marks(axes)
    assert shown["one"] == [pytest.approx(point) for point in zip(ends, (403.4, 54.6, 54.6), strict=True)]
    assert [x for x, _ in shown["two"]] > ends
    assert (axes.get_xlabel(), axes.get_ylabel()) == (axis, "perplexity on the server")


def test_large_costs_are_in_large_units(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1"], costs="modelled", factor=5000.0).path)
    axes = drawn(draw_progress_by_time, run)
    assert axes.get_xlabel() == "modelled time, h"
    assert axes.lines[0].get_xdata()[-1] == pytest.approx((2 * 4 * 5000 + 9 + 6) / 3600)
    assert drawn(draw_modelled_energy, run).get_ylabel() == "modelled kJ per turn"


def test_late_turns_have_a_ring(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1", "2"], costs="modelled").path)
    shown = marks(drawn(draw_modelled_energy, run))
    assert shown["device and server"] == [(1, 26), (2, 24.5), (3, 24)]
    assert shown["device"] == [(1, 7), (2, 5.5), (3, 5)]
    assert shown["late"] == [(2, 24.5)]
    assert marks(drawn(draw_modelled_energy, run, run)).keys() == {"run", "late"}


def test_no_power_of_ten_lies_under_the_legend(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1"], costs="modelled", factor=1e9).path)
    for draw in (draw_modelled_seconds, draw_modelled_energy):
        axes = drawn(draw, run)
        assert axes.get_ylim()[1] > 1e3
        assert axes.yaxis.get_offset_text().get_text() == ""
