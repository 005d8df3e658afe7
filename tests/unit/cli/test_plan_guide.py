"""A fleet's file, as docs/how-to/plan.md has it, in a run of the chain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.schedulers.chain.planner import ChainPlanner
from flwr_splitkd.strategies.chain import ChainPlan

GUIDE = Path(__file__).parents[3] / "docs/how-to/plan.md"


def test_the_chains_file_makes_a_run_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = re.findall(r"^## A chain\n(.*?)^## ", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    blocks = dict(re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    (tmp_path / "chain.json").write_text(blocks["json"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks["python"], names)  # the guide's own
    assert isinstance(names["plan"], ChainPlan)
    planner, fleet = ChainPlanner(names["plan"], 12), names["fleet"]
    assert planner.begin_round(fleet.devices, 1).split_points.max() <= 4, "what the shed's memory holds"
    # What the plan was made on is what the run meets.
    epoch = planner.begin_epoch(fleet.devices, 1, 2)
    first = fleet.draws().draw(1)
    assert (
        epoch.latency.device_s.tolist()
        == (
            names["work"].device_work_flops[[planner.split_point(name) - 1 for name in fleet.devices]]
            / first.device_flops
        ).tolist()
    )
