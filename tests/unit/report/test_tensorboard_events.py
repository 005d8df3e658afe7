"""The same numbers as TensorBoard reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from recorded_runs import device, epoch, turns, with_costs, with_joules

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flwr_splitkd.report.tensorboard import TensorBoard
from flwr_splitkd.store import RunFolder


def test_scalars_by_step_and_by_round(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    callback = TensorBoard()
    callback.on_start(folder, {})
    callback.on_evaluation(0, {"perplexity": 403.4})
    for turn in turns(1, ["0", "1", "2"], failing="1"):
        callback.on_turn(turn)
    callback.on_round(1, {"train-loss": 2.5})
    callback.on_end(None)
    callback.on_end(None)  # nothing more to close

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(4, pytest.approx(3.0)), (8, pytest.approx(1.0))]
    assert [(e.step, e.value) for e in events.Scalars("server/perplexity")] == [(0, pytest.approx(403.4))]
    assert [(e.step, e.value) for e in events.Scalars("round/train-loss")] == [(1, 2.5)]
    assert [e.value for e in events.Scalars("train/cut")] == [2.0, 1.0]


def test_joules_where_they_were_measured(tmp_path: Path) -> None:
    callback = TensorBoard()
    callback.on_start(RunFolder(tmp_path), {})
    for turn in with_joules(turns(1, ["0", "1"])):
        callback.on_turn(turn)
    callback.on_end(None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/measured-device-j")] == [8.0, 8.0]
    assert [event.value for event in events.Scalars("train/measured-edge-j-per-step")] == [5.0]


def test_costs_of_turns(tmp_path: Path) -> None:
    callback = TensorBoard()
    callback.on_start(RunFolder(tmp_path), {})
    for turn in with_costs(turns(1, ["0", "1"]), "modelled"):
        callback.on_turn(turn)
    callback.on_end(None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {
        name: [event.value for event in events.Scalars(f"train/{name}")]
        for name in ("device-s", "predicted-s", "modelled-s", "modelled-j", "modelled-late", "planned-frequency-hz")
    }
    assert shown == {
        "device-s": [0.5, 0.5],
        "predicted-s": [13.0, 13.0],
        "modelled-s": [13.0, 10.0],
        "modelled-j": [26.0, 24.5],
        "modelled-late": [0.0, 1.0],
        "planned-frequency-hz": [1.5e9, 1.5e9],
    }
    assert "train/reason" not in events.Tags()["scalars"]


def test_epochs_by_step_of_the_module_and_devices_by_round(tmp_path: Path) -> None:
    callback = TensorBoard()
    callback.on_start(RunFolder(tmp_path), {"strategy": {"name": "SCCT"}})
    callback.on_evaluation(0, {"eval-f1": 1.5})
    callback.on_epoch(epoch(1, 1))
    callback.on_epoch(epoch(1, 2, reference_loss=5.0))
    callback.on_device(device(1, 1, "orin"))
    callback.on_device(replace(device(2, 1, "orin"), outcome=None, error="it left"))
    callback.on_device(device(1, 1, "orin", mode="evaluate"))
    callback.on_end(None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in ("epoch/loss", "epoch/iteration-s", "epoch/reference-loss", "evaluation/eval-f1")
    }
    assert shown == {
        "epoch/loss": [(10, 4.0), (20, 2.0)],
        "epoch/iteration-s": [(10, 1.0), (20, 0.5)],
        "epoch/reference-loss": [(20, 5.0)],
        "evaluation/eval-f1": [(0, 1.5)],
    }
    assert [(e.step, e.value) for e in events.Scalars("train/orin/split-point")] == [(1, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("evaluate/orin/uplink-bytes")] == [(1, float(1 << 20))]
