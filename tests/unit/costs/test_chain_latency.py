"""The chain's latency against the paper's formulas, written out for one device at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import (
    ChainResources,
    ChainWorkload,
    RoundLatency,
    chain_latency,
    handover_s,
    handover_table_s,
)
from flwr_splitkd.costs.chain_latency import link_rates_bps
from flwr_splitkd.errors import ConfigError

LAYERS = 6


def _workload(rng: np.random.Generator) -> ChainWorkload:
    """Every layer and split point has sizes of its own."""
    return chain_workload(
        LAYERS,
        forward_flops=rng.uniform(1e10, 9e10, LAYERS),
        smashed_bits=rng.uniform(1e6, 9e6, LAYERS),
        gradient_bits=rng.uniform(1e6, 9e6, LAYERS),
        layer_bits=rng.uniform(1e8, 9e8, LAYERS),
        cloud_up_bits=5e6,
        cloud_down_bits=2e6,
        backward_ratio=1.7,
        iterations_per_epoch=7,
    )


def _rates(resources: ChainResources, device: int, beta: int) -> tuple[float, float]:
    """(13) and (14)."""
    gain, width, noise = resources.channel_gain[device], resources.subcarrier_hz, resources.noise_w_per_hz
    band = beta * width
    up = band * math.log2(1 + gain * resources.device_power_w[device] / (noise * band))  # type: ignore[index]
    spread = resources.num_subcarriers * width if resources.shared_edge_power else band
    return up, band * math.log2(1 + gain * resources.edge_power_w / (noise * spread))


@pytest.mark.parametrize("shared", [True, False])
def test_every_term(shared: bool) -> None:
    rng = np.random.default_rng(1)
    work, resources = _workload(rng), chain_resources(rng, 4, 20, shared_edge_power=shared)
    resources = replace(resources, device_power_w=np.array([0.1, 0.2, 0.3, 0.4]))
    points, beta, alpha = [1, 3, 5, 6], [2, 9, 1, 8], [0.5, 0.2, 0.3, 0.0]
    latency = chain_latency(work, resources, split_points=points, subcarriers=beta, shares=alpha)
    each = []
    for n, (s, b, a) in enumerate(zip(points, beta, alpha, strict=True)):
        up, down = _rates(resources, n, b)
        d1 = 2.7 * sum(work.forward_flops[:s]) / resources.device_flops[n]
        above = 2.7 * sum(work.forward_flops[s:])
        d3 = above / (a * resources.edge_flops) if above else 0.0
        uplink, downlink = work.smashed_bits[s - 1] / up, work.gradient_bits[s - 1] / down
        assert latency.device_s[n] == pytest.approx(d1, rel=1e-12)
        assert latency.uplink_s[n] == pytest.approx(uplink, rel=1e-12)
        assert latency.downlink_s[n] == pytest.approx(downlink, rel=1e-12)
        assert latency.edge_s[n] == pytest.approx(d3, rel=1e-12)
        each.append(d1 + uplink + downlink + d3)
    cloud = 4 * (5e6 + 2e6) / resources.cloud_bps
    assert latency.cloud_link_s == pytest.approx(cloud)
    assert float(latency.iteration_s) == pytest.approx(cloud + max(each))
    assert float(latency.epoch_s) == pytest.approx(7 * (cloud + max(each)))


def test_the_edges_power_is_spent_once() -> None:
    """Literally (14) sends to each of N devices with the whole of P_e; spread over the band it is the same for one device alone."""
    resources = chain_resources(np.random.default_rng(2), 4, 20)
    literal = replace(resources, shared_edge_power=False)
    beta = np.array([2, 9, 1, 8])
    (up, down), (same_up, more_down) = link_rates_bps(resources, beta), link_rates_bps(literal, beta)
    assert np.array_equal(up, same_up)
    assert (more_down > down).all()
    assert link_rates_bps(resources, [20] * 4)[1] == pytest.approx(link_rates_bps(literal, [20] * 4)[1])
    # Twice the subcarriers are twice the power.
    assert link_rates_bps(resources, 2 * beta)[1] == pytest.approx(2 * down)


def test_a_rate_rises_less_and_less() -> None:
    resources = chain_resources(np.random.default_rng(3), 4, 60, shared_edge_power=False)
    for rates in zip(*(link_rates_bps(resources, [beta] * 4) for beta in range(1, 60)), strict=True):
        rises = np.diff(np.stack(rates), axis=0)
        assert (rises > 0).all()
        assert (np.diff(rises, axis=0) < 0).all()


def test_without_a_subcarrier_or_a_share_there_is_no_end() -> None:
    """(21-3) and (21-1) as printed allow both."""
    work, resources = chain_workload(), chain_resources(np.random.default_rng(4), 2, 8)
    latency = chain_latency(work, resources, split_points=[2, 3], subcarriers=[0, 8], shares=[0.5, 0.0])
    assert latency.uplink_s[0] == latency.downlink_s[0] == math.inf
    assert latency.edge_s[1] == math.inf and math.isfinite(latency.link_s[1])
    assert float(latency.epoch_s) == math.inf


def test_draws_are_worked_out_at_once() -> None:
    rng = np.random.default_rng(5)
    work, draws = _workload(rng), chain_resources(rng, 3, 9, num_draws=4)
    decision = {"split_points": [1, 4, 6], "subcarriers": [2, 3, 4], "shares": [0.5, 0.5, 0.0]}
    together = chain_latency(work, draws, **decision)
    assert together.epoch_s.shape == (4,)
    for index in range(4):
        alone = chain_latency(work, draws.draw(index), **decision)
        assert np.array_equal(together.each_s[index], alone.each_s)
        assert together.epoch_s[index] == alone.epoch_s


def test_layers_that_change_hands() -> None:
    rng = np.random.default_rng(6)
    work, resources = _workload(rng), chain_resources(rng, 4, 20)
    beta = [2, 9, 1, 8]
    seconds = handover_s(work, resources, old=[3, 2, 4, 6], new=[3, 5, 1, 2], subcarriers=beta)
    up, down = zip(*(_rates(resources, n, b) for n, b in enumerate(beta)), strict=True)
    assert seconds[0] == 0
    assert seconds[1] == pytest.approx(sum(work.layer_bits[2:5]) / down[1])
    assert seconds[2] == pytest.approx(sum(work.layer_bits[1:4]) / up[2])
    # A device that joins has its whole encoder, and hands over what becomes the edge's.
    assert seconds[3] == pytest.approx(sum(work.layer_bits[2:]) / up[3])
    table = handover_table_s(work, resources, old=[3, 2, 4, 6], subcarriers=beta)
    assert table.shape == (4, LAYERS)
    assert table[np.arange(4), [2, 4, 0, 1]] == pytest.approx(seconds)
    equal = handover_table_s(work, resources, old=[3, 2, 4, 6])
    assert np.array_equal(equal, handover_table_s(work, resources, old=[3, 2, 4, 6], subcarriers=[5] * 4))


def test_a_round_waits_for_the_slowest_hand_over_once() -> None:
    work, resources = chain_workload(), chain_resources(np.random.default_rng(7), 2, 8)
    decision = {"split_points": [2, 3], "subcarriers": [4, 4], "shares": [0.5, 0.5]}
    epochs = [chain_latency(work, resources, **decision)] * 3
    whole = RoundLatency.of([1.0, 5.0], epochs)
    assert whole.total_s == pytest.approx(5.0 + 3 * float(epochs[0].epoch_s))


def test_shares_and_subcarriers_out_of_range() -> None:
    work, resources = chain_workload(), chain_resources(np.random.default_rng(8), 2, 8)
    with pytest.raises(ConfigError, match="`shares` is .*; expected numbers of 0 to 1"):
        chain_latency(work, resources, split_points=[2, 3], subcarriers=[4, 4], shares=[1.5, 0.5])
    with pytest.raises(ConfigError, match="`subcarriers` is .*; expected finite numbers of at least 0"):
        chain_latency(work, resources, split_points=[2, 3], subcarriers=[4, -1], shares=[0.5, 0.5])
