"""Policies that look ahead: links, batteries, deadlines, budgets and clusters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import GENERIC_DEVICE, LinkState
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import (
    BestChannel,
    ByName,
    Candidate,
    ClusteredOrder,
    DeadlineAware,
    EnergyAware,
    Forecast,
    LyapunovQueues,
    SelectionPolicy,
)


def _link(up_bps: float, down_bps: float = 1e6) -> LinkState:
    return LinkState(uplink_bps=up_bps, downlink_bps=down_bps)


def _known(node_id: int, *, turns: int = 0, name: str = "", **forecast: Any) -> Candidate:
    values: dict[str, Any] = {
        "device": GENERIC_DEVICE,
        "link": _link(1e6),
        "battery_j": None,
        "num_examples": 10,
        "duration_s": 10.0,
        "device_j": 5.0,
        "total_j": 50.0,
    }
    return Candidate(node_id=node_id, turns=turns, name=name, forecast=Forecast(**(values | forecast)))


def _infeasible(node_id: int, **forecast: Any) -> Candidate:
    nothing = {"duration_s": math.inf, "device_j": math.inf, "total_j": math.inf}
    return _known(node_id, infeasible="no cut is feasible", **(nothing | forecast))


POLICIES: list[Callable[[], SelectionPolicy]] = [
    BestChannel,
    ByName,
    EnergyAware,
    lambda: ClusteredOrder(2),
    lambda: DeadlineAware(1e9),
    lambda: LyapunovQueues(5.0, 1.0),
]


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("num_turns", [0, 1, 2, 4, 5])
def test_each_node_at_most_once_and_no_more_than_asked(make: Callable[[], SelectionPolicy], num_turns: int) -> None:
    candidates = [
        *(_known(50, name="a", total_j=9.0), _known(11, name="b", battery_j=100.0)),
        *(Candidate(node_id=90), _known(23, name="c", duration_s=1.0), Candidate(node_id=42)),
    ]
    order = make().order(candidates, num_turns, 1)
    assert len(order) == num_turns == len(set(order))
    assert set(order) <= {50, 11, 90, 23, 42}


@pytest.mark.parametrize("make", POLICIES)
def test_asks_for_forecasts_and_bears_an_empty_round(make: Callable[[], SelectionPolicy]) -> None:
    policy = make()
    assert getattr(policy, "needs_forecast", False) or getattr(policy, "needs_names", False)
    assert policy.order([], 3, 1) == []


@pytest.mark.parametrize("make", POLICIES)
def test_the_unknown_go_first_the_infeasible_last_or_not_at_all(make: Callable[[], SelectionPolicy]) -> None:
    candidates = [
        _known(5, name="5", turns=1),
        _infeasible(4),
        Candidate(node_id=9, turns=0),
        _known(3, name="3"),
        Candidate(node_id=8, turns=0),
    ]
    if isinstance(make(), ByName):  # which has no use for a forecast
        candidates[1] = replace(candidates[1], name="99")
    order = make().order(candidates, 5, 1)
    assert order[:2] == [8, 9]
    assert sorted(order[2:4]) == [3, 5]
    assert order[4:] == ([] if isinstance(make(), DeadlineAware) else [4])


def test_a_turn_that_never_ends_is_infeasible_without_saying_so() -> None:
    """As with a fixed cut and a link that is down."""
    endless = _known(1, link=_link(0.0), duration_s=math.inf, device_j=math.inf, total_j=math.nan)
    candidates = [endless, _known(2), _known(3)]
    for policy in (BestChannel(), EnergyAware(), ClusteredOrder(2), LyapunovQueues(5.0, 0.0)):
        assert policy.order(candidates, 3, 1) == [2, 3, 1]
    assert DeadlineAware(1e9).order(candidates, 3, 1) == [2, 3]


@pytest.mark.parametrize("make", POLICIES)
def test_does_not_depend_on_the_order_of_the_candidates(make: Callable[[], SelectionPolicy]) -> None:
    candidates = [
        _known(1, name="10", turns=1, total_j=7.0, battery_j=50.0),
        _known(2, name="9", turns=1, link=_link(9e6), duration_s=3.0),
        _known(3, name="8", turns=0, link=_link(9e6)),
        _infeasible(4, link=_link(0.0)),
        Candidate(node_id=5),
    ]
    orders = {tuple(make().order(mixed, 4, 2)) for mixed in permutations(candidates)}
    assert len(orders) == 1


def test_best_channel_by_uplink_then_downlink_then_turns() -> None:
    candidates = [
        _known(1, link=_link(1e6)),
        _known(2, link=_link(5e6, 1e6), turns=1),
        _known(3, link=_link(5e6, 1e6)),
        _known(4, link=_link(5e6, 2e6), turns=3),
        _infeasible(5, link=_link(9e9)),
    ]
    assert BestChannel().order(candidates, 5, 1) == [4, 3, 2, 1, 5]
    assert BestChannel().order(candidates, 2, 7) == [4, 3]


def test_energy_aware_by_the_share_of_the_battery() -> None:
    candidates = [
        _known(1, battery_j=100.0, device_j=50.0, total_j=60.0),
        _known(2, battery_j=1000.0, device_j=80.0, total_j=900.0),
        _known(3, battery_j=10.0, device_j=10.5, total_j=11.0),  # does not hold it
        _known(4, battery_j=10.0, device_j=10.0, total_j=11.0),  # just holds it
        _known(5, device_j=300.0, total_j=900.0),  # on mains
        _known(6, device_j=400.0, total_j=800.0),
        _infeasible(7),
        _infeasible(8, battery_j=100.0),
        _known(9, battery_j=0.0, device_j=1.0),
    ]
    assert EnergyAware().order(candidates, 9, 1) == [6, 5, 2, 1, 4, 7]
    assert EnergyAware().order(candidates[2:3], 9, 1) == []


def test_deadline_aware_takes_as_many_as_any_choice_could() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        durations = rng.uniform(1, 30, 6).tolist()
        deadline = float(rng.uniform(5, 100))
        order = DeadlineAware(deadline).order([_known(k, duration_s=s) for k, s in enumerate(durations)], 6, 1)
        most = max((n for n in range(7) for some in combinations(durations, n) if sum(some) <= deadline), default=0)
        assert len(order) == max(most, 1)
        assert order == sorted(range(6), key=lambda k: durations[k])[: len(order)]


def test_deadline_aware_always_has_a_turn() -> None:
    long = [_known(1, duration_s=50.0), _known(2, duration_s=40.0), _infeasible(3)]
    assert DeadlineAware(10.0).order(long, 3, 1) == [2]
    assert DeadlineAware(10.0).order([_infeasible(4), _infeasible(3)], 2, 1) == [3]
    assert DeadlineAware(10.0).order([*long, Candidate(node_id=9)], 4, 1) == [9]
    assert DeadlineAware(90.0).order([*long, Candidate(node_id=9)], 4, 1) == [9, 2, 1]
    assert DeadlineAware(90.0).order(long, 1, 1) == [2]


def test_queues_by_hand() -> None:
    policy = LyapunovQueues(budget_j_per_round=10.0, v=2.0)
    candidates = [_known(1, device_j=20.0, total_j=30.0), _known(2, device_j=4.0, total_j=35.0)]
    assert policy.order(candidates, 1, 1) == [1]  # 60 < 70
    policy.spent(1, 8.0)
    policy.spent(1, 14.0)  # lost once and called again
    assert policy.queues_j == {}
    assert policy.order(candidates, 1, 2) == [2]  # 60 + 12 * 20 > 70
    assert policy.queues_j == {1: 12.0}
    policy.spent(2, 4.0)
    assert policy.order(candidates, 1, 2) == [2]  # asked again: nothing moves
    assert policy.queues_j == {1: 12.0}
    policy.order(candidates, 1, 3)
    assert policy.queues_j == {1: 2.0}
    assert policy.order(candidates, 1, 5) == [1]  # a round was left out
    assert policy.queues_j == {}


def _spend(v: float, budget_j: float, rounds: int) -> tuple[np.ndarray, float, LyapunovQueues]:
    """Joules of each of six devices and of all, with prices drawn anew each round."""
    rng, policy = np.random.default_rng(7), LyapunovQueues(budget_j, v)
    spent, total_j = np.zeros(6), 0.0
    for server_round in range(1, rounds + 1):
        device_j = rng.uniform(5, 15, 6)
        both_j = device_j + rng.uniform(0, 20, 6) + 10 * np.arange(6)  # the last are the dearest
        candidates = [_known(k, device_j=device_j[k], total_j=both_j[k]) for k in range(6)]
        for k in policy.order(candidates, 2, server_round):
            policy.spent(k, device_j[k])
            spent[k] += device_j[k]
            total_j += both_j[k]
    policy.order([], 0, rounds + 1)
    return spent, total_j, policy


@pytest.mark.parametrize("v", [0.0, 1.0, 30.0])
def test_budgets_hold_in_the_long_run_up_to_the_queue(v: float) -> None:
    """Two turns of about 10 J for six devices: 3.3 J each a round at least."""
    rounds, budget_j = 2000, 5.0
    spent, _, policy = _spend(v, budget_j, rounds)
    for k in range(6):
        assert spent[k] <= rounds * budget_j + policy.queues_j.get(k, 0.0) + 1e-6
    assert spent.max() / rounds < budget_j * 1.05


def test_v_trades_queues_for_energy() -> None:
    runs = [_spend(v, 5.0, 1000) for v in (0.0, 3.0, 100.0)]
    total_j = [run[1] for run in runs]
    longest_j = [max(run[2].queues_j.values(), default=0.0) for run in runs]
    assert total_j[0] > total_j[1] > total_j[2]
    assert longest_j[0] < longest_j[1] < longest_j[2]
    greedy = _spend(1e9, 5.0, 1000)[0]
    assert greedy.max() > 2 * 1000 * 5.0  # what happens where budgets do not count


def test_queues_go_on_after_a_resume() -> None:
    first = LyapunovQueues(5.0, 1.0)
    candidates = [_known(k, device_j=10.0 + k, total_j=50.0) for k in (2**63, 2, 3)]
    first.order(candidates, 2, 1)
    first.spent(2**63, 30.0)
    first.order(candidates, 2, 2)
    first.spent(2, 9.0)
    second = LyapunovQueues(5.0, 1.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for server_round in range(3, 9):
        assert first.order(candidates, 2, server_round) == second.order(candidates, 2, server_round)
        assert first.queues_j == second.queues_j


@pytest.mark.parametrize(("num_devices", "num_turns"), [(12, 5), (4, 4), (10, 3)])
def test_by_name_walks_the_circle_whatever_the_node_ids(num_devices: int, num_turns: int) -> None:
    rng = np.random.default_rng(0)
    walks = []
    for _ in range(2):
        ids = rng.choice(10**6, num_devices, replace=False).tolist()
        names = {node_id: str(k) for k, node_id in enumerate(ids)}
        candidates = [Candidate(node_id=node_id, name=name) for node_id, name in names.items()]
        walks.append([names[n] for r in range(1, 8) for n in ByName().order(candidates, num_turns, r)])
    assert walks[0] == walks[1] == [str(k % num_devices) for k in range(7 * num_turns)]


def test_by_name_in_natural_order() -> None:
    names = ["nano-10", "nano-9", "10", "agx", "9", "nano", "nano-9b", ""]
    candidates = [Candidate(node_id=100 - k, name=name) for k, name in enumerate(names)]
    order = ByName().order(candidates, 8, 1)
    assert [names[100 - node_id] for node_id in order] == [
        *("", "9", "10", "agx", "nano", "nano-9", "nano-9b", "nano-10"),
    ]


def test_clusters_one_after_another() -> None:
    fast = replace(GENERIC_DEVICE, name="fast", cores=8 * GENERIC_DEVICE.cores)
    candidates = [
        _known(node_id, turns=turns, device=fast if node_id % 2 else GENERIC_DEVICE)
        for node_id, turns in [(1, 3), (2, 0), (3, 1), (4, 2), (5, 0), (6, 1)]
    ]
    assert ClusteredOrder(2).order(candidates, 6, 1) == [2, 6, 4, 5, 3, 1]
    assert ClusteredOrder(2).order(candidates, 3, 1) == [2, 5, 3]  # those behind, not all of a cluster
    assert ClusteredOrder(1).order(candidates, 6, 1) == [2, 5, 3, 6, 4, 1]
    assert ClusteredOrder(99).order(candidates, 6, 1) == [2, 5, 3, 6, 4, 1]
    assert ClusteredOrder(2).order([*candidates, Candidate(node_id=9), _infeasible(7)], 8, 1) == [
        *(9, 2, 6, 4, 5, 3, 1, 7),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeadlineAware(0.0), "`round_deadline_s` is 0.0; expected more than 0 seconds"),
        (lambda: DeadlineAware(math.nan), "`round_deadline_s` is nan; expected more than 0 seconds"),
        (lambda: LyapunovQueues(0.0, 1.0), "`budget_j_per_round` is 0.0; expected a finite number of more than 0"),
        (lambda: LyapunovQueues(math.inf, 1.0), "`budget_j_per_round` is inf; expected a finite number"),
        (lambda: LyapunovQueues(1.0, -1.0), "`v` is -1.0; expected a finite number of at least 0"),
        (lambda: LyapunovQueues(1.0, 1.0).spent(3, math.nan), "Node 3 has spent nan J; expected a finite number"),
        (lambda: ClusteredOrder(0), "`num_clusters` is 0; expected at least 1"),
    ],
)
def test_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
