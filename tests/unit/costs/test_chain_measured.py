"""A cell that a run corrects: what it makes of measurements, and what it leaves out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from chain_fleets import chain_workload
from flwr_splitkd.costs import (
    ChainCell,
    ChainResources,
    MeasuredCell,
    MeasuredDevice,
    chain_latency,
    equivalent_gain,
)
from flwr_splitkd.costs.chain_latency import handover_table_s, link_rates_bps
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import Algorithm1, EqualAllocation, allocate_resources, optimize_split_points

LAYERS = 6
WORK = chain_workload(LAYERS)
STEP = MeasuredDevice(
    split_point=2,
    num_steps=10,
    device_s=5.0,
    edge_s=2.0,
    edge_wait_s=1.0,
    uplink_s=0.5,
    downlink_s=0.25,
    uplink_bytes=1e7,
    downlink_bytes=2e7,
)


def measured(**changes: Any) -> MeasuredDevice:
    fields = {name: getattr(STEP, name) for name in MeasuredDevice.__dataclass_fields__}
    return MeasuredDevice(**{**fields, **changes})


def at(split_point: int, *, flops: float, overhead_s: float = 0.0) -> MeasuredDevice:
    """Ten iterations of a machine of this speed."""
    work = float(WORK.device_work_flops[split_point - 1])
    return measured(split_point=split_point, device_s=10 * (overhead_s + work / flops))


def seen(cell: MeasuredCell, *names: str) -> ChainResources:
    return cell.resources(names, server_round=1, epoch=1)


def test_it_begins_from_what_is_nominal() -> None:
    cell = MeasuredCell(device_flops=3e12, named_flops={"b": 7e12}, edge_flops=4e13, uplink_bps=1e7, downlink_bps=2e7)
    assert isinstance(cell, ChainCell)
    cell.introduce("b", 1e9)
    cell.introduce("c", 5e12)
    cell.introduce("d", math.inf)
    now = seen(cell, "a", "b", "c", "d")
    assert now.device_flops.tolist() == [3e12, 7e12, 5e12, 3e12]
    assert now.uplink_bps is not None and now.uplink_bps.tolist() == [1e7] * 4
    assert now.edge_flops == 4e13 and cell.other_s is None
    assert cell.draws(["a", "b"], 5, np.random.default_rng(0)).device_flops.tolist() == [[3e12, 7e12]] * 5


def test_one_epoch_settles_speed_link_and_edge() -> None:
    cell = MeasuredCell()
    assert cell.observe(WORK, {"a": STEP}, iteration_s=1.2) == []
    now = seen(cell, "a", "new")
    assert now.device_flops[0] == pytest.approx(10 * WORK.device_work_flops[1] / 5.0)
    assert now.device_overhead_s[0] == pytest.approx(0.0, abs=1e-9)  # type: ignore[index]
    assert now.uplink_bps is not None and now.downlink_bps is not None
    assert (now.uplink_bps[0], now.downlink_bps[0]) == (pytest.approx(1.6e8), pytest.approx(6.4e8))
    assert now.edge_flops == pytest.approx(10 * WORK.edge_work_flops[1] / 2.0)
    assert now.device_flops[1] == 1e12  # of others nothing is known
    # What was measured is predicted: the device's seconds, both ways of the link, the edge's, and the cloud's.
    work = cell.workload(WORK)
    latency = chain_latency(work, seen(cell, "a"), split_points=[2], subcarriers=[1], shares=[1.0])
    assert latency.device_s[0] == pytest.approx(0.5) and latency.edge_s[0] == pytest.approx(0.2)
    assert (latency.uplink_s[0], latency.downlink_s[0]) == (pytest.approx(0.05), pytest.approx(0.025))
    assert cell.other_s == pytest.approx(1.2 - STEP.each_s)


def test_split_points_tell_the_overhead_from_the_speed() -> None:
    cell = MeasuredCell()
    for _ in range(6):
        for point in (1, 6):
            cell.observe(WORK, {"a": at(point, flops=2e11, overhead_s=0.3)})
    now = seen(cell, "a")
    assert now.device_flops[0] == pytest.approx(2e11, rel=0.1)
    assert now.device_overhead_s[0] == pytest.approx(0.3, rel=0.1)  # type: ignore[index]
    third = chain_latency(WORK, now, split_points=[3], subcarriers=[1], shares=[1.0]).device_s[0]
    assert third == pytest.approx(0.3 + WORK.device_work_flops[2] / 2e11, rel=0.03)
    draws = cell.draws(["a"], 20, np.random.default_rng(1))
    each_s = WORK.device_work_flops[2] / draws.device_flops + draws.device_overhead_s
    assert each_s == pytest.approx(np.full((20, 1), third), rel=0.1)


def test_draws_are_of_the_record() -> None:
    cell = MeasuredCell(num_records=3)
    speeds = (1e11, 2e11, 4e11, 8e11)
    for flops in speeds:
        cell.observe(WORK, {"a": at(2, flops=flops), "b": at(2, flops=3 * flops)})
    drawn = cell.draws(["a", "b"], 200, np.random.default_rng(0))
    each_s = WORK.device_work_flops[1] / drawn.device_flops + drawn.device_overhead_s
    expected = {round(float(WORK.device_work_flops[1] / flops), 9) for flops in speeds[1:]}
    assert {round(float(one), 9) for one in each_s[:, 0]} == expected  # the first epoch is forgotten
    pairs = {(round(float(a), 9), round(3 * float(b), 9)) for a, b in each_s}
    assert len(pairs) == 9  # each device is drawn by itself


@pytest.mark.parametrize("subcarriers", [1, 7, 60])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("gain", [1e-13, 1e-9, 1e-5])
def test_the_inversion_of_the_links_rates(gain: float, subcarriers: int, shared: bool) -> None:
    resources = ChainResources(
        device_flops=[1e12],
        channel_gain=[gain],
        edge_flops=1e13,
        num_subcarriers=60,
        subcarrier_hz=2e6,
        cloud_bps=1e9,
        shared_edge_power=shared,
    )
    up, down = link_rates_bps(resources, [subcarriers])
    seconds = 3e6 / float(up[0]) + 8e6 / float(down[0])
    found = equivalent_gain(resources, subcarriers=subcarriers, uplink_bits=3e6, downlink_bits=8e6, seconds=seconds)
    assert found == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize(("seconds", "bound"), [(1e-12, 1e6), (1e25, 1e-30)])
def test_links_that_no_gain_makes(seconds: float, bound: float) -> None:
    resources = seen(MeasuredCell(num_subcarriers=4), "a")
    found = equivalent_gain(resources, subcarriers=1, uplink_bits=1e6, downlink_bits=1e6, seconds=seconds)
    assert found == pytest.approx(bound, rel=1e-6)


def test_a_radio_with_real_subcarriers() -> None:
    """The link's seconds come out as measured with the subcarriers that there were, and fall with more of them."""
    cell = MeasuredCell(num_subcarriers=40)
    cell.observe(WORK, {"a": measured(subcarriers=5, uplink_s=2.0, downlink_s=0.5)})
    now = seen(cell, "a")
    assert not now.has_rates and now.num_subcarriers == 40
    link_s = [
        float(chain_latency(cell.workload(WORK), now, split_points=[2], subcarriers=[beta], shares=[1.0]).link_s[0])
        for beta in (5, 10)
    ]
    assert link_s[0] == pytest.approx(0.25) and link_s[1] < 0.2


def test_links_with_rates_have_nothing_to_divide() -> None:
    cell = MeasuredCell()
    names = [f"{number}" for number in range(5)]
    for position, name in enumerate(names):
        cell.observe(WORK, {name: at(2, flops=2.0**position * 1e11)})
    now = seen(cell, *names)
    points = np.array([1, 1, 2, 6, 6])
    exact = allocate_resources(WORK, now, points)
    assert exact.subcarriers.tolist() == [1] * 5 and exact.shares.sum() <= 1 + 1e-9
    for policy in (EqualAllocation(), Algorithm1()):
        assert exact.latency.slowest_s <= policy.allocate(WORK, now, points).latency.slowest_s * (1 + 1e-9)
    up, down = link_rates_bps(now, [3] * 5)
    assert now.uplink_bps is not None and (up == now.uplink_bps).all() and (down == now.downlink_bps).all()
    table = handover_table_s(WORK, now, old=[6] * 5)
    assert table[0, 4] == pytest.approx(float(WORK.layer_bits[5]) / now.uplink_bps[0])
    # The round, on draws: whoever is slow gets a low split point.
    chosen = optimize_split_points(WORK, cell.draws(names, 20, np.random.default_rng(0)))
    assert chosen.split_points[0] == 1 and chosen.split_points[4] == 6
    assert chosen.objective_s >= chosen.lower_bound_s > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"device_s": 0.0},
        {"device_s": -1.0},
        {"device_s": math.nan},
        {"device_s": math.inf},
        {"device_s": 1e-9},  # 10^21 FLOPs a second
        {"device_s": 1e8},
        {"edge_s": math.nan},
        {"edge_wait_s": -0.1},
        {"uplink_s": math.inf},
        {"uplink_bytes": 0.0},
        {"uplink_bytes": math.nan},
        {"downlink_bytes": -5.0},
        {"downlink_bytes": 1e15},
        {"downlink_s": math.nan},
        {"num_steps": 0},
        {"split_point": 0},
        {"split_point": LAYERS + 1},
    ],
)
def test_what_cannot_be_is_dropped(changes: dict[str, Any]) -> None:
    """Alone, and beside others who are believed."""
    cell, without = MeasuredCell(), MeasuredCell()
    for one in (cell, without):
        one.observe(WORK, {"a": STEP, "b": STEP}, iteration_s=1.0)
    before = cell.state_dict()
    assert cell.observe(WORK, {"a": measured(**changes)}, iteration_s=2.0) == ["a"]
    assert cell.state_dict() == before
    assert cell.observe(WORK, {"a": measured(**changes), "b": at(3, flops=4e11)}, iteration_s=2.0) == ["a"]
    without.observe(WORK, {"b": at(3, flops=4e11)}, iteration_s=2.0)
    assert cell.state_dict() == without.state_dict()


def test_an_iteration_that_cannot_be() -> None:
    cell = MeasuredCell()
    for seconds in (None, math.nan, -1.0, math.inf):
        cell.observe(WORK, {"a": STEP}, iteration_s=seconds)
    assert cell.other_s is None
    cell.observe(WORK, {"a": STEP}, iteration_s=0.01)  # less than the device alone took
    assert cell.other_s == 0.0


def test_whoever_runs_the_whole_encoder_says_nothing_of_the_edge() -> None:
    cell = MeasuredCell(edge_flops=4e13)
    cell.observe(WORK, {"a": measured(split_point=LAYERS, edge_s=1e-4)})
    assert seen(cell, "a").edge_flops == 4e13


def test_a_cell_that_was_stopped_goes_on_as_if_it_had_not() -> None:
    whole, first, second = (MeasuredCell(num_subcarriers=30, num_records=4) for _ in range(3))
    epochs = [{"a": at(1 + n % 3, flops=1e11 * (1 + n)), "b": at(2, flops=5e11)} for n in range(8)]
    for number, epoch in enumerate(epochs):
        whole.observe(WORK, epoch, iteration_s=1.0 + number)
    for number, epoch in enumerate(epochs[:5]):
        first.observe(WORK, epoch, iteration_s=1.0 + number)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for number, epoch in enumerate(epochs[5:], start=5):
        second.observe(WORK, epoch, iteration_s=1.0 + number)
    assert second.state_dict() == whole.state_dict()
    assert seen(second, "a", "b").device_flops.tolist() == seen(whole, "a", "b").device_flops.tolist()
    assert whole.fresh().state_dict() == MeasuredCell().state_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device_flops": 0.0}, "`device_flops` is 0.0"),
        ({"named_flops": {"a": -1.0}}, r"`named_flops\['a'\]` is -1.0"),
        ({"uplink_bps": math.nan}, "`uplink_bps` is nan"),
        ({"num_records": 0}, "`num_records` is 0"),
        ({"num_subcarriers": 0}, "`num_subcarriers` is 0"),
        ({"subcarrier_hz": 0.0, "num_subcarriers": 4}, "`subcarrier_hz` is 0.0"),
    ],
)
def test_what_is_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MeasuredCell(**changes)


def test_half_of_a_link() -> None:
    with pytest.raises(ConfigError, match="One of `uplink_bps` and `downlink_bps` is given; expected both"):
        ChainResources(
            device_flops=[1e12],
            channel_gain=[1.0],
            edge_flops=1e13,
            num_subcarriers=1,
            subcarrier_hz=2e6,
            cloud_bps=1e9,
            uplink_bps=[1e6],
        )
    with pytest.raises(ConfigError, match="resources of no devices"):
        MeasuredCell().resources([], server_round=1, epoch=1)
