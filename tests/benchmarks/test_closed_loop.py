"""The planner's benchmarks: how their figures are made, the policies of their app, and a smoke test of the whole."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "planned_app"))

from _planned_runs import (
    STAGES,
    faster,
    make_models,
    measure_machine,
    median_errors,
    relative_errors,
    turns_of,
    write_fleet,
)
from link_drop import decisions
from splitkd_planned.policies import Alternation, AlternationCut, AlternationEpochs, CutOfTurn

from flwr_splitkd.costs import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    LinkState,
    ModelShape,
    Workload,
    cut_terms,
    fleet_from_json,
)
from flwr_splitkd.schedulers import Decision, DeviceView, Outlook

CLOSED_LOOP = Path(__file__).resolve().parents[2] / "benchmarks" / "closed_loop.py"


def turn(predicted: float, measured: float, **changes: Any) -> dict[str, Any]:
    line = {name: value for pair in STAGES.values() for name, value in zip(pair, (predicted, measured), strict=True)}
    return {**line, **changes}


def test_an_error_is_relative_to_what_was_measured() -> None:
    errors = relative_errors(turn(3.0, 2.0, device_s=6.0, uplink_s=0.0))
    assert (errors["edge"], errors["total"], errors["device"]) == (0.5, 0.5, 0.5)
    assert math.isnan(errors["uplink"])


def test_the_median_is_over_turns_in_which_the_stage_took_time() -> None:
    turns = [turn(1.0, 2.0), turn(1.0, 1.0), turn(5.0, 1.0, uplink_s=0.0)]
    assert median_errors(turns)["device"] == 0.5
    assert median_errors(turns)["uplink"] == 0.25
    assert math.isnan(median_errors([])["total"])


def test_turns_are_read_while_the_file_is_being_written(tmp_path: Path) -> None:
    assert turns_of(tmp_path) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "turn", "cut": 1}\n{"kind": "round"}\n{"kind": "tu')
    assert turns_of(tmp_path) == [{"kind": "turn", "cut": 1}]


def decided(cut: int, codec: str, epochs: int) -> dict[str, Any]:
    return {"cut": cut, "codec": codec, "local_epochs": epochs}


def test_old_and_new_decisions_are_told_apart_from_the_first_new_one_on() -> None:
    old, new, newer = decided(7, "none", 6), decided(1, "int8", 2), decided(1, "int8", 3)
    assert decisions([decided(3, "none", 6), old, old, new, old, newer, old], 2) == ([old, old], [new, newer], 4)
    assert decisions([old, old, old], 2) == ([], [], 0)


def test_a_fleet_that_claims_more_is_wrong_by_just_that(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    models = make_models(tmp_path)
    device, server = measure_machine(models["student"], repeats=1)
    assert torch.get_num_threads() == threads
    path = write_fleet(tmp_path / "fleet.json", *faster(device, server, 3.0), "wired-10g")
    fleet = fleet_from_json(path, rng=np.random.default_rng(0))
    claimed = fleet.device("anyone")
    assert claimed.blocks is not None and device.blocks is not None
    assert 3 * np.array(claimed.blocks.forward_s) == pytest.approx(device.blocks.forward_s)
    assert 3 * np.array(claimed.blocks.backward_s) == pytest.approx(device.blocks.backward_s)
    assert fleet.server.flops_at(1e9) == pytest.approx(3 * server.flops_at(1e9))


def view(turn: int, rate_bps: float) -> DeviceView:
    """A device for which six passes fit into 40 s at 200 Mbit/s, and no single one at 10 Mbit/s without loss."""
    shape = ModelShape(
        name="small",
        hidden_size=1024,
        embedding_width=1024,
        vocab_size=1000,
        block_parameters=np.full(4, 1e5),
        block_flops_per_token=np.full(4, 2e5),
        block_flops_per_pair=np.full(4, 512.0),
        embedding_parameters=0,
        head_parameters=1000,
        head_flops_per_token=2000.0,
    )
    workload = Workload(batch_size=4, sequence_length=128, num_batches=10)

    def terms(local_epochs: int, codecs: Any) -> Any:
        return cut_terms(shape, shape, replace(workload, local_epochs=local_epochs), GENERIC_DEVICE, codecs=codecs)

    link = LinkState(uplink_bps=rate_bps, downlink_bps=rate_bps)
    outlook = Outlook(
        device=GENERIC_DEVICE, server=GENERIC_SERVER, link=link, battery_j=None, terms=terms, clock_is_ours=False
    )
    return DeviceView(
        node_id=1,
        name="0",
        server_round=turn + 1,
        turn=turn,
        num_blocks=4,
        num_examples=40,
        num_batches=10,
        outlook=outlook,
    )


def test_after_a_drop_old_and_new_decisions_alternate() -> None:
    alternation = Alternation(max_delay_s=40.0, max_epochs=6, codecs=("none", "int8"))
    epochs, cut = AlternationEpochs(alternation), AlternationCut(alternation)
    chosen: list[tuple[int, Decision]] = []
    # The rate after turn 2 was measured in a turn in the midst of which the link dropped.
    for number, rate_bps in enumerate((200e6, 180e6, 50e6, 10e6, 10e6, 10e6)):
        device = view(number, rate_bps)
        passes = epochs.choose(device)
        chosen.append((passes, cut.choose(replace(device, local_epochs=passes))))
    before = [(passes, decision.codec) for passes, decision in chosen[:2]]
    assert before == [(6, "none")] * 2
    for passes, decision in chosen[3::2]:
        assert (passes, decision.codec, decision.cut) == (6, "none", chosen[0][1].cut)
        assert "delay bound missed" in decision.binding
        assert decision.cost.total_s > 40.0
    for _, decision in chosen[2::2]:
        assert decision.codec == "int8"
        assert decision.cost.total_s <= 40.0
    assert chosen[4][0] < 6


def test_without_a_drop_nothing_alternates() -> None:
    alternation = Alternation(max_delay_s=40.0, max_epochs=6, codecs=("none", "int8"))
    choices = [alternation.choice(view(number, rate)) for number, rate in enumerate((200e6, 150e6, 120e6, 200e6))]
    assert {(choice.local_epochs, choice.decision.codec) for choice in choices} == {(6, "none")}


def test_the_cut_of_a_turn_does_not_ask_whose_it_is() -> None:
    policy = CutOfTurn((2, 6, 4))
    cuts = [policy.choose(replace(view(number, 1e6), name=str(number % 2))) for number in range(5)]
    assert cuts == [2, 6, 4, 2, 6]


@pytest.mark.by_hand
@pytest.mark.timeout(600)
def test_predictions_get_better_after_the_first_turn(tmp_path: Path) -> None:
    """A fleet that claims three times the speed is right about nothing at first, and is corrected by one turn."""
    command = [sys.executable, str(CLOSED_LOOP), "--quick", "--json", str(tmp_path / "out")]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a smoke test" in done.stdout
    found = json.loads((tmp_path / "out").read_text())
    assert {"benchmark", "command", "commit", "rows", "parts", "load"} <= found.keys()
    for part, turns in found["parts"].items():
        assert len(turns) == 4, part
        # Turns 1 and 2 are the first ones of the two devices.
        assert median_errors(turns[2:])["total"] < relative_errors(turns[0])["total"], part
    assert len({line["cut"] for line in found["parts"]["cycle"]}) == 3
