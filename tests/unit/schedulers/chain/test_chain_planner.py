"""Both timescales in a run: who decides when, on what, and what the clock says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import (
    ChainWorkload,
    DeviceProfile,
    MeasuredCell,
    MeasuredDevice,
    MemoryLimits,
    ModelledCell,
    chain_latency,
    handover_s,
)
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers.chain import EqualAllocation, FixedSplitPoints, mechanism
from flwr_splitkd.schedulers.chain.planner import ChainPlan, ChainPlanner, ModelledEpoch

NAMES = ["a", "b", "c", "d"]
LAYERS = 5
WORKLOAD = ChainWorkload(
    forward_flops=np.full(LAYERS, 4e11),
    smashed_bits=np.full(LAYERS, 4e7),
    gradient_bits=np.full(LAYERS, 4e7),
    layer_bits=np.full(LAYERS, 4e8),
    device_memory_bytes=np.arange(1, LAYERS + 1) * 1e8,
    edge_memory_bytes=np.arange(LAYERS - 1, -1, -1) * 1e8,
    cloud_up_bits=1e6,
    cloud_down_bits=1e6,
    iterations_per_epoch=10,
    epochs=2,
)
CELL = ModelledCell(edge_flops=10e12, num_subcarriers=24)


def planner(name: str = "SCCTT", **changes: Any) -> ChainPlanner:
    split_points, allocation = mechanism(name, split_point=3)  # type: ignore[arg-type]
    given = {"workload": WORKLOAD, "cell": CELL, "split_points": split_points, "allocation": allocation}
    return ChainPlanner(ChainPlan(**{**given, **changes}), LAYERS)


def run(one: ChainPlanner, rounds: range = range(1, 4)) -> list[ModelledEpoch]:
    epochs = []
    for server_round in rounds:
        one.begin_round(NAMES, server_round)
        for epoch in (1, 2):
            one.begin_epoch(NAMES, server_round, epoch)
            done = one.end_epoch(10)
            assert done is not None
            epochs.append(done)
    return epochs


def test_the_clock_is_that_of_the_model() -> None:
    """Hand-over, then epochs, as (18) to (20) have them; everybody joins with the whole encoder."""
    one = ChainPlanner(
        ChainPlan(workload=WORKLOAD, cell=CELL, split_points=FixedSplitPoints(3), allocation=EqualAllocation()), LAYERS
    )
    decision = one.begin_round(NAMES, 1)
    first = CELL.resources(NAMES, server_round=1, epoch=1)
    moved = handover_s(WORKLOAD, first, old=[LAYERS] * 4, new=[3] * 4, subcarriers=[6] * 4)
    assert one.clock_s == pytest.approx(float(moved.max())) == pytest.approx(decision.handover_s)
    clock_s = one.clock_s
    for epoch in (1, 2):
        one.begin_epoch(NAMES, 1, epoch)
        resources = CELL.resources(NAMES, server_round=1, epoch=epoch)
        latency = chain_latency(WORKLOAD, resources, split_points=[3] * 4, subcarriers=[6] * 4, shares=[0.25] * 4)
        done = one.end_epoch(7)  # of ten: the round ended early
        assert done is not None
        clock_s += 7 * float(latency.iteration_s)
        assert (done.clock_s, one.clock_s) == (pytest.approx(clock_s), pytest.approx(clock_s))
        assert done.epoch_s == pytest.approx(7 * done.iteration_s)
    one.begin_round(NAMES, 2)
    assert one.clock_s == pytest.approx(clock_s)  # nothing changes hands


def test_the_paper_s_mechanisms_by_their_names() -> None:
    """On the same resources, what is optimised takes less."""
    mean_s = {
        name: np.mean([epoch.iteration_s for epoch in run(planner(name, num_draws=10))])
        for name in ("SCCTT", "SCCTL", "SCCTS")
    }
    assert mean_s["SCCTT"] < mean_s["SCCTL"] and mean_s["SCCTT"] < mean_s["SCCTS"]
    fixed, equal = planner("SCCTS"), planner("SCCTL")
    assert fixed.begin_round(NAMES, 1).split_points.tolist() == [3] * 4
    equal.begin_round(NAMES, 1)
    assert equal.begin_epoch(NAMES, 1, 1).shares.tolist() == [0.25] * 4
    with pytest.raises(ConfigError, match="The mechanism is 'SCCTX'; expected one of SCCTT, SCCTL, SCCTS"):
        mechanism("SCCTX")  # type: ignore[arg-type]


def test_a_planner_that_was_stopped_goes_on_as_if_it_had_not() -> None:
    whole = planner(num_draws=2)
    expected = run(whole, range(1, 4))
    first, second = planner(num_draws=2), planner(num_draws=2)
    done = run(first, range(1, 3))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert done + run(second, range(3, 4)) == expected
    assert second.state_dict() == whole.state_dict()


def test_split_points_of_an_evaluation_are_the_rounds() -> None:
    one = planner()
    assert one.split_point("a") == LAYERS  # it has its whole encoder
    decision = one.begin_round(NAMES, 1)
    assert [one.split_point(name) for name in NAMES] == decision.split_points.tolist()
    assert one.split_point("newcomer") == LAYERS


def test_decisions_are_made_on_the_run_s_own_records(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Watched(FixedSplitPoints):
        def choose(self, workload: Any, draws: Any, limits: Any, handover_s: Any = None) -> Any:
            seen.append(draws)
            return super().choose(workload, draws, limits, handover_s)

    one = planner(split_points=Watched(2), num_draws=40)
    run(one, range(1, 4))
    present = CELL.resources(NAMES, server_round=1, epoch=1)
    assert (seen[0].device_flops == present.device_flops).all()  # nothing else is known yet
    had = [CELL.resources(NAMES, server_round=r, epoch=e).device_flops for r in (1, 2) for e in (1, 2)]
    third = seen[2].device_flops
    assert third.shape == (40, 4)
    for position in range(4):
        assert set(third[:, position]) == {flops[position] for flops in had}
    # Devices are drawn each by itself.
    assert len({tuple(row) for row in third}) > 4


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="has 5 layers; expected 4, the blocks of the encoder"):
        ChainPlanner(ChainPlan(workload=WORKLOAD, cell=CELL), 4)
    with pytest.raises(ConfigError, match="`num_draws` is 0; expected at least 1"):
        ChainPlan(workload=WORKLOAD, cell=CELL, num_draws=0)
    crowded = planner(cell=ModelledCell(num_subcarriers=3))
    with pytest.raises(InfeasibleError, match="`num_subcarriers` is 3; expected at least 4, one for each device"):
        crowded.begin_round(NAMES, 1)
    assert planner().end_epoch(1) is None


# ---- on what is measured


def outcome(point: int, *, flops: float, edge_flops: float = 5e12, steps: int = 10) -> MeasuredDevice:
    """What machines of these speeds take."""
    return MeasuredDevice(
        split_point=point,
        num_steps=steps,
        device_s=steps * float(WORKLOAD.device_work_flops[point - 1]) / flops,
        edge_s=steps * float(WORKLOAD.edge_work_flops[point - 1]) / edge_flops,
        edge_wait_s=0.0,
        uplink_s=steps * 0.04,
        downlink_s=steps * 0.04,
        uplink_bytes=steps * 5e6,
        downlink_bytes=steps * 5e6,
    )


SPEEDS = {"a": 1e11, "b": 6e12, "c": 6e12, "d": 6e12}
BELIEVED = MeasuredCell(device_flops=1e12, named_flops={"a": 1e13}, edge_flops=1e13)


def train(one: ChainPlanner, rounds: range) -> list[list[int]]:
    """Rounds of machines of these speeds, whatever the plan believes; the split points of each."""
    points = []
    for server_round in rounds:
        points.append(one.begin_round(NAMES, server_round).split_points.tolist())
        for epoch in (1, 2):
            one.begin_epoch(NAMES, server_round, epoch)
            assert one.end_epoch(10) is not None
            one.learn({name: outcome(one.split_point(name), flops=SPEEDS[name]) for name in NAMES}, 1.0)
    return points


def test_whoever_turns_out_to_be_slow_gets_fewer_layers() -> None:
    one = planner(cell=BELIEVED)
    points = train(one, range(1, 4))
    assert points[0][0] == LAYERS and points[1][0] == 1 and points[2][0] == 1
    # And in a cell that nothing corrects it would not.
    assert one._plan.cell is BELIEVED and BELIEVED.state_dict()["devices"] == {}


def test_predictions_are_of_what_was_measured() -> None:
    one = planner(cell=BELIEVED)
    train(one, range(1, 3))
    one.begin_round(NAMES, 3)
    allocation = one.begin_epoch(NAMES, 3, 1)
    slow_s = float(WORKLOAD.device_work_flops[one.split_point("a") - 1]) / SPEEDS["a"]
    assert allocation.latency.device_s[0] == pytest.approx(slow_s, rel=0.05)
    done = one.end_epoch(10)
    assert done is not None and one.measured is not None and one.measured.other_s is not None
    assert done.iteration_s == pytest.approx(float(allocation.latency.slowest_s) + one.measured.other_s)
    line = done.to_json()
    assert set(line) == {"predicted_iteration_s", "predicted_cloud_link_s", "predicted_s"}


def test_a_measuring_planner_that_was_stopped_goes_on_as_if_it_had_not() -> None:
    whole, first, second = (planner(cell=BELIEVED) for _ in range(3))
    expected = train(whole, range(1, 5))
    done = train(first, range(1, 3))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert done + train(second, range(3, 5)) == expected
    assert second.state_dict() == whole.state_dict()
    # A run that was modelled so far can go on measured.
    modelled = planner()
    run(modelled, range(1, 2))
    third = planner(cell=BELIEVED)
    third.load_state_dict(modelled.state_dict())
    assert third.begin_round(NAMES, 2).split_points.shape == (4,)


def test_what_devices_say_of_themselves() -> None:
    """Memory of each, and its speed until it is measured; in a modelled cell none of it counts."""
    tight = DeviceProfile(name="board", frequency_hz=1e9, cores=1000, memory_bytes=2.5e8)
    one, modelled = planner(cell=BELIEVED, limits=MemoryLimits(device_bytes=5.5e8)), planner()
    for each in (one, modelled):
        for name in ("a", "b"):
            each.introduce(name, tight)
    limits = one._limits(NAMES)
    assert np.asarray(limits.device_bytes).tolist() == [2.5e8, 2.5e8, 5.5e8, 5.5e8]
    assert one.begin_round(NAMES, 1).split_points[:2].max() <= 2
    assert one.begin_round(["c"], 2).split_points.tolist()[0] <= 5
    assert modelled._limits(NAMES).device_bytes == np.inf
    assert one.measured is not None
    assert one.measured.resources(["b"], server_round=1, epoch=1).device_flops[0] == tight.flops
