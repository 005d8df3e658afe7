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
from flwr_splitkd.tiers.outbox import Parcel
from flwr_splitkd.tiers.sequences import keys_from_tensor, keys_to_tensor, select_rows, sequence_keys
from flwr_splitkd.tiers.units import TEACHER_UNIT, unpack
from flwr_splitkd.wire.codec import decode
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["DeviceTeacher", "TeacherFeed", "build_teacher"]


class DeviceTeacher(Protocol):
    """What the device sends for the teacher."""

    shares_inputs: bool
    """Whether the tensors that go with its outputs are the student's own."""

    def __call__(
        self, inputs: Mapping[str, Tensor], beside: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "batch ..."], Mapping[str, Tensor]]:
        """Return the outputs of the first part, and the tensors that go with them.

        `beside` are those that travel with the student's smashed data.
        """


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


class TeacherFeed:
    """What the device sends for the teacher, without the sequences of which the edge has kept the teacher's outcome.

    A sequence is named by a keyed hash of all its inputs, of the codec and of what the teacher is: another teacher, or a batch
    that is padded differently, has other names, and is computed anew.

    Parameters
    ----------
    teacher
        The device's part of the teacher.
    begin
        The edge's plan, with the names of what it has kept of this device.

    Raises
    ------
    ProtocolError
        If these are no names.
    """

    def __init__(self, teacher: DeviceTeacher, begin: WireMessage) -> None:
        plan: pb.Begin = begin.body
        self._teacher, self._codec, self._salt = teacher, plan.uplink_codec, bytes(plan.teacher_salt)
        self._caching = plan.teacher_cache
        self._known = set(keys_from_tensor(decode(begin.tensors["teacher_kept"]))) if self._caching else set()
        self._sent: dict[tuple[int, int], list[bytes]] = {}
        self._inputs_sent: set[tuple[int, int]] = set()

    def __call__(
        self, step: int, microbatch: int, inputs: Mapping[str, Tensor], beside: Mapping[str, Tensor]
    ) -> dict[str, Parcel]:
        """Return the tensors of a ``TeacherData``; parameters as of `DeviceTeacher`."""
        if not self._caching:
            return self._whole(step, microbatch, inputs, beside)
        keys = sequence_keys(inputs, self._salt, self._codec)
        lacking = [row for row, key in enumerate(keys) if key not in self._known]
        self._sent[step, microbatch] = [keys[row] for row in lacking]
        parcels = {"keys": Parcel(keys_to_tensor(keys)), "rows": Parcel(torch.tensor(lacking, dtype=torch.int64))}
        if len(lacking) == len(keys):
            return {**parcels, **self._whole(step, microbatch, inputs, beside)}
        if lacking:
            some = (select_rows(tensors, lacking, len(keys)) for tensors in (inputs, beside))
            return {**parcels, **self._parcels(*some)}
        return parcels

    def has_sent_inputs(self, step: int, microbatch: int) -> bool:
        """Whether what travels with the student's smashed data is on its way with the teacher's already."""
        return (step, microbatch) in self._inputs_sent

    def answered(self, step: int, microbatch: int, *, kept: bool) -> None:
        """The edge has answered a micro-batch; with `kept` it keeps what the teacher made of the sequences sent with it."""
        sent = self._sent.pop((step, microbatch), ())
        if kept:
            self._known.update(sent)

    def _whole(
        self, step: int, microbatch: int, inputs: Mapping[str, Tensor], beside: Mapping[str, Tensor]
    ) -> dict[str, Parcel]:
        if self._teacher.shares_inputs:
            self._inputs_sent = {sent for sent in self._inputs_sent if sent[0] >= step - 1} | {(step, microbatch)}
        return self._parcels(inputs, beside)

    def _parcels(self, inputs: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> dict[str, Parcel]:
        outputs, own = self._teacher(inputs, beside)
        return {
            "embeddings": Parcel(outputs, self._codec),
            **{f"inputs/{name}": Parcel(tensor) for name, tensor in own.items()},
        }


class _TableLookup:
    shares_inputs = True

    def __init__(self, table: Float[Tensor, "vocab hidden"], scale: float) -> None:
        self._table, self._scale = table, scale

    def __call__(
        self, inputs: Mapping[str, Tensor], beside: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        embeddings = torch.nn.functional.embedding(inputs["input_ids"], self._table)
        return embeddings * torch.tensor(self._scale, dtype=embeddings.dtype), beside


class _FirstBlocks:
    shares_inputs = False

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
    def __call__(
        self, inputs: Mapping[str, Tensor], beside: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The student's inputs, under the teacher's names and without those that it does not know."""
        named = {self._renamed.get(name, name): tensor for name, tensor in inputs.items()}
        own = {n: t for n, t in named.items() if n == self._data_input or accepts(self._half.model, n)}
        return self._half(own), self._half.edge_inputs(own)
