"""The numbers behind the drawings of costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_runs import old_run, write_run

from flwr_splitkd.report.costs import (
    Point,
    decided,
    has_progress,
    measured_stages,
    modelled,
    modelled_stages,
    prediction_errors,
    progress,
    timed,
    unit_of,
)
from flwr_splitkd.report.load import RunData, load_run


def without(path: Path, run: RunData, *names: str) -> RunData:
    """The same run, had its evaluations lacked some metrics."""
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            for name in names:
                record.pop(name, None)
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_run(path)


def test_what_a_run_knows_of_costs(tmp_path: Path) -> None:
    old = old_run(tmp_path / "old")
    plain, planned, world = (
        load_run(write_run(tmp_path / (costs or "plain"), 1, ["0", "1"], costs=costs).path)
        for costs in ("", "planned", "modelled")
    )
    known = [[ask(run) for ask in (timed, decided, modelled, has_progress)] for run in (old, plain, planned, world)]
    assert known == [
        [False, False, False, False],
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, True],
    ]
    assert measured_stages(old.turns[0]) is None
    assert modelled_stages(planned.turns[0]) is None


def test_what_no_stage_explains_is_the_rest(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1"], costs="modelled", waited_s=3.0).path)
    measured, first, second = (
        measured_stages(run.turns[0]),
        modelled_stages(run.turns[0]),
        modelled_stages(run.turns[1]),
    )
    assert measured is not None and first is not None and second is not None
    assert sum(measured.values()) == pytest.approx(1.5)
    assert measured["other"] == pytest.approx(0.1)
    assert first["out of reach"] == 0
    whole = measured_stages(replace(run.turns[0], duration_s=1.4 + 1e-12))
    assert whole is not None and whole["other"] == 0
    assert second["out of reach"] == pytest.approx(3.0)


def test_median_errors_of_predictions(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1", "2"], costs="planned").path)
    assert prediction_errors(run) == pytest.approx({"device": 7.0, "uplink": 0.2})
    # In a modelled world they are those against its own seconds: uplinks of 6, 6 and 3 s were expected for 6, 3 and 2.
    world = load_run(write_run(tmp_path / "world", 1, ["0", "1", "2"], costs="modelled").path)
    assert prediction_errors(world) == pytest.approx({"device": 0.0, "uplink": 0.5, "server": 0.0, "downlink": 0.0})
    assert prediction_errors(old_run(tmp_path / "old")) == {}


def test_progress_is_of_what_all_runs_have(tmp_path: Path) -> None:
    one = load_run(write_run(tmp_path / "one", 1, ["0", "1"], costs="modelled").path)
    assert progress([one]) == ("perplexity on the server", [[Point(0, 0, 403.4), Point(23, 50.5, 54.6)]])
    loss_only = without(tmp_path / "loss", one, "perplexity")
    assert progress([one, loss_only])[0] == "loss on the server"
    nothing = without(tmp_path / "nothing", one, "perplexity", "loss")
    measure, (_, points) = progress([one, nothing])
    assert measure == "perplexity in turns"
    assert [(point.clock_s, point.energy_j) for point in points] == [(13, 26), (23, 50.5)]
    assert [point.value for point in points] == [turn.perplexity for turn in nothing.turns]
    # A run without modelled costs has no say.
    assert progress([one, old_run(tmp_path / "old")])[1][1] == []


@pytest.mark.parametrize(
    ("largest", "unit", "chosen"),
    [
        (0.0, "s", ("s", 1.0)),
        (17999.0, "s", ("s", 1.0)),
        (18000.0, "s", ("h", 3600.0)),
        (4999.0, "J", ("J", 1.0)),
        (5000.0, "J", ("kJ", 1e3)),
        (5e6, "J", ("MJ", 1e6)),
    ],
)
def test_units_fit_their_numbers(largest: float, unit: str, chosen: tuple[str, float]) -> None:
    assert unit_of(largest, unit) == chosen
