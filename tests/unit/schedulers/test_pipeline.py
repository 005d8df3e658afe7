"""Micro-batches in flight: the least number that keeps the slowest stage at work, checked against a simulated pipeline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flwr_splitkd.schedulers.pipeline import pipeline_depth, pipelined_step_s


def simulate(
    forward_s: float,
    uplink_s: float,
    edge_s: float,
    downlink_s: float,
    backward_s: float,
    latency_s: float,
    M: int,
    depth: int,
) -> float:
    """Seconds of a step, event by event: each stage takes one micro-batch at a time, in order."""
    device = uplink = edge = downlink = 0.0
    back: list[float] = []

    def finish(index: int) -> None:
        nonlocal device
        device = max(device, back[index]) + backward_s

    for index in range(M):
        if index >= depth:
            finish(index - depth)
        device += forward_s
        uplink = max(uplink, device) + uplink_s
        edge = max(edge, uplink + latency_s / 2) + edge_s
        downlink = max(downlink, edge) + downlink_s
        back.append(downlink + latency_s / 2)
    for index in range(max(M - depth, 0), M):
        finish(index)
    return device


def test_the_chosen_depth_is_as_fast_as_any() -> None:
    generator = np.random.default_rng(0)
    worse = []
    for _ in range(300):
        device, uplink, edge, downlink = generator.uniform(0.05, 1.0, 4)
        latency, M = float(generator.uniform(0, 2)), int(generator.integers(2, 17))
        stages = (device / 3, uplink, edge, downlink, 2 * device / 3, latency, M)
        depth = pipeline_depth(
            device_s=device, uplink_s=uplink, edge_s=edge, downlink_s=downlink, latency_s=latency, num_microbatches=M
        )
        best = min(simulate(*stages, depth=one) for one in range(1, M + 1))
        worse.append(simulate(*stages, depth=depth) / best)
    assert np.quantile(worse, 0.9) < 1.01
    assert max(worse) < 1.2


def test_the_formula_is_near_the_simulation() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        device, uplink, edge, downlink, latency = generator.uniform(0.05, 1.0, 5)
        for M, depth in itertools.product((1, 2, 4, 8), (1, 2, 3, 8)):
            told = pipelined_step_s(
                device_s=device,
                uplink_s=uplink,
                edge_s=edge,
                downlink_s=downlink,
                latency_s=latency,
                num_microbatches=M,
                depth=depth,
            )
            seen = simulate(device / 3, uplink, edge, downlink, 2 * device / 3, latency, M, depth)
            assert seen == pytest.approx(told, rel=0.35 if depth > 1 else 1e-9)


def test_one_micro_batch_or_nothing_to_do_is_lock_step() -> None:
    stages = {"device_s": 1.0, "uplink_s": 1.0, "edge_s": 1.0, "downlink_s": 1.0, "latency_s": 9.0}
    assert pipeline_depth(**stages, num_microbatches=1) == 1
    assert pipeline_depth(**dict.fromkeys(stages, 0.0), num_microbatches=8) == 1
    assert pipeline_depth(**stages, num_microbatches=8) == 8
    assert pipeline_depth(**{**stages, "latency_s": 0.0}, num_microbatches=8) == 5
