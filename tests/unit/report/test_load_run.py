"""A run folder as data, whoever wrote it and wherever it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_runs import write_run

from flwr_splitkd.errors import StoreError
from flwr_splitkd.report.load import load_run


def test_everything_that_a_run_wrote(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["0", "1", "2"], failing="1").path)
    assert run.name == "run"
    assert run.notes == []
    assert [turn.index for turn in run.turns] == [1, 2, 3, 4, 5, 6]
    assert [turn.step for turn in run.turns] == [4, 4, 8, 12, 12, 16]
    assert [turn.completed for turn in run.turns] == [True, False, True] * 2
    assert run.turns[1].error == "it left <b>without</b> a word"
    assert run.turns[1].loss is None
    assert run.turns[2].cross_entropy == pytest.approx(5.0 / 3)
    assert run.turns[2].perplexity == pytest.approx(5.294, abs=1e-3)
    assert run.evaluations == {
        r: {"loss": v, "perplexity": p} for r, v, p in ((0, 6.0, 403.4), (1, 4.0, 54.6), (2, 2.0, 54.6))
    }
    assert run.rounds == {1: {"train-loss": 3.0}, 2: {"train-loss": 1.5}}
    assert run.config["versions"] == {"flwr": "1.41.0"}


def test_a_run_that_was_killed_in_mid_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1, ["0"])
    whole = len(load_run(tmp_path).turns)
    with folder.metrics.open("a") as file:
        file.write('{"kind": "turn", "server_rou')
    run = load_run(tmp_path)
    assert len(run.turns) == whole
    assert "cut short" in run.notes[0]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    run = load_run(tmp_path)
    assert run.turns == []
    assert run.notes == [
        "There is no config.json: the run's settings are not known.",
        "The run has not recorded anything yet.",
    ]


def test_other_modes_and_unknown_lines(tmp_path: Path) -> None:
    lines = (
        '{"kind": "turn", "server_round": 1, "turn": 1, "node_id": 7, "device": "a", "mode": "deliver", "handover_bytes": 5}',
        '{"kind": "weather"}',
        '["no object"]',
        '{"kind": "turn", "server_round": 1, "turn": 2, "node_id": 7, "device": "", "perplexity": null, "num_steps": 3}',
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = load_run(tmp_path)
    assert [(turn.mode, turn.device, turn.step) for turn in run.turns] == [("deliver", "a", 0), ("train", "7", 3)]
    assert run.turns[1].perplexity is None
    assert [turn.index for turn in run.training] == [2]


def test_what_a_planner_and_a_modelled_world_wrote(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1", "2"], failing="1", costs="modelled", waited_s=2.0).path)
    first, failed, last = run.turns
    assert (failed.plan, failed.modelled) == (None, None)
    assert first.plan is not None and first.modelled is not None and last.modelled is not None
    assert (first.plan.codec, first.plan.binding, first.plan.frequency_hz) == ("int8", "delay", 1.5e9)
    assert first.plan.reason.startswith("cut 2, codec int8")
    assert (first.plan.uplink_s, first.plan.total_s, first.plan.total_j) == (6.0, 13.0, 26.0)
    assert first.plan.error == {}
    assert (last.modelled.uplink_s, last.modelled.total_s, last.modelled.clock_s) == (3.0, 12.0, 25.0)
    assert (last.modelled.total_j, last.modelled.device_j, last.modelled.battery_j) == (24.5, 5.5, None)
    assert (first.modelled.late, last.modelled.late) == (False, True)
    measured = load_run(write_run(tmp_path / "measured", 1, ["0"], costs="planned").path).turns[0]
    assert measured.modelled is None
    assert measured.plan is not None and measured.plan.error == {"device_s": 7.0, "uplink_s": 0.1}


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    line = (
        '{"kind": "turn", "server_round": 1, "turn": 1, "node_id": 7, "reason": 5, "predicted_s": null, "device_s": NaN, '
        '"predicted_j": true, "prediction_error": {"uplink_s": Infinity, "device_s": 0.5}, "modelled_s": "long"}'
    )
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    turn = load_run(tmp_path).turns[0]
    assert turn.device_s is None
    assert turn.modelled is None
    assert turn.plan is not None
    assert (turn.plan.reason, turn.plan.total_s, turn.plan.total_j) == ("", None, None)
    assert turn.plan.error == {"device_s": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": \n{"kind": "round"}\n', "Line 1 of .*metrics.jsonl is damaged"),
        ('{"kind": "turn", "turn": 1}\n', "lacks 'server_round'"),
    ],
)
def test_what_no_run_writes(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(StoreError, match=message):
        load_run(tmp_path)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Expected a folder with metrics.jsonl, such as runs/<id>"):
        load_run(tmp_path / "nothing")


def test_a_damaged_config_does_not_hide_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1, ["0"])
    (folder.path / "config.json").write_text("{")
    run = load_run(tmp_path)
    assert run.config == {}
    assert len(run.turns) == 1
    assert "config.json is damaged" in run.notes[0]
