"""The bound for draws that agree: below every decision whatever the multipliers, and nearer than that of draws for themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import ChainWorkload, MemoryLimits
from flwr_splitkd.schedulers.chain import optimize_split_points, scenarios
from flwr_splitkd.schedulers.chain.bound import alone_s, lower_bound_s
from flwr_splitkd.schedulers.chain.objective import RoundObjective

LAYERS = 6


def _fleet(rng: np.random.Generator) -> tuple[ChainWorkload, RoundObjective]:
    """Two or three devices whose speeds vary much; layers alike or not, memory of devices and edge slack or not."""
    devices = int(rng.integers(2, 4))
    changes = {}
    if rng.random() < 0.5:
        changes = {"forward_flops": rng.uniform(5e9, 9e10, LAYERS), "smashed_bits": rng.uniform(1e6, 3e7, LAYERS)}
    work = chain_workload(LAYERS, **changes)
    draws = chain_resources(rng, devices, int(rng.integers(devices, 40)), num_draws=4, edge_flops=2e12, spread=0.8)
    limits = MemoryLimits()
    if rng.random() < 0.5:
        layers = rng.integers(2, LAYERS + 1, devices)
        least, most = work.edge_memory_bytes[layers - 1].sum(), devices * work.edge_memory_bytes[0]
        limits = MemoryLimits(device_bytes=1e8 * layers, edge_bytes=least + rng.random() * (most - least) / 2)
    return work, RoundObjective(work, draws, limits=limits)


def _best(objective: RoundObjective) -> tuple[np.ndarray, float]:
    """The best of all sets, and its mean seconds of an iteration."""
    devices = objective.problem.num_devices
    every = np.array(list(itertools.product(range(1, LAYERS + 1), repeat=devices)))
    every = every[objective.fits(every)]
    values, _ = objective.evaluate(every)
    return every[values.argmin()], float(values.min() - objective.cloud_link_s) / objective.iterations


def _dual(objective: RoundObjective, points: np.ndarray, price_factor: float) -> scenarios.Dual:
    reached = objective.latencies(points)
    prices = price_factor * scenarios.subcarrier_prices(objective, points, reached)
    return scenarios.Dual.of(objective, prices, scenarios.latencies_of(alone_s(objective, reached), reached, 24))


def test_no_multipliers_and_no_prices_lift_it_above_the_best() -> None:
    """Also far from the best ones, of which some are near enough to be told from a bound that is wrong."""
    nearest, bound_by_memory = np.inf, 0
    for index in range(20):
        rng = np.random.default_rng(index)
        work, objective = _fleet(rng)
        points, best = _best(objective)
        memory = work.edge_memory_bytes / objective.edge_bytes
        bound_by_memory += memory.any()
        forbidden = ~np.repeat(objective.allowed.T[:, None], 4, axis=1)
        for factor, scale in itertools.product((0.3, 1.0, 3.0), (0.0, 0.02, 0.3)):
            charges = scale * best * rng.normal(size=(LAYERS, 4, len(points)))
            charges -= charges.mean(axis=1, keepdims=True)
            charges[forbidden] = np.inf
            price = best * rng.choice([0.0, 0.1, 1.0])
            multipliers = scenarios.Multipliers(charges=charges, memory=memory, price_s=price)
            value, rise, _ = multipliers.bound(_dual(objective, points, factor))
            assert value <= best * (1 + 1e-9)
            assert rise.sum(axis=(0, 1)) == pytest.approx(0.0, abs=1e-9)
            assert (rise[forbidden] == 0).all()
            nearest = min(nearest, 1 - value / best)
    assert nearest < 0.01 and bound_by_memory >= 5


def test_it_lies_between_the_bound_of_draws_for_themselves_and_the_best() -> None:
    closed = []
    for index in range(25):
        _, objective = _fleet(np.random.default_rng(100 + index))
        points, best = _best(objective)
        reached = objective.latencies(points)
        alone = alone_s(objective, reached)
        agreed = scenarios.agreed_bound_s(objective, points, alone, reached)
        assert alone.mean() <= agreed <= best * (1 + 1e-9)
        if alone.mean() < 0.98 * best:
            closed.append((agreed - alone.mean()) / (best - alone.mean()))
    assert len(closed) >= 5 and np.median(closed) > 0.3


@pytest.mark.parametrize(("edge_flops", "spread"), [(5e12, 0.6), (30e12, 0.5)])
def test_much_of_the_gap_is_the_bounds(edge_flops: float, spread: float) -> None:
    draws = chain_resources(np.random.default_rng(3), 20, 130, num_draws=20, edge_flops=edge_flops, spread=spread)
    work = chain_workload(12)
    decision = optimize_split_points(work, draws)
    objective = RoundObjective(work, draws)
    alone = alone_s(objective, objective.latencies(decision.split_points)).mean()
    gap_alone = (decision.objective_s - decision.cloud_link_s) / objective.iterations / alone - 1
    assert 0 <= decision.gap <= 0.3 * gap_alone


def test_the_edges_memory_counts() -> None:
    """With room for half of what would be best, a bound without memory says next to nothing. One draw is enough."""
    work = chain_workload(12)
    for num_draws in (1, 10):
        draws = chain_resources(np.random.default_rng(6), 12, 80, num_draws=num_draws, edge_flops=1e14, spread=0.2)
        free = optimize_split_points(work, draws, bound=False)
        room = work.edge_memory_bytes[free.split_points - 1].sum() / 2
        decision = optimize_split_points(work, draws, limits=MemoryLimits(edge_bytes=room))
        objective = RoundObjective(work, draws)
        alone = alone_s(objective, objective.latencies(decision.split_points)).mean()
        gap_alone = (decision.objective_s - decision.cloud_link_s) / objective.iterations / alone - 1
        assert gap_alone > 0.5
        assert 0 <= decision.gap <= 0.3 * gap_alone


def test_one_draw_and_too_many_devices_keep_the_bound_of_draws_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    work = chain_workload(LAYERS)
    for num_draws in (1, 3):
        draws = chain_resources(np.random.default_rng(4), 8, 30, num_draws=num_draws, edge_flops=2e12, spread=0.8)
        objective = RoundObjective(work, draws)
        points = np.full(8, 2)
        reached = objective.latencies(points)
        alone = alone_s(objective, reached)
        if num_draws > 1:
            assert scenarios.agreed_bound_s(objective, points, alone, reached) > alone.mean()
            monkeypatch.setattr(scenarios, "_NUMBERS", 10_000)
        assert scenarios.agreed_bound_s(objective, points, alone, reached) == alone.mean()
        value = objective.cloud_link_s + objective.iterations * alone.mean()
        assert lower_bound_s(objective, points) == pytest.approx(value)


def test_few_sets_are_proven_by_trying_them_all() -> None:
    draws = chain_resources(np.random.default_rng(5), 2, 12, num_draws=4, edge_flops=2e12, spread=0.8)
    decision = optimize_split_points(chain_workload(LAYERS), draws)
    assert decision.method == "every set"
    assert decision.gap == 0
    assert "at most 0 % above the best" in decision.reason
