"""Shares and subcarriers: against brute force, and against the baselines on random fleets."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import ChainResources, ChainWorkload
from flwr_splitkd.costs.chain_latency import link_rates_bps
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers.chain import (
    Algorithm1,
    Allocation,
    AllocationPolicy,
    EqualAllocation,
    ExactAllocation,
    allocate_resources,
)
from flwr_splitkd.schedulers.chain.minimax import least_latency, least_latency_for
from flwr_splitkd.schedulers.chain.objective import RoundObjective

LAYERS = 6


def _brute_force(work: ChainWorkload, resources: ChainResources, points: np.ndarray) -> float:
    """Every way to divide the subcarriers; for each the least latency by halving."""
    devices, carriers = resources.num_devices, resources.num_subcarriers
    every = itertools.product(range(1, carriers - devices + 2), repeat=devices)
    beta = np.array([one for one in every if sum(one) <= carriers])
    up, down = link_rates_bps(resources, beta)
    local = work.device_work_flops[points - 1] / resources.device_flops
    other = local + work.smashed_bits[points - 1] / up + work.gradient_bits[points - 1] / down
    seconds = work.edge_work_flops[points - 1] / resources.edge_flops
    low = (other + seconds).max(axis=1)
    # With equal shares everyone is done by then.
    high = (other + devices * seconds).max(axis=1)
    if not seconds.any():
        return float(low.min())
    for _ in range(100):
        middle = (low + high) / 2
        left = middle[:, None] - other
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = np.where(seconds > 0, np.where(left > 0, seconds / left, np.inf), 0.0).sum(axis=1)
        enough = (needed <= 1) & (left >= 0).all(axis=1)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return float(high.min())


def _keeps_to_what_there_is(allocation: Allocation, resources: ChainResources) -> None:
    assert allocation.subcarriers.min() >= 1
    assert allocation.subcarriers.sum(axis=-1).max() <= resources.num_subcarriers
    assert allocation.shares.min() >= 0
    assert allocation.shares.sum(axis=-1).max() <= 1 + 1e-12


@pytest.mark.parametrize("kind", ["alike", "different", "literal", "whole encoders"])
def test_equals_brute_force(kind: str, covered: Callable[[str, object], None]) -> None:
    rng = np.random.default_rng([ord(letter) for letter in kind])
    for _ in range(100):
        devices = int(rng.integers(1, 5))
        carriers = int(rng.integers(devices, 9))
        resources = chain_resources(rng, devices, carriers, shared_edge_power=kind != "literal")
        work = chain_workload(LAYERS)
        if kind == "different":
            work = chain_workload(
                LAYERS,
                forward_flops=rng.uniform(1e9, 9e10, LAYERS),
                smashed_bits=rng.uniform(1e6, 5e7, LAYERS),
                gradient_bits=rng.uniform(1e6, 5e7, LAYERS),
            )
        points = rng.integers(1, LAYERS + 1, devices)
        if kind == "whole encoders":
            points[rng.random(devices) < 0.7] = LAYERS
        allocation = allocate_resources(work, resources, points)
        _keeps_to_what_there_is(allocation, resources)
        assert (allocation.shares[points == LAYERS] == 0).all()
        assert float(allocation.latency.slowest_s) == pytest.approx(_brute_force(work, resources, points), rel=1e-9)
    covered("allocations that equal brute force", 4 * 100)


def _never_above(count: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    baselines: tuple[AllocationPolicy, ...] = (Algorithm1(2), EqualAllocation())
    ratios = []
    for index in range(count):
        devices = int(rng.integers(10, 101))
        carriers = int(rng.integers(devices, 4 * devices))
        edge = (3e12, 1e13, 31e12, 312e12)[index % 4]
        resources = chain_resources(rng, devices, carriers, edge_flops=edge, shared_edge_power=index % 3 > 0)
        work = chain_workload(LAYERS, smashed_bits=rng.uniform(1e6, 3e7))
        points = rng.integers(1, LAYERS + 1, devices)
        allocation = allocate_resources(work, resources, points)
        _keeps_to_what_there_is(allocation, resources)
        for baseline in baselines:
            other = baseline.allocate(work, resources, points)
            _keeps_to_what_there_is(other, resources)
            ratios.append(float(other.latency.slowest_s / allocation.latency.slowest_s))
    return ratios


@pytest.mark.parametrize("fleets", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_never_above_the_baselines(fleets: int, covered: Callable[[str, object], None]) -> None:
    ratios = _never_above(fleets, seed=0)
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) > 1.05  # the baselines are not the optimum in disguise
    covered("fleets on which no baseline is faster", len(ratios) // 2)


def test_everyone_that_needs_the_edge_is_done_at_the_same_time() -> None:
    resources = chain_resources(np.random.default_rng(3), 12, 60, edge_flops=3e12)
    allocation = allocate_resources(chain_workload(LAYERS), resources, [1, 2, 3, 4, 5, 1] * 2)
    assert np.ptp(allocation.latency.each_s) <= 1e-9 * allocation.latency.slowest_s
    assert allocation.shares.sum() == pytest.approx(1)


def test_draws_are_solved_as_if_alone() -> None:
    rng = np.random.default_rng(4)
    for points in ([1, 3, 5, 6, 6], [6, 6, 6, 6, 6], [1, 1, 1, 1, 1]):
        draws = chain_resources(rng, 5, 40, num_draws=6)
        together = allocate_resources(chain_workload(LAYERS), draws, points)
        assert together.shares.shape == together.subcarriers.shape == (6, 5)
        for index in range(6):
            alone = allocate_resources(chain_workload(LAYERS), draws.draw(index), points)
            assert together.latency.slowest_s[index] == pytest.approx(float(alone.latency.slowest_s), rel=1e-11)
    assert "on average over 6 draws" in together.reason


@pytest.mark.parametrize(("carriers", "far_away"), [(5, 1), (6, 2), (60, 56), (400, 396)])
def test_few_and_many_subcarriers(carriers: int, far_away: int) -> None:
    """One each, and so many that a device far away gets hundreds of them."""
    resources = replace(
        chain_resources(np.random.default_rng(5), 5, carriers, edge_flops=3e14),
        device_flops=np.full(5, 1e14),
        channel_gain=np.array([1e-13, 1e-6, 1e-6, 1e-6, 1e-6]),
    )
    allocation = allocate_resources(chain_workload(LAYERS), resources, [6, 1, 6, 3, 6])
    _keeps_to_what_there_is(allocation, resources)
    assert allocation.subcarriers.tolist() == [far_away, 1, 1, 1, 1]


def test_no_subcarrier_is_better_elsewhere() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        resources, work = chain_resources(rng, 8, 200, edge_flops=1e13), chain_workload(LAYERS)
        points = rng.integers(1, LAYERS + 1, 8)
        allocation = allocate_resources(work, resources, points)
        pairs = [pair for pair in itertools.permutations(range(8), 2) if allocation.subcarriers[pair[0]] > 1]
        beta = np.array([allocation.subcarriers - np.eye(8)[give] + np.eye(8)[take] for give, take in pairs])
        up, down = link_rates_bps(resources, beta)
        other = work.device_work_flops[points - 1] / resources.device_flops
        other = other + work.smashed_bits[points - 1] / up + work.gradient_bits[points - 1] / down
        seconds = np.tile(work.edge_work_flops[points - 1] / resources.edge_flops, (len(pairs), 1))
        assert least_latency_for(seconds, other).min() >= float(allocation.latency.slowest_s) * (1 - 1e-9)


@pytest.mark.parametrize("edge_flops", [3e12, 3e13, 3e14])
def test_large_fleets_by_their_certificate(edge_flops: float) -> None:
    """At the least V no subcarrier saves more of the edge elsewhere than it does where it is; as in the module's docstring."""
    rng = np.random.default_rng(10)
    resources, work = chain_resources(rng, 300, 900, edge_flops=edge_flops), chain_workload(LAYERS)
    points = rng.integers(1, LAYERS, 300)
    allocation = allocate_resources(work, resources, points)
    _keeps_to_what_there_is(allocation, resources)
    latency, beta = float(allocation.latency.slowest_s), allocation.subcarriers
    seconds = work.edge_work_flops[points - 1] / resources.edge_flops

    def needed(subcarriers: np.ndarray) -> np.ndarray:
        up, down = link_rates_bps(resources, subcarriers)
        left = latency - allocation.latency.device_s
        left = left - work.smashed_bits[points - 1] / up - work.gradient_bits[points - 1] / down
        return np.where(left > 0, seconds / np.where(left > 0, left, 1), np.inf)

    assert needed(beta).sum() == pytest.approx(1)
    assert beta.sum() == 900
    gain = (needed(beta) - needed(beta + 1)).max()
    loss = (needed(np.maximum(beta - 1, 1)) - needed(beta))[beta > 1].min()
    assert gain <= loss * (1 + 1e-6)


def test_the_reason_names_who_takes_longest() -> None:
    resources = replace(
        chain_resources(np.random.default_rng(6), 3, 9, edge_flops=3e14), device_flops=np.array([1e13, 1e9, 1e13])
    )
    allocation = ExactAllocation().allocate(chain_workload(LAYERS), resources, np.array([6, 6, 6]))
    assert re.match(r"exact: .* s an iteration and .* s of the cloud link; device 1 takes longest:", allocation.reason)


def test_more_devices_than_subcarriers() -> None:
    resources = chain_resources(np.random.default_rng(7), 5, 4)
    message = re.escape(
        "`num_subcarriers` is 4; expected at least 5, one for each device. Let 4 devices at most take part in the round, divide "
        "the band into 5 subcarriers, or add an edge."
    )
    for policy in (ExactAllocation(), EqualAllocation(), Algorithm1()):
        with pytest.raises(InfeasibleError, match=message):
            policy.allocate(chain_workload(LAYERS), resources, np.full(5, 2))


def test_split_points_are_checked() -> None:
    resources = chain_resources(np.random.default_rng(8), 3, 4)
    for policy in (ExactAllocation(), EqualAllocation(), Algorithm1()):
        with pytest.raises(ConfigError, match=re.escape("`split_points` holds 7; expected whole numbers of 1..6")):
            policy.allocate(chain_workload(LAYERS), resources, np.array([1, 7, 2]))


@pytest.mark.parametrize("within", [1e-4, 1e-2])
def test_near_enough_is_no_further_than_said(within: float) -> None:
    rng = np.random.default_rng(11)
    nearer = 0
    for kind in range(3):
        draws = chain_resources(rng, 40, 250, num_draws=2, edge_flops=1e13)
        objective = RoundObjective(chain_workload(LAYERS), draws)
        # Some, many and no devices that keep all layers and need nothing of the edge.
        points = np.where(rng.random((20, 40)) < (0.3, 0.9, 0.0)[kind], LAYERS, 1)
        link_s = objective.cloud_link_s
        least, near = (objective.evaluate(points, within=share)[0] - link_s for share in (0.0, within))
        assert (near >= least * (1 - 1e-9)).all() and (near <= least * (1 + within)).all()
        nearer += int((near > least * (1 + 1e-9)).sum())
    assert nearer


def test_who_needs_nothing_of_the_edge_does_not_widen_the_search() -> None:
    """All that is left over may go to any of them; looking at more of it for each helps nobody."""
    devices, widths = 50, list[int]()
    per_carrier_s = np.random.default_rng(12).uniform(1.0, 9.0, (1, devices, 1))

    def times(instances: np.ndarray, subcarriers: np.ndarray) -> np.ndarray:
        widths.append(subcarriers.shape[2])
        return np.asarray(per_carrier_s[instances] / subcarriers)

    solution = least_latency(np.zeros((1, devices)), times, 1000)
    needed = np.ceil(per_carrier_s[0, :, 0] / solution.latency_s[0] * (1 - 1e-12))
    assert needed.sum() <= 1000 < np.ceil(per_carrier_s[0, :, 0] / (solution.latency_s[0] * (1 - 1e-9))).sum()
    assert max(widths) == 2 * 1000 // devices + 4
