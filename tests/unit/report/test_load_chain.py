"""A run folder of the chain as data: its devices and epochs, once each, however often it was resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_runs import device, epoch, write_baseline, write_chain

from flwr_splitkd.errors import StoreError
from flwr_splitkd.report.chain import is_chain, last_round
from flwr_splitkd.report.load import load_run
from flwr_splitkd.store import RunFolder


def test_everything_that_a_run_wrote(tmp_path: Path) -> None:
    run = load_run(write_chain(tmp_path, 1, ["0", "1"], failing="1", reference=True).path)
    assert (run.turns, run.notes) == ([], [])
    assert [(one.server_round, one.mode, one.device) for one in run.devices] == [
        *((0, "evaluate", "0"), (0, "evaluate", "1"), (1, "train", "0")),
        *((1, "train", "1"), (1, "evaluate", "0"), (1, "evaluate", "1")),
    ]
    taken, failed = run.devices[2:4]
    assert (taken.split_point, taken.num_missed, taken.loss, taken.completed) == (1, 2, 2.0, True)
    assert (taken.uplink_bytes, taken.downlink_handover_bytes) == (3 << 20, 2 << 20)
    assert (taken.device_s, taken.edge_s, taken.cloud_s, taken.duration_s) == (1.0, 2.0, 3.0, 12.0)
    assert (failed.error, failed.completed, failed.split_point) == ("it left <b>without</b> a word", False, None)
    assert [(one.epoch, one.loss, one.reference_loss, one.iteration_s) for one in run.epochs] == [
        (1, 4.0, 5.0, 1.0),
        (2, 2.0, 5.0, 0.5),
    ]
    assert run.evaluations[1] == {"eval-exact_match": 5.0, "eval-f1": 7.5, "eval-loss": 4.0}


def test_a_round_that_was_begun_anew_counts_once(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, 1, ["0"])
    for record in (epoch(2, 1, loss=9.0), epoch(2, 2, loss=9.0), device(2, 0, "0", loss=9.0)):
        folder.append_metrics(record.to_json())
    folder.append_metrics(epoch(2, 1, loss=0.5).to_json())
    folder.append_metrics(device(2, 0, "0", loss=0.25).to_json())
    run = load_run(tmp_path)
    assert [(one.server_round, one.epoch, one.loss) for one in run.epochs] == [(1, 1, 4.0), (1, 2, 2.0), (2, 1, 0.5)]
    assert [one.loss for one in run.devices if one.server_round == 2] == [0.25]
    assert run.notes == [
        "The run was resumed and began a round anew: lines left out because later ones replace them: 3."
    ]


def test_a_device_whose_round_ended_the_run_took_no_part(tmp_path: Path) -> None:
    line = '{"kind": "device", "server_round": 1, "node_id": 7, "device": "", "mode": "train", "error": ""}'
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    one = load_run(tmp_path).devices[0]
    assert (one.device, one.completed, one.error) == ("7", False, "the run ended in this round")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "device", "device": "0"}', "A line of kind 'device' in .* lacks 'server_round'"),
        ('{"kind": "epoch", "server_round": 1, "epoch": 2}', "A line of kind 'epoch' in .* lacks 'num_iterations'"),
    ],
)
def test_what_no_run_writes(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(StoreError, match=message):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "config", "expected"),
    [
        ('{"kind": "device", "server_round": 1}', {}, True),
        ('{"kind": "epoch", "server_round": 1, "epoch": 1, "num_iterations": 5}', {}, True),
        ('{"kind": "evaluation", "server_round": 1, "eval-f1": 5.0}', {}, True),
        ('{"kind": "evaluation", "server_round": 1, "eval-f1": 5.0}', {"strategy": {"seed": 1}}, False),
        ('{"kind": "evaluation", "server_round": 1, "loss": 5.0}', {}, False),
        ('{"kind": "evaluation", "server_round": 1, "loss": 5.0}', {"strategy": {"name": "SCCT"}}, True),
        ('{"kind": "turn", "server_round": 1, "turn": 1}', {"strategy": {"name": "SCCT"}}, False),
        ("", {"strategy": {"name": "SCCT"}}, True),
        ("", {}, False),
    ],
)
def test_what_kind_of_run_it_is(line: str, config: dict[str, object], expected: bool, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    folder.metrics.write_text(line + "\n" if line else "")
    assert is_chain(load_run(tmp_path)) is expected


def test_the_last_round_of_a_run_that_ended_within_one(tmp_path: Path) -> None:
    folder = write_baseline(tmp_path, 2)
    assert last_round(load_run(tmp_path)) == 2
    folder.append_metrics(epoch(3, 1).to_json())
    assert last_round(load_run(tmp_path)) == 3
