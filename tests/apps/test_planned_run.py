"""The demo app with a planner: a round goes on without devices that cannot take their turn, and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_split_kd import APP, settings
from transformers import AutoModelForCausalLM

from flower_harness import federation, newest

SMALL = {"name": "small", "frequency_hz": 1e9, "cores": 64}
FLEET: dict[str, Any] = {
    "server": "RTX 4090",
    "devices": {
        "0": {"profile": 1, "link": "wired-100m"},
        "1": {"profile": {**SMALL, "memory_bytes": 1e6}, "link": "wired-100m"},
        "2": {"profile": {**SMALL, "battery_j": 1e-6, "power_coefficient": 1e-26}, "link": "wired-100m"},
        "3": {"profile": SMALL, "link": "wired-10k"},
    },
}


@pytest.mark.slow
def test_infeasible_devices_are_left_out_with_value_bound_and_remedy(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.json"
    fleet.write_text(json.dumps(FLEET))
    config = {
        **settings(tmp_path),
        "num-server-rounds": 1,
        "cut-policy": "optimal",
        "max-delay": 60.0,
        "fleet": str(fleet),
        "modelled": True,
    }
    with federation("simulation", tmp_path / "logs", supernodes=4) as running:
        outcome = running.run(APP, config, timeout_s=240.0)
    assert outcome.completed, outcome.tail()
    folder = newest((tmp_path / "runs").iterdir())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    turns = {line["device"]: line for line in lines if line["kind"] == "turn"}
    assert set(turns) == {"0", "1", "2", "3"}
    assert "error" not in turns["0"] and turns["0"]["modelled_s"] > 0 and "next best cut" in turns["0"]["reason"]
    for name, words in {
        "1": ("small", "device memory", "give the device", "GiB of memory"),
        "2": ("small", "battery", "let the device have", "J in its battery"),
        "3": ("small", "within 60 s", "max_delay_s", "raise `max_delay_s` to"),
    }.items():
        assert all(word in turns[name]["error"] for word in words), turns[name]["error"]
        assert turns[name]["error"] in outcome.log
    AutoModelForCausalLM.from_pretrained(folder / "student")
    rounds = [line for line in lines if line["kind"] == "round"]
    assert rounds[0]["modelled-s"] == pytest.approx(turns["0"]["modelled_s"])
