"""Devices, radio and work for tests of the chain's decisions."""

from __future__ import annotations

from typing import Any

import numpy as np

from flwr_splitkd.costs import ChainResources, ChainWorkload


def chain_workload(num_layers: int = 6, **changes: Any) -> ChainWorkload:
    """Layers that are all alike: 3e10 FLOPs for a batch, 8 Mbit of smashed data."""
    left = num_layers - np.arange(1, num_layers + 1)
    fields: dict[str, Any] = {
        "forward_flops": np.full(num_layers, 3e10),
        "smashed_bits": 8e6,
        "gradient_bits": 8e6,
        "layer_bits": 4e8,
        "device_memory_bytes": 1e8 * np.arange(1, num_layers + 1),
        "edge_memory_bytes": 1e8 * left,
        "cloud_up_bits": 8e6,
        "cloud_down_bits": 8e6,
        "iterations_per_epoch": 60,
        "epochs": 60,
    }
    return ChainWorkload(**(fields | changes))


def chain_resources(
    rng: np.random.Generator,
    num_devices: int,
    num_subcarriers: int,
    *,
    num_draws: int | None = None,
    edge_flops: float | None = None,
    spread: float = 0.5,
    shared_edge_power: bool = True,
) -> ChainResources:
    """Devices of 0.1 to 10 TFLOPS at 60 to 120 dB, both of which change from draw to draw."""
    shape = (num_devices,) if num_draws is None else (num_draws, num_devices)
    speeds, losses_db = 10 ** rng.uniform(11, 13, num_devices), rng.uniform(60, 120, num_devices)
    return ChainResources(
        device_flops=speeds * rng.uniform(1 - spread, 1 + spread, shape),
        channel_gain=10 ** (-(losses_db + rng.normal(0, 4, shape)) / 10),
        edge_flops=float(10 ** rng.uniform(11.5, 14.5)) if edge_flops is None else edge_flops,
        num_subcarriers=num_subcarriers,
        subcarrier_hz=2e6,
        cloud_bps=1e9,
        edge_power_w=100.0,
        shared_edge_power=shared_edge_power,
    )
