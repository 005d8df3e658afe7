"""The paper's Algorithm 1, and equal shares."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import ChainLatency, ChainResources, ChainWorkload, chain_latency
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import Algorithm1, AllocationPolicy, EqualAllocation, ExactAllocation
from flwr_splitkd.schedulers.chain.minimax import least_latency_for, shares_for


def _as_printed(work: ChainWorkload, resources: ChainResources, points: np.ndarray, passes: int) -> np.ndarray:
    """Lines 3 to 19 by the letter, but for beta's reset: every candidate's D is worked out in full."""
    devices = resources.num_devices
    shares = np.full(devices, 1 / devices)

    def latency(subcarriers: np.ndarray) -> ChainLatency:
        return chain_latency(work, resources, split_points=points, subcarriers=subcarriers, shares=shares)

    for _ in range(passes):
        beta = np.ones(devices, dtype=np.int64)
        for _ in range(resources.num_subcarriers - devices):
            now = float(latency(beta).slowest_s)
            gains = [now - float(latency(beta + one).slowest_s) for one in np.eye(devices, dtype=np.int64)]
            beta[int(np.argmax(gains))] += 1
        edge_s = latency(beta).edge_s * shares
        other_s = latency(beta).each_s - latency(beta).edge_s
        shares = shares_for(edge_s[None], other_s[None], least_latency_for(edge_s[None], other_s[None]))[0]
    return beta


@pytest.mark.parametrize("passes", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(8))
def test_its_passes_are_the_papers(seed: int, passes: int) -> None:
    rng = np.random.default_rng(seed)
    work, resources = chain_workload(), chain_resources(rng, 5, 24, edge_flops=3e12)
    points = rng.integers(1, 7, 5)
    allocation = Algorithm1(passes).allocate(work, resources, points)
    assert allocation.subcarriers.tolist() == _as_printed(work, resources, points, passes).tolist()
    assert len(allocation.history_s) == passes


@pytest.mark.parametrize("points", [[2, 2, 2, 2], [6, 6, 6, 6], [6, 2, 6, 2]])
def test_of_devices_that_are_alike_the_first_one_is_served(points: list[int]) -> None:
    work = chain_workload()
    resources = replace(chain_resources(np.random.default_rng(0), 4, 19), device_flops=np.full(4, 1e12))
    resources = replace(resources, channel_gain=np.full(4, 1e-9))
    allocation = Algorithm1(3).allocate(work, resources, np.array(points))
    assert allocation.subcarriers.tolist() == _as_printed(work, resources, np.array(points), 3).tolist()
    assert len(set(allocation.subcarriers.tolist())) > 1


def test_shares_are_the_best_for_its_subcarriers() -> None:
    resources = chain_resources(np.random.default_rng(1), 6, 24, edge_flops=3e12)
    allocation = Algorithm1(3).allocate(chain_workload(), resources, np.array([1, 2, 3, 4, 5, 1]))
    assert np.ptp(allocation.latency.each_s) <= 1e-9 * allocation.latency.slowest_s
    assert allocation.shares.sum() == pytest.approx(1)
    assert len(allocation.history_s) == 3
    assert allocation.history_s[-1] == pytest.approx(float(allocation.latency.slowest_s))


def test_as_printed_it_hands_out_more_subcarriers_than_there_are() -> None:
    resources = chain_resources(np.random.default_rng(2), 6, 24)
    points = np.array([1, 2, 3, 4, 5, 6])
    for iterations in (1, 2, 3):
        printed = Algorithm1(iterations, reset_subcarriers=False).allocate(chain_workload(), resources, points)
        meant = Algorithm1(iterations).allocate(chain_workload(), resources, points)
        assert printed.subcarriers.sum() == 6 + iterations * (24 - 6)
        assert meant.subcarriers.sum() == 24


def test_draws_one_by_one() -> None:
    draws = chain_resources(np.random.default_rng(3), 4, 16, num_draws=3)
    points = np.array([1, 2, 6, 4])
    for policy in (Algorithm1(2), EqualAllocation()):
        together = policy.allocate(chain_workload(), draws, points)
        assert together.shares.shape == (3, 4)
        for index in range(3):
            alone = policy.allocate(chain_workload(), draws.draw(index), points)
            assert together.latency.slowest_s[index] == pytest.approx(float(alone.latency.slowest_s))


def test_equal_shares() -> None:
    resources = chain_resources(np.random.default_rng(4), 4, 18)
    allocation = EqualAllocation().allocate(chain_workload(), resources, np.array([1, 2, 6, 4]))
    assert allocation.shares.tolist() == [0.25] * 4
    assert allocation.subcarriers.tolist() == [5, 5, 4, 4]
    assert allocation.method == "equal"


def test_policies_are_what_the_protocol_asks_for() -> None:
    assert all(isinstance(policy, AllocationPolicy) for policy in (Algorithm1(), EqualAllocation(), ExactAllocation()))
    with pytest.raises(ConfigError, match=re.escape("`iterations` is 0; expected a finite number of at least 1")):
        Algorithm1(0)
