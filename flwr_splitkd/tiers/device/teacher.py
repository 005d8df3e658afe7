"""The teacher's first part, as a device runs it: a table look-up, or its first blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import build_skeleton, materialize
from flwr_splitkd.split import DeviceHalf, find_layout
from flwr_splitkd.split.surgery import accepts
from flwr_splitkd.tiers.units import TEACHER_UNIT, unpack
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["DeviceTeacher", "build_teacher"]


class DeviceTeacher(Protocol):
    """What the device sends for the teacher."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Float[Tensor, "batch ..."], dict[str, Tensor]]:
        """Return the outputs of the first part, and the tensors that go with them."""


def build_teacher(
    plan: pb.Begin,
    units: Mapping[str, Mapping[str, Tensor]],
    builder: Callable[[], nn.Module] | None,
    data_input: str,
    device: torch.device,
) -> DeviceTeacher | None:
    """Build what the edge's plan asks for, or None if it asks for nothing.

    Parameters
    ----------
    units
        The teacher's units, as `pack` made them.
    builder
        Builds the teacher; needed when the plan has a `teacher_cut`.
    data_input
        Name of the student's argument for the data.

    Raises
    ------
    ConfigError
        If the builder is missing.
    """
    if not units:
        return None
    if plan.teacher_cut == 0:
        return _TableLookup(units[TEACHER_UNIT]["weight/embedding"].to(device), plan.teacher_embedding_scale)
    if builder is None:
        raise ConfigError(
            f"`teacher_cut` is {plan.teacher_cut} on the edge and `teacher` is None here; expected what builds the teacher, "
            "because its first blocks run on the device. Pass SplitKDClient(teacher=...); its weights come from the edge."
        )
    weights, _ = unpack({name: tensor for unit in units.values() for name, tensor in unit.items()})
    return _FirstBlocks(plan, weights, builder, data_input, device)


class _TableLookup:
    def __init__(self, table: Float[Tensor, "vocab hidden"], scale: float) -> None:
        self._table, self._scale = table, scale

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings = torch.nn.functional.embedding(inputs["input_ids"], self._table)
        return embeddings * torch.tensor(self._scale, dtype=embeddings.dtype), {}


class _FirstBlocks:
    def __init__(
        self,
        plan: pb.Begin,
        weights: Mapping[str, Tensor],
        builder: Callable[[], nn.Module],
        data_input: str,
        device: torch.device,
    ) -> None:
        model = build_skeleton(builder).requires_grad_(False)
        layout = find_layout(model, list(plan.teacher_blocks) or None)
        self._half = DeviceHalf(model, plan.teacher_cut, layout)
        materialize(self._half, weights, device=device)
        self._half.eval()
        self._renamed = {data_input: layout.data_input}
        self._data_input = layout.data_input

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's inputs, under the teacher's names and without those that it does not know."""
        named = {self._renamed.get(name, name): tensor for name, tensor in inputs.items()}
        own = {n: t for n, t in named.items() if n == self._data_input or accepts(self._half.model, n)}
        return self._half(own), self._half.edge_inputs(own)
