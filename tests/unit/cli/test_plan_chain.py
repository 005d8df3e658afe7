"""A chain's round, planned."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.cli.plan_chain import PlannedChain, plan_chain
from flwr_splitkd.costs import ChainFleet, ChainWorkload, chain_fleet_from_json, chain_latency, handover_s
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers.chain import OptimalSplitPoints, optimize_split_points
from small_shape import small_shape

LAYERS = 6
SHAPE = small_shape(LAYERS)
WORK = ChainWorkload.from_shape(SHAPE, batch_size=4, positions=32, iterations_per_epoch=10, epochs=5)
FLEET: dict[str, Any] = {
    "edge": {"flops": 4e9},
    "radio": {"num_subcarriers": 12},
    "draws": 8,
    "devices": {
        "fast": {"flops": 2e10, "distance_m": 30},
        "near": {"flops": 1e9, "distance_m": 25},
        "slow": {"flops": 2e8, "distance_m": 110},
    },
}


def fleet(**changes: Any) -> ChainFleet:
    return chain_fleet_from_json({**FLEET, **changes})


def planned(given: ChainFleet | None = None, **options: Any) -> PlannedChain:
    return plan_chain(given or fleet(), SHAPE, WORK, **options)


def test_it_is_what_the_schedulers_decide() -> None:
    found = planned()
    cell = fleet()
    points = found.chosen.decision.split_points
    assert points[0] == LAYERS and points[2] == 1
    assert points.tolist() == OptimalSplitPoints().choose(WORK, cell.draws(), cell.limits).split_points.tolist()
    again = chain_latency(
        WORK, cell.typical, split_points=points, subcarriers=found.epoch.subcarriers, shares=found.epoch.shares
    )
    assert again.each_s.tolist() == found.epoch.latency.each_s.tolist()
    assert found.epoch.subcarriers.sum() == 12 and found.epoch.shares.sum() == pytest.approx(1)
    # Devices join with their whole encoder: what stays on them does not travel.
    up_s = handover_s(WORK, cell.typical, old=[LAYERS] * 3, new=points, subcarriers=[4] * 3)
    assert found.handover_s.tolist() == up_s.tolist() and up_s[0] == 0 < up_s[2]
    assert found.chosen.decision.handover_s == up_s.max()
    up, down = found.rates_bps
    np.testing.assert_allclose(WORK.smashed_bits[0] / up, found.epoch.latency.uplink_s)
    np.testing.assert_allclose(WORK.gradient_bits[0] / down, found.epoch.latency.downlink_s)


def test_seconds_add_up() -> None:
    found = planned()
    assert found.round_s(found.chosen) == pytest.approx(found.chosen.decision.objective_s)
    assert found.cloud_s == pytest.approx(found.chosen.decision.cloud_link_s)
    assert found.gap(found.chosen) == pytest.approx(found.chosen.decision.gap)
    # By (12): three times the forward pass of everything, then the link as it is.
    alone = 3 * WORK.forward_flops.sum() / np.array([2e10, 1e9, 2e8]) + found.epoch.latency.link_s
    np.testing.assert_allclose(found.alone_s, alone)


def test_others_are_compared_on_the_same_draws() -> None:
    found = planned()
    rounds = {one.name: found.round_s(one) for one in (found.chosen, *found.others)}
    assert list(rounds) == ["SCCTT", "SCCTL", "SCCTS at 1", f"SCCTS at {LAYERS}"]
    assert rounds["SCCTT"] < min(rounds["SCCTL"], rounds["SCCTS at 1"], rounds[f"SCCTS at {LAYERS}"])
    for one in found.others:
        assert found.round_s(one) == pytest.approx(one.decision.objective_s)
        assert found.gap(one) > found.gap(found.chosen) >= 0
    # Whoever is asked for, the others come to the same.
    for name, split_point, title in (("SCCTL", 1, "SCCTL"), ("SCCTS", 3, "SCCTS at 3")):
        other = planned(name=name, split_point=split_point)
        assert other.chosen.name == title
        values = {one.name: other.round_s(one) for one in (other.chosen, *other.others)}
        assert {key: values[key] for key in rounds} == pytest.approx(rounds)
        assert other.lower_bound_s == pytest.approx(found.lower_bound_s)
    assert other.chosen.decision.split_points.tolist() == [3, 3, 3]


def test_each_device_has_its_reason() -> None:
    small = {**FLEET["devices"], "slow": {"flops": 2e8, "distance_m": 110, "memory_bytes": WORK.device_memory_bytes[0]}}
    found = planned(fleet(devices=small))
    fast, near, slow = found.reasons()
    assert found.highest == [LAYERS, LAYERS, 1]
    assert (
        fast
        == f"alone it takes {found.alone_s[0]:.4g} s, within the {found.epoch.latency.slowest_s:.4g} s of the slowest"
    )
    assert slow == "it has no memory for more than 1 layers"
    *_, slow = planned().reasons()
    assert slow.startswith("alone it would take ") and "longer than" in slow
    assert (
        set(planned(fleet(edge={"flops": 1e14}), name="SCCTS").reasons()) >= {"the edge has compute to spare"} or near
    )


def test_the_papers_algorithms() -> None:
    pytest.importorskip("alns")
    one_draw = dataclasses.replace(fleet(), num_draws=1)
    found = planned(one_draw, literal=True)
    assert (found.chosen.name, found.chosen.decision.method) == ("SCCTT, Algorithms 1 and 2", "Algorithm 2")
    assert found.epoch.method == found.chosen.average.method == "Algorithm 1"
    ours = {one.name: one for one in found.others}["SCCTT"]
    assert found.round_s(ours) <= found.round_s(found.chosen) * (1 + 1e-9)


def test_what_does_not_fit_is_not_compared() -> None:
    limited = {
        **FLEET["devices"],
        "slow": {"flops": 2e8, "distance_m": 110, "memory_bytes": WORK.device_memory_bytes[2]},
    }
    found = planned(fleet(devices=limited))
    assert list(found.impossible) == [f"SCCTS at {LAYERS}"]
    assert "expected at most 3, what the smallest device holds" in found.impossible[f"SCCTS at {LAYERS}"]
    with pytest.raises(InfeasibleError, match="`split_points` is 5; expected at most 3"):
        planned(fleet(devices=limited), name="SCCTS", split_point=5)


def test_who_cannot_take_part_is_named() -> None:
    tiny = {name: {"flops": 1e9, "gain_db": -80, "memory_bytes": 1e6} for name in ("a", "b")}
    with pytest.raises(
        InfeasibleError, match=r"GiB on a, .* GiB on b; expected at least .* GiB, for the smallest part"
    ) as error:
        planned(fleet(devices={**FLEET["devices"], **tiny}))
    assert "fast" not in str(error.value)
    with pytest.raises(InfeasibleError, match="`num_subcarriers` is 2; expected at least 3"):
        planned(fleet(radio={"num_subcarriers": 2}))
    room = float(WORK.edge_memory_bytes[0])
    with pytest.raises(InfeasibleError, match="`edge_bytes` is .*; expected at least .* GiB"):
        small = {
            **FLEET["devices"],
            "tiny": {"flops": 1e9, "gain_db": -80, "memory_bytes": WORK.device_memory_bytes[0]},
        }
        planned(dataclasses.replace(fleet(devices=small), edge_bytes=room / 2))
    with pytest.raises(ConfigError, match=f"`split_point` is {LAYERS + 1}; expected .* at most {LAYERS}"):
        planned(split_point=LAYERS + 1)


def test_the_edges_memory_binds() -> None:
    free = planned()
    room = float(WORK.edge_memory_bytes[free.chosen.decision.split_points - 1].sum()) / 2
    bound = planned(dataclasses.replace(fleet(), edge_bytes=room))
    assert WORK.edge_memory_bytes[bound.chosen.decision.split_points - 1].sum() <= room
    assert bound.round_s(bound.chosen) > free.round_s(free.chosen)
    assert "SCCTS at 1" in bound.impossible
    assert free.lower_bound_s <= bound.lower_bound_s <= bound.round_s(bound.chosen)
    assert optimize_split_points(WORK, fleet().draws()).objective_s < bound.round_s(bound.chosen)
