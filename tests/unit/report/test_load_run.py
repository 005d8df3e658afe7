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
