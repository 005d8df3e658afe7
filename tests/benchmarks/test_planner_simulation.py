"""The planner's benchmark: how turns are judged, and a small run of it from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "apps" / "split_kd"))

from _planner_turns import Run, World, delay_bound_s, judge, same_weights
from split_kd_app import policies
from split_kd_app.config import read_config

from flwr_splitkd.costs import LinkState, Workload, named_shape, table_ii_fleet, turn_cost
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import plan_cut_and_frequency

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "planner_simulation.py"
LINK = LinkState(uplink_bps=300e6, downlink_bps=400e6)


def world(seed: int = 0) -> World:
    return World(
        name="a world",
        fleet=table_ii_fleet("normal", np.random.default_rng(seed)),
        student=named_shape("llama-3.2-1b/8"),
        teacher=named_shape("llama-3.2-1b"),
        workload=Workload(batch_size=4, sequence_length=64, num_batches=10),
        settings={},
    )


def turn(cut: int, frequency_hz: float) -> dict[str, Any]:
    """What the run of such a turn would leave."""
    here = world()
    terms = here.terms("4", 10)
    cost = turn_cost(terms, terms.index(cut), frequency_hz=frequency_hz, **here.machines("4"), link=LINK)
    return {
        "device": "4",
        "server_round": 1,
        "num_batches": 10,
        "cut": cut,
        "planned_frequency_hz": frequency_hz,
        "modelled_uplink_bps": LINK.uplink_bps,
        "modelled_downlink_bps": LINK.downlink_bps,
        "modelled_j": cost.total_j,
        "modelled_s": cost.total_s,
    }


def test_the_best_turn_has_no_regret_and_any_other_has() -> None:
    here = world()
    bound_s = 1.05 * turn(1, 2.52e9)["modelled_s"]
    best = plan_cut_and_frequency(here.terms("4", 10), **here.machines("4"), link=LINK, max_delay_s=bound_s)
    assert best.binding == "delay"
    verdict = judge(here, turn(best.cut, best.frequency_hz), bound_s=bound_s, min_cut=1)
    assert verdict.regret_j == pytest.approx(0, abs=1e-9) and not verdict.late
    faster = judge(here, turn(1, 2.52e9), bound_s=bound_s, min_cut=1)
    assert faster.regret_j == pytest.approx(turn(1, 2.52e9)["modelled_j"] - best.cost.total_j)
    assert faster.regret_j > 0


def test_late_turns_and_impossible_ones_have_no_regret() -> None:
    late = judge(world(), turn(7, 2.52e9), bound_s=1.05 * turn(1, 2.52e9)["modelled_s"], min_cut=1)
    assert late.late and late.best_j is not None and late.regret_j is None
    impossible = judge(world(), turn(1, 2.52e9), bound_s=0.9 * turn(1, 2.52e9)["modelled_s"], min_cut=1)
    assert impossible.late and impossible.best_j is None and impossible.regret_j is None
    waited = {**turn(1, 2.52e9), "modelled_s": turn(1, 2.52e9)["modelled_s"] + 100}
    assert judge(world(), waited, bound_s=60 + turn(1, 2.52e9)["modelled_s"], min_cut=1).late


def test_a_turn_of_another_world_is_not_judged() -> None:
    odd = {**turn(1, 2.52e9), "modelled_j": 1.001 * turn(1, 2.52e9)["modelled_j"]}
    with pytest.raises(ValueError, match=r"Device 4 paid .* expected .* of a world"):
        judge(world(), odd, bound_s=60.0, min_cut=1)


def test_the_bound_is_what_the_slowest_device_needs() -> None:
    here, devices = world(), ["0", "4", "8"]
    bound_s = delay_bound_s(here, devices, quantile=0.5, slack=1.0)
    assert delay_bound_s(world(), devices, quantile=0.5, slack=1.2) == pytest.approx(1.2 * bound_s)
    assert delay_bound_s(world(), devices, quantile=0.1, slack=1.0) > bound_s
    alone = [delay_bound_s(world(), [device], quantile=0.5, slack=1.0) for device in devices]
    assert bound_s == max(alone)
    # Between the quantile's rates and the bound there is nothing to spare.
    states = [world().fleet.link(devices[int(np.argmax(alone))]).at(float(second)) for second in range(96)]
    link = LinkState(
        uplink_bps=float(np.median([state.uplink_bps for state in states])),
        downlink_bps=float(np.median([state.downlink_bps for state in states])),
    )
    slowest = devices[int(np.argmax(alone))]
    terms, machines = here.terms(slowest, 10), here.machines(slowest)
    plan_cut_and_frequency(terms, **machines, link=link, max_delay_s=bound_s)
    with pytest.raises(InfeasibleError):
        plan_cut_and_frequency(terms, **machines, link=link, max_delay_s=0.999 * bound_s)


def run(policy: str, devices: str, value: float) -> Run:
    lines = [{"kind": "turn", "server_round": 1, "device": device} for device in devices]
    return Run(policy=policy, lines=lines, weights={"a": torch.zeros(2), "b": torch.full((2,), value)})


def test_weights_are_compared_among_runs_of_the_same_turns() -> None:
    left_out = replace(run("c", "012", 1.0), policy="e")
    words = same_weights(
        [run("a", "012", 1.0), run("b", "012", 1.0), run("c", "021", 3.0), run("d", "012", 1.5), left_out]
    )
    assert words["a"] == words["c"] == "first of its turns"
    assert words["b"] == words["e"] == "equal to a"
    assert words["d"] == "1 tensors differ from a by up to 0.5, first b"


def test_the_app_charges_for_other_models_in_a_modelled_world_only() -> None:
    large = {"modelled-student": "llama-3.2-1b/8", "modelled-teacher": "llama-3.2-3b"}
    planner = policies.planner(read_config({**large, "modelled": True, "fleet": "table-ii"}))
    assert planner is not None and planner.student is not None and planner.teacher is not None
    assert (planner.student.num_blocks, planner.teacher.num_blocks) == (8, 28)
    own = policies.planner(read_config({"modelled": True}))
    assert own is not None and own.student is None and own.teacher is None
    with pytest.raises(
        ConfigError, match=r"modelled-student.* is 'llama-3.2-1b/8'; expected nothing without `modelled`"
    ):
        read_config(large)
    with pytest.raises(ConfigError, match="The model is 'llama-9'"):
        read_config({"modelled": True, "modelled-teacher": "llama-9"})


@pytest.mark.parametrize("policy", ["optimal", "server-only", "device-only"])
def test_the_app_tells_its_policies_the_delay_bound(policy: str) -> None:
    bounded = policies.cut_policy(read_config({"cut-policy": policy, "max-delay": 7.5}))
    assert bounded.max_delay_s == 7.5  # type: ignore[attr-defined]
    assert policies.cut_policy(read_config({"cut-policy": policy})).max_delay_s == float("inf")  # type: ignore[attr-defined]


@pytest.mark.by_hand
def test_a_small_run_of_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "planner.json"
    command = [sys.executable, str(BENCHMARK), "--quick", "--json", str(file)]
    done = subprocess.run(
        [*command, "--policies", "oracle", "planned", "fixed-cut-4"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ((_, result),) = json.loads(file.read_text())["worlds"].items()
    bound_s, runs = result["bound_s"], result["runs"]
    oracle, planned, fixed = (runs[policy] for policy in ("oracle", "planned", "fixed-cut-4"))
    # Where the student was cut changes nothing in it.
    assert planned["order"] == fixed["order"] == [[1, device] for device in "0123"]
    assert {turn["cut"] for turn in fixed["turns"]} == {4} and {turn["cut"] for turn in planned["turns"]} != {4}
    assert fixed["weights"] == "equal to planned" and fixed["perplexity"] == planned["perplexity"]
    # Nothing in time takes less than the best, and who knows the channel takes the best.
    judged = [turn for one in runs.values() for turn in one["turns"] if turn["regret_j"] is not None]
    assert all(turn["regret_j"] >= -1e-9 * turn["best_j"] for turn in judged)
    assert oracle["turns"] and len(oracle["turns"]) + len(oracle["left_out"]) == 4
    for turn in oracle["turns"]:
        assert not turn["late"] and turn["predicted_j"] == pytest.approx(turn["joules"], rel=1e-9)
        assert turn["regret_j"] == pytest.approx(0, abs=1e-9 * turn["best_j"])
    # Both decide the first round on the channel at the start: there the plan is no worse than what is fixed.
    for mine, other in zip(planned["turns"], fixed["turns"], strict=True):
        assert mine["predicted_s"] <= bound_s * (1 + 1e-9) and mine["late"] == mine["modelled_late"]
        assert other["predicted_s"] > bound_s or mine["predicted_j"] <= other["predicted_j"]
    assert any(turn["predicted_s"] <= bound_s for turn in fixed["turns"])
