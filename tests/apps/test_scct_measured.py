"""The SCCT app deciding on what it measures: a device that turns out to be slow gets fewer layers from the second round on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_scct_app import APP, SETTINGS, _lines, models  # noqa: F401  # the fixture

from flower_harness import federation, newest
from flwr_splitkd.strategies.chain.progress import ChainProgress

DELAY_S = 0.4
_SLOW = f'''
import time


class Slow:
    """A device's batches; device 0 takes a while for each."""

    def __init__(self, made, context):
        self._made, self._seconds = made, {DELAY_S} * (context.node_config["partition-id"] == 0)
        self.dataset, self.batch_size, self.sampler = made.dataset, made.batch_size, made.sampler

    def __len__(self):
        return len(self._made)

    def __iter__(self):
        for batch in self._made:
            time.sleep(self._seconds)
            yield batch
'''


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The app, with a slow device 0 of which the plan believes that it is fast."""
    folder = tmp_path / "app"
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    _change(folder / "scct_app" / "plan.py", "MeasuredCell(", 'MeasuredCell(named_flops={"0": 1e14}, ')
    client = folder / "scct_app" / "client_app.py"
    _change(client, "app = ClientApp()\n", f"{_SLOW}\n\napp = ClientApp()\n")
    _change(client, "step_timeout_s=config.answer_timeout_s\n    )\n    return client.train", "TRAIN")
    _change(client, "data=data, TRAIN", "data=Slow(data, context), step_timeout_s=3600\n    )\n    return client.train")
    return folder


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has changed"
    head, _, tail = text.rpartition(old)
    path.write_text(head + new + tail)


@pytest.mark.slow
def test_a_slow_device_gets_fewer_layers(
    models: dict[str, str],  # noqa: F811
    app: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    planned: dict[str, Any] = {
        **{"mechanism": "SCCTT", "resources": "measured", "min-available-nodes": 3, "run-dir": str(runs)},
        **{"cell-device-flops": 1e9, "cell-edge-flops": 1e10, "iterations": 3, "fraction-evaluate": 0.0},
    }
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=3) as running:
        outcome = running.run(app, {**SETTINGS, **models, **planned}, timeout_s=280.0)
    assert outcome.completed, outcome.tail()
    lines = _lines(runs)
    decisions = [line for line in lines if line["kind"] == "decision"]
    assert [one["split_points"]["0"] for one in decisions] == [3, 1], decisions
    trained = [line for line in lines if line["kind"] == "device"]
    assert {(one["server_round"], one["device"], one["split_point"]) for one in trained} == {
        (one["server_round"], name, point) for one in decisions for name, point in one["split_points"].items()
    }
    measured = [line for line in lines if line["kind"] == "measurement"]
    assert [(one["server_round"], one["epoch"]) for one in measured] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    # An epoch's last iteration counts with the next epoch's, and a round's with its last epoch's.
    assert [one["devices"]["0"]["num_steps"] for one in measured] == [2, 4, 2, 4]
    for one in measured:
        assert one["dropped"] == [] and sorted(one["devices"]) == ["0", "1", "2"]
        assert one["devices"]["0"]["measured_device_s"] >= DELAY_S
        assert max(one["devices"][name]["measured_device_s"] for name in "12") < DELAY_S
    # While its first iteration waits for others to come, a device is at its next batch already; later ones take their time.
    assert all(one["measured_iteration_s"] > DELAY_S / 2 for one in measured if one["epoch"] == 2)
    # The first epoch was believed to take next to nothing. From the next one on it is known.
    first, second = (one["devices"]["0"] for one in measured[:2])
    assert first["predicted_device_s"] < 0.01
    assert second["predicted_device_s"] == pytest.approx(first["measured_device_s"], rel=0.05)
    known = [line for line in lines if line["kind"] == "epoch"][1]
    assert known["predicted_iteration_s"] > DELAY_S and "modelled_s" not in json.dumps(lines)
    state = ChainProgress.load(newest(runs.glob("*/config.json")).parent).planner["measured"]
    assert sorted(state["devices"]) == ["0", "1", "2"] and len(state["devices"]["0"]["epochs"]) == 4
