"""Who decides on split points and shares: the paper's mechanisms, in a modelled cell or on what the run measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from flwr_splitkd.costs import (
    ChainCell,
    ChainWorkload,
    MeasuredCell,
    MemoryLimits,
    ModelledCell,
    ModelShape,
    named_shape,
)
from flwr_splitkd.models import build_skeleton, measured_shape
from flwr_splitkd.schedulers.chain import mechanism
from flwr_splitkd.strategies.chain import ChainPlan
from scct_app.config import AppConfig
from scct_app.module import encoder_adapters

_GIB = float(1 << 30)


def chain_plan(config: AppConfig, slm: Callable[[], nn.Module]) -> ChainPlan | None:
    """Return the plan of a run; None if its split points are fixed by hand."""
    if config.mechanism == "none":
        return None
    split_points, allocation = mechanism(
        config.mechanism,  # type: ignore[arg-type]  # one of the allowed choices
        split_point=config.mechanism_split_point,
        literal=config.paper_algorithms,
        seed=config.seed,
    )
    workload, cell = _measured(config, slm) if config.resources == "measured" else _modelled(config)
    return ChainPlan(
        workload=workload,
        cell=cell,
        split_points=split_points,
        allocation=allocation,
        limits=MemoryLimits(
            device_bytes=config.device_memory * _GIB or math.inf, edge_bytes=config.edge_memory * _GIB or math.inf
        ),
        seed=config.seed,
    )


def _modelled(config: AppConfig) -> tuple[ChainWorkload, ChainCell]:
    cell = ModelledCell(edge_flops=config.cell_edge_flops, num_subcarriers=config.cell_subcarriers, seed=config.seed)
    return _workload(config, named_shape(config.costed_slm)), cell


def _measured(config: AppConfig, slm: Callable[[], nn.Module]) -> tuple[ChainWorkload, ChainCell]:
    value_bytes = 2.0 if config.dtype == "bfloat16" else 4.0
    moments = 2 if config.optimizer_handover == "full" else 0
    workload = _workload(
        config, measured_shape(slm), value_bytes=value_bytes, weight_bytes=value_bytes, moments=moments
    )
    # Of encoders with adapters nothing else changes hands.
    parameters = list(build_skeleton(slm, encoder_adapters(config)).parameters())
    trained = sum(one.numel() for one in parameters if one.requires_grad) / sum(one.numel() for one in parameters)
    cell = MeasuredCell(device_flops=config.cell_device_flops, edge_flops=config.cell_edge_flops)
    return replace(workload, layer_bits=trained * workload.layer_bits), cell


def _workload(config: AppConfig, shape: ModelShape, **sizes: float) -> ChainWorkload:
    return ChainWorkload.from_shape(
        shape,
        batch_size=config.batch_size,
        positions=config.max_positions,
        answer_positions=config.max_answer_tokens,
        iterations_per_epoch=config.iterations,
        epochs=config.epochs,
        **sizes,  # type: ignore[arg-type]  # moments are whole
    )
