"""What the planner needs to know of a run: sizes of its models and of what travels."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from flwr_splitkd.costs import RUNTIME_BYTES, ModelShape, Workload
from flwr_splitkd.models import measured_shape
from flwr_splitkd.strategies.planner import Planner, PlannerBasis
from flwr_splitkd.tiers.edge import EdgeService, EdgeSetup

__all__ = ["planner_basis"]


def planner_basis(planner: Planner, setup: EdgeSetup, edge: EdgeService, *, cluster_size: int = 1) -> PlannerBasis:
    """Measure the run's models, unless the planner was given their shapes.

    Raises
    ------
    ConfigError
        If a model cannot be measured; the message says how to describe it instead.
    """
    model = edge.student.model
    student = planner.student or _measured(model, setup.blocks, "the student")
    teacher: ModelShape | None = None
    if edge.teacher is not None:
        teacher = planner.teacher or _measured(edge.teacher, setup.teacher_blocks, "the teacher")
    item_bytes = float(next(model.parameters()).element_size())
    own_bytes = np.array(edge.student.handover_bytes(), dtype=np.float64)
    if planner.student is not None and planner.student.num_blocks == len(own_bytes) + 1:
        # Described as another model than the one that trains: then its layers travel.
        below = np.cumsum(student.block_parameters)[:-1] + (
            student.embedding_parameters if setup.train_embeddings else 0
        )
        own_bytes = below * item_bytes * (1 + (_moments(setup) if setup.optimizer_handover == "full" else 0))
    return PlannerBasis(
        student=student,
        teacher=teacher,
        workload=Workload(
            batch_size=1,
            sequence_length=planner.sequence_length,
            num_batches=1,
            activation_bytes=item_bytes,
            weight_bytes=item_bytes,
            moments=_moments(setup) if setup.optimizer_handover == "full" else 0,
            kept_moments=_moments(setup),
            train_embeddings=setup.train_embeddings,
            trained_share=_trained_share(edge),
            gradient_accumulation_steps=setup.turn.gradient_accumulation_steps,
            num_microbatches=setup.turn.num_microbatches,
            # Chosen by what turns take, it may become as many as there are.
            pipeline_depth=setup.turn.pipeline_depth or setup.turn.step_microbatches,
            joined_devices=cluster_size if setup.turn.batch_devices else 1,
            runtime_bytes=RUNTIME_BYTES,
        ),
        handover_bytes=own_bytes,
        max_batches=setup.turn.max_batches,
        codec="none" if setup.turn.uplink_codec == "auto" else setup.turn.uplink_codec,
        clock_is_set=edge.clock is not None and edge.clock.works,
    )


def _measured(model: nn.Module, blocks: Sequence[str], name: str) -> ModelShape:
    def build() -> nn.Module:
        # Another one of the same kind: this one is at work, and may have taken minutes to load.
        return type(model)(copy.deepcopy(model.config)) if isinstance(model, PreTrainedModel) else model

    return measured_shape(build, blocks=blocks or None, name=name)


def _moments(setup: EdgeSetup) -> int:
    return len(setup.optimizer.moment_keys - {"step"})


def _trained_share(edge: EdgeService) -> float:
    """Share of the blocks' weights that train: less than all with adapters."""
    layout = edge.student.layout
    of_blocks = [(n, p) for n, p in edge.student.model.named_parameters() if layout.block_of(n) is not None]
    trained = sum(parameter.numel() for _, parameter in of_blocks if parameter.requires_grad)
    return trained / max(sum(parameter.numel() for _, parameter in of_blocks), 1)
