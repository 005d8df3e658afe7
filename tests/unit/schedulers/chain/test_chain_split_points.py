"""Split points: against every set of them on small fleets, and within their bound on larger ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import ChainResources, ChainWorkload, MemoryLimits, ModelledCell, handover_table_s, named_shape
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers.chain import (
    Allocation,
    EqualAllocation,
    FixedSplitPoints,
    OptimalSplitPoints,
    SplitPointPolicy,
    allocate_resources,
    optimize_split_points,
    split_points,
)
from flwr_splitkd.schedulers.chain.objective import RoundObjective

LAYERS = 6


def _objective(work: ChainWorkload, draws: ChainResources, points: np.ndarray, handover: np.ndarray) -> float:
    """(29), draw by draw."""
    seconds = [float(allocate_resources(work, draws.draw(q), points).latency.epoch_s) for q in range(draws.num_draws)]
    return float(handover[np.arange(len(points)), points - 1].max() + work.epochs * np.mean(seconds))


def _brute_force(work: ChainWorkload, draws: ChainResources, limits: MemoryLimits, handover: np.ndarray) -> float:
    """The best of all sets of split points that fit in memory."""
    every = np.array(list(itertools.product(range(1, LAYERS + 1), repeat=draws.num_devices)))
    fits = (work.device_memory_bytes[every - 1] <= limits.device_bytes).all(axis=1)
    fits &= work.edge_memory_bytes[every - 1].sum(axis=1) <= limits.edge_bytes
    objective = RoundObjective(work, draws, handover_s=handover)
    return float(objective.evaluate(every[fits])[0].min())


@pytest.mark.parametrize("memory", ["slack", "binding"])
@pytest.mark.parametrize("layers", ["alike", "different"])
def test_equals_brute_force(memory: str, layers: str, covered: Callable[[str, object], None]) -> None:
    rng = np.random.default_rng([len(memory), len(layers)])
    for index in range(6):
        devices = 5 if index == 0 else int(rng.integers(2, 5))
        work = chain_workload(LAYERS)
        if layers == "different":
            work = chain_workload(
                LAYERS, forward_flops=rng.uniform(5e9, 9e10, LAYERS), smashed_bits=rng.uniform(1e6, 3e7, LAYERS)
            )
        draws = chain_resources(rng, devices, int(rng.integers(devices, 13)), num_draws=int(rng.integers(1, 5)))
        limits = MemoryLimits()
        if memory == "binding":
            device_bytes = 1e8 * rng.integers(1, LAYERS + 1, devices)
            least = work.edge_memory_bytes[(device_bytes / 1e8).astype(int) - 1].sum()
            most = devices * work.edge_memory_bytes[0]
            limits = MemoryLimits(device_bytes=device_bytes, edge_bytes=least + rng.random() * (most - least) / 2)
        old = rng.integers(1, LAYERS + 1, devices)
        handover = handover_table_s(work, draws.draw(0), old=old) * rng.choice([0.0, 1.0, 50.0])
        decision = optimize_split_points(work, draws, limits=limits, handover_s=handover)
        best = _brute_force(work, draws, limits, handover)
        assert decision.objective_s == pytest.approx(best, rel=1e-9)
        assert decision.lower_bound_s <= best * (1 + 1e-9)
        assert decision.objective_s == pytest.approx(_objective(work, draws, decision.split_points, handover), rel=1e-9)
        memory_used = work.edge_memory_bytes[decision.split_points - 1].sum()
        assert memory_used <= limits.edge_bytes
        assert (work.device_memory_bytes[decision.split_points - 1] <= limits.device_bytes).all()
    covered("split points that equal brute force", 4 * 6)


@pytest.mark.parametrize(
    ("edge_flops", "spread"), [(312e12, 0.5), (31e12, 0.1), pytest.param(3e12, 0.2, marks=pytest.mark.slow)]
)
def test_close_to_the_bound(edge_flops: float, spread: float) -> None:
    rng = np.random.default_rng(1)
    draws = chain_resources(rng, 30, 200, num_draws=50, edge_flops=edge_flops, spread=spread)
    decision = optimize_split_points(chain_workload(12), draws)
    assert 0 <= decision.gap <= 0.015
    assert 1 < len(set(decision.split_points.tolist()))


def test_no_change_of_one_device_or_trade_of_two_is_better_where_the_edges_memory_binds() -> None:
    draws = chain_resources(np.random.default_rng(12), 12, 60, num_draws=2, edge_flops=3e13, spread=0.1)
    work = chain_workload(LAYERS)
    limits = MemoryLimits(edge_bytes=0.4 * 12 * work.edge_memory_bytes[0])
    decision = optimize_split_points(work, draws, limits=limits, bound=False)
    objective = RoundObjective(work, draws, limits=limits)
    near = [decision.split_points]
    for up, down in itertools.permutations(range(12), 2):
        for more, less in itertools.product(range(LAYERS), repeat=2):
            points = decision.split_points.copy()
            points[up] += more
            points[down] -= less
            if points.max() <= LAYERS and points.min() >= 1:
                near.append(points)
    sets = np.unique(np.stack(near), axis=0)
    sets = sets[objective.fits(sets)]
    assert len(sets) > 500
    assert objective.evaluate(sets)[0].min() == pytest.approx(decision.objective_s, rel=2e-3)


def test_layers_that_change_hands_count() -> None:
    """A hand-over that takes longer than anything it saves leaves everyone where they are."""
    draws = chain_resources(np.random.default_rng(2), 6, 24, num_draws=3)
    work, old = chain_workload(LAYERS), np.array([2, 3, 5, 1, 4, 6])
    table = handover_table_s(work, draws.draw(0), old=old)
    free = optimize_split_points(work, draws)
    dear = optimize_split_points(work, draws, handover_s=1e9 * table)
    assert free.handover_s == 0 and free.split_points.tolist() != old.tolist()
    assert dear.handover_s == 0 and dear.split_points.tolist() == old.tolist()
    some = optimize_split_points(work, draws, handover_s=table)
    assert some.handover_s == table[np.arange(6), some.split_points - 1].max() > 0


def test_another_allocation_decides_with_it() -> None:
    """What is best with equal shares is worked out with equal shares."""
    draws = chain_resources(np.random.default_rng(3), 4, 12, num_draws=2, edge_flops=3e12)
    work = chain_workload(LAYERS)
    decision = optimize_split_points(work, draws, allocation=EqualAllocation())

    def value(points: np.ndarray) -> float:
        each = [float(EqualAllocation().allocate(work, draws.draw(q), points).latency.epoch_s) for q in range(2)]
        return work.epochs * float(np.mean(each))

    every = itertools.product(range(1, LAYERS + 1), repeat=4)
    assert decision.objective_s == pytest.approx(min(value(np.array(points)) for points in every))
    assert decision.objective_s > optimize_split_points(work, draws).objective_s
    assert decision.lower_bound_s <= optimize_split_points(work, draws).objective_s


def test_the_same_draws_give_the_same_split_points() -> None:
    draws = chain_resources(np.random.default_rng(4), 12, 60, num_draws=5)
    first, second = (optimize_split_points(chain_workload(LAYERS), draws) for _ in range(2))
    assert first.split_points.tolist() == second.split_points.tolist()
    assert (first.objective_s, first.evaluations) == (second.objective_s, second.evaluations)
    assert list(first.history_s) == sorted(first.history_s, reverse=True)


def test_fixed_split_points() -> None:
    draws = chain_resources(np.random.default_rng(5), 4, 12, num_draws=3)
    work, handover = chain_workload(LAYERS), np.zeros((4, LAYERS))
    for given, points in ((3, [3, 3, 3, 3]), (np.array([1, 2, 3, 6]), [1, 2, 3, 6])):
        decision = FixedSplitPoints(given).choose(work, draws, MemoryLimits())
        assert decision.split_points.tolist() == points
        assert decision.objective_s == pytest.approx(_objective(work, draws, np.array(points), handover))
        assert decision.gap == np.inf and "best" not in decision.reason
    with pytest.raises(
        InfeasibleError, match=re.escape("`split_points` is 3; expected at most 2, what the smallest device holds")
    ):
        FixedSplitPoints(3).choose(work, draws, MemoryLimits(device_bytes=np.array([5e8, 2e8, 5e8, 5e8])))
    # Four devices leave three layers of 1e8 bytes each.
    with pytest.raises(
        InfeasibleError,
        match=re.escape("`split_points` is 3, which leaves 1.118 GiB to the edge; expected at most 0.5 GiB. Raise it"),
    ):
        FixedSplitPoints(3).choose(work, draws, MemoryLimits(edge_bytes=0.5 * (1 << 30)))


def test_the_reason_says_how_good_it_is() -> None:
    draws = chain_resources(np.random.default_rng(6), 4, 12, num_draws=3)
    decision = OptimalSplitPoints().choose(chain_workload(LAYERS), draws, MemoryLimits())
    assert re.match(
        r"k fastest: split points \d\.\.\d, .* s a round, of them 0 s of hand-over and .* s of the cloud link; "
        "at most .* % above the best",
        decision.reason,
    )
    assert isinstance(OptimalSplitPoints(), SplitPointPolicy) and isinstance(FixedSplitPoints(1), SplitPointPolicy)


def test_a_policy_of_ones_own() -> None:
    class FirstTakesAll:
        def allocate(self, workload: ChainWorkload, resources: ChainResources, split_points: np.ndarray) -> Allocation:
            rest = np.ones(resources.num_devices, dtype=np.int64)
            rest[0] = resources.num_subcarriers - resources.num_devices + 1
            shares = np.full(resources.num_devices, 1 / resources.num_devices)
            return Allocation.of(
                workload, resources, split_points, shares=shares, subcarriers=rest, method="first takes all"
            )

    draws = chain_resources(np.random.default_rng(7), 3, 12, num_draws=2)
    decision = OptimalSplitPoints(FirstTakesAll()).choose(chain_workload(LAYERS), draws, MemoryLimits())
    assert decision.objective_s >= optimize_split_points(chain_workload(LAYERS), draws).objective_s


def test_fleets_that_cannot_do_it() -> None:
    draws, work = chain_resources(np.random.default_rng(8), 3, 12, num_draws=2), chain_workload(LAYERS)
    gib = 1 << 30
    # 1e8 bytes, rounded up: who follows the message is not sent away a second time.
    with pytest.raises(
        InfeasibleError,
        match=re.escape(
            "`device_bytes` of device 1 is 0.01 GiB; expected at least 0.09314 GiB, for the smallest part of 6 layers"
        ),
    ):
        optimize_split_points(work, draws, limits=MemoryLimits(device_bytes=np.array([gib, 0.01 * gib, gib])))
    optimize_split_points(work, draws, limits=MemoryLimits(device_bytes=np.array([gib, 0.09314 * gib, gib])))
    # Devices hold 2 of 6 layers, so that 4 for each of 3 devices stay on the edge.
    with pytest.raises(
        InfeasibleError,
        match=re.escape(f"`edge_bytes` is 0.5 GiB; expected at least {12e8 / gib:.4g} GiB, with as much of the 3"),
    ):
        optimize_split_points(work, draws, limits=MemoryLimits(device_bytes=2.5e8, edge_bytes=0.5 * gib))
    with pytest.raises(InfeasibleError, match="`num_subcarriers` is 12; expected at least 13, one for each device"):
        optimize_split_points(work, chain_resources(np.random.default_rng(9), 13, 12))
    with pytest.raises(ConfigError, match=re.escape("`handover_s` has shape (3, 5); expected (3, 6)")):
        optimize_split_points(work, draws, handover_s=np.zeros((3, 5)))
    with pytest.raises(
        ConfigError, match=re.escape("`device_bytes` has shape (2,); expected one value for each of 3 devices")
    ):
        optimize_split_points(work, draws, limits=MemoryLimits(device_bytes=np.ones(2)))


def test_many_devices_are_scanned_from_coarse_to_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of the k are tried, and what is found is about what trying all of them finds."""
    names = [str(number) for number in range(60)]
    work = ChainWorkload.from_shape(
        named_shape("roberta-large/6"), batch_size=8, positions=384, iterations_per_epoch=5, epochs=4
    )
    draws = ModelledCell(edge_flops=15e12, num_subcarriers=150).draws(names, 3)
    monkeypatch.setattr(split_points, "_POLISHED", 1)
    every = optimize_split_points(work, draws)
    monkeypatch.setattr(split_points, "_EVERY_COUNT", 1)
    some = optimize_split_points(work, draws)
    assert some.evaluations < every.evaluations
    link_s = every.cloud_link_s
    assert some.objective_s - link_s <= 1.01 * (every.objective_s - link_s)
    assert {int(point) for point in some.split_points} == {1, 6}
