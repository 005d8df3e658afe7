"""The chain's workload from an encoder's shape, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import ChainWorkload, MemoryLimits, named_shape
from flwr_splitkd.costs.chain import check_split_points
from flwr_splitkd.errors import ConfigError
from small_shape import small_shape

SIZES: dict[str, Any] = {"batch_size": 4, "positions": 32, "iterations_per_epoch": 60, "epochs": 50}


def test_sizes_of_a_small_encoder() -> None:
    work = ChainWorkload.from_shape(small_shape(3), **SIZES, answer_positions=5)
    # 4 samples of 32 positions, 128 wide, 32 bits a value; labels are ids of 32 bits.
    activations, labels = 4 * 32 * 128 * 32, 4 * 5 * 32
    assert work.smashed_bits.tolist() == [activations + labels] * 3
    assert work.gradient_bits.tolist() == [activations] * 3
    assert work.cloud_up_bits == activations + labels
    assert work.cloud_down_bits == activations + 32
    assert work.layer_bits.tolist() == [32 * 2e5] * 3
    layer = 4 * (32 * 4e5 + 32**2 * 512)
    assert work.forward_flops.tolist() == [layer] * 3
    assert work.device_work_flops.tolist() == [3 * layer, 6 * layer, 9 * layer]
    assert work.edge_work_flops.tolist() == [6 * layer, 3 * layer, 0.0]
    # Weights, gradients and two moments; for each position projections' values, a third of the MLP's, and 6 of the width.
    kept = (1562.5 + (1562.5 - 256) / 3 + 6 * 128) * 4 * 32 * 4
    device = [16 * (128_000 + s * 2e5) + s * kept for s in (1, 2, 3)]
    assert work.device_memory_bytes.tolist() == pytest.approx(device)
    assert work.edge_memory_bytes.tolist() == pytest.approx([16 * s * 2e5 + s * kept for s in (2, 1, 0)])


def test_memory_of_layers_that_say_what_they_keep() -> None:
    """RoBERTa's dropout keeps masks and attention maps, which a constant for all architectures leaves out."""
    shape = named_shape("roberta-large")
    assert shape.block_kept_per_token is not None and shape.block_kept_per_pair is not None
    work = ChainWorkload.from_shape(shape, **SIZES)
    each = 4 * 32 * 4 * (shape.block_kept_per_token + 32 * shape.block_kept_per_pair)
    weights = 16 * shape.block_parameters
    assert np.diff(work.device_memory_bytes).tolist() == pytest.approx((weights + each)[1:].tolist())
    assert work.edge_memory_bytes[0] == pytest.approx((weights + each)[1:].sum())
    assert work.edge_memory_bytes[-1] == 0


def test_the_papers_own_sizes() -> None:
    work = ChainWorkload.from_shape(small_shape(3), **SIZES, answer_positions=5, literal=True)
    sample = 32 * 128 * 32
    assert work.smashed_bits.tolist() == [4 * sample] * 3
    assert work.gradient_bits.tolist() == [sample] * 3  # (15) leaves the batch out
    assert work.cloud_down_bits == 32  # (17): the loss value alone
    assert work.cloud_up_bits == 4 * (2 * sample + 5 * 128 * 32)  # m_n, x_n and y_n, embedded
    assert work.device_memory_bytes.tolist() == [4 * s * 2e5 for s in (1, 2, 3)]  # (21-6)
    assert work.edge_memory_bytes.tolist() == [4 * s * 2e5 for s in (2, 1, 0)]  # (21-7)


def test_flops_and_parameters_of_the_papers_encoder() -> None:
    """(1) and (2) of a layer of RoBERTa-large; (1) leaves out the biases of the projections."""
    work = ChainWorkload.from_shape(named_shape("roberta-large"), **SIZES)
    width, positions = 1024, SIZES["positions"]
    assert work.num_layers == 24
    assert work.forward_flops[0] == 4 * (24 * positions * width**2 + 4 * positions**2 * width)
    assert work.layer_bits[0] / 32 - (12 * width**2 + 4 * width) == 9 * width


def test_what_may_travel_and_stay_besides() -> None:
    plain = ChainWorkload.from_shape(small_shape(3), **SIZES)
    reference = ChainWorkload.from_shape(small_shape(3), **SIZES, reference_loss=True)
    assert (reference.smashed_bits - plain.smashed_bits).tolist() == [4 * 32 * 32] * 3
    assert reference.cloud_up_bits - plain.cloud_up_bits == 4 * 32 * 32
    moments = ChainWorkload.from_shape(small_shape(3), **SIZES, moments=2)
    assert (moments.layer_bits / plain.layer_bits).tolist() == [3.0] * 3
    halves = ChainWorkload.from_shape(small_shape(3), **SIZES, value_bytes=2, answer_positions=0)
    assert halves.smashed_bits[0] == 4 * 32 * 128 * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward_flops": []}, "`forward_flops` has shape (0,); expected one value for each layer"),
        ({"smashed_bits": [1.0, 2.0]}, "`smashed_bits` has shape (2,); expected (6,), one value for each layer"),
        ({"layer_bits": -1.0}, "`layer_bits` holds -1; expected finite numbers of at least 0"),
        ({"epochs": 0}, "`epochs` is 0; expected a finite number of at least 1"),
        ({"backward_ratio": float("nan")}, "`backward_ratio` is nan; expected a finite number of at least 0"),
    ],
)
def test_workloads_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        chain_workload(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device_flops": 1e12}, "`device_flops` has shape (); expected one value for each device"),
        ({"channel_gain": [1.0] * 2}, "`channel_gain` has shape (2,); expected (3,), one value for each device"),
        ({"channel_gain": [1.0, 0.0, 1.0]}, "`channel_gain` holds 0; expected finite numbers of more than 0"),
        ({"edge_flops": 0.0}, "`edge_flops` is 0.0; expected a finite number of more than 0"),
        ({"num_subcarriers": 0}, "`num_subcarriers` is 0; expected a finite number of at least 1"),
    ],
)
def test_resources_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(chain_resources(np.random.default_rng(0), 3, 8), **changes)


def test_draws_of_resources() -> None:
    draws = chain_resources(np.random.default_rng(0), 3, 8, num_draws=4)
    assert (draws.num_devices, draws.num_draws) == (3, 4)
    one = draws.draw(2)
    assert (one.num_devices, one.num_draws) == (3, 1)
    assert one.device_flops.tolist() == draws.device_flops[2].tolist()
    assert one.channel_gain.tolist() == draws.channel_gain[2].tolist()
    assert one.as_draws().device_flops.shape == (1, 3)
    assert draws.as_draws() is draws


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([1, 2], "`split_points` has shape (2,); expected one for each of 3 devices"),
        ([1, 0, 2], "`split_points` holds 0; expected whole numbers of 1..6, since there are 6 layers"),
        ([1, 7, 2], "`split_points` holds 7; expected whole numbers of 1..6"),
        ([1, 2.5, 2], "`split_points` holds 2.5; expected whole numbers of 1..6"),
    ],
)
def test_split_points_out_of_range(points: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_split_points(points, 6, 3)


def test_memory_is_not_negative() -> None:
    assert MemoryLimits().edge_bytes == np.inf
    with pytest.raises(ConfigError, match=re.escape("`device_bytes` is [ 1. -1.]; expected at least 0 bytes")):
        MemoryLimits(device_bytes=np.array([1.0, -1.0]))
    with pytest.raises(ConfigError, match="`edge_bytes` is nan"):
        MemoryLimits(edge_bytes=float("nan"))
