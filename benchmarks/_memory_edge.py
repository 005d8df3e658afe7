"""An edge that keeps nothing: the other side of a turn for a device whose memory is measured.

It speaks the protocol of the data plane on a real gRPC stream, plans a turn, sends every unit that the device lacks (with moments
if asked to), answers each Forward with a gradient, counts what is handed in and drops it chunk by chunk. So a device with eight
blocks of a 1B model can be measured on a machine that has no room for the edge beside it. It computes no loss: the gradients are
noise, which no byte of the device's memory depends on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import torch
from _memory_models import TEACHER_WIDTH, VOCABULARY, build_student, state_like
from torch import Tensor, nn

from flwr_splitkd.models import build_skeleton
from flwr_splitkd.split import find_layout
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.tiers.units import FROZEN, TEACHER_UNIT, pack, versioned_units
from flwr_splitkd.wire.channel import channel_options
from flwr_splitkd.wire.codec import encode
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from flwr_splitkd.wire.v1 import dataplane_pb2_grpc as pb_grpc

__all__ = ["HandIn", "serve_turn"]

_CHUNK_BYTES = Limits().chunk_bytes


@dataclass(kw_only=True)
class HandIn:
    """What a device was sent, and what it sent back.

    Attributes
    ----------
    sent_bytes, received_bytes
        Payload of the layers handed over and handed in.
    steps
        Optimiser steps that it reported.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    steps: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def serve_turn(
    *,
    cut: int,
    moments: bool,
    num_microbatches: int = 1,
    pipeline_depth: int = 1,
    student: Callable[[], nn.Module] | None = None,
    teacher_embedding: tuple[int, int] | None = None,
) -> Iterator[tuple[str, HandIn]]:
    """Listen for one device on a free port of the loopback interface; yield the address and what came of the turn.

    Parameters
    ----------
    cut
        Blocks on the device.
    moments
        Whether another device has trained its layers before, so that AdamW's moments travel with them.
    num_microbatches, pipeline_depth
        Parts of a batch, and how many of them may be without an answer.
    student
        Builds it; Llama-3.2-1B's shape when None.
    teacher_embedding
        Rows and width of the teacher's embedding; Llama-3.2-3B's when None.
    """
    embedding = teacher_embedding or (VOCABULARY, TEACHER_WIDTH)
    plan = _plan(student or build_student, embedding, cut, moments, num_microbatches, pipeline_depth)
    handed = HandIn()
    limits = Limits()
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=channel_options(limits))
    pb_grpc.add_DataPlaneServicer_to_server(_Edge(plan, handed), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", handed
    finally:
        server.stop(grace=None).wait()


def _plan(
    student: Callable[[], nn.Module],
    teacher_embedding: tuple[int, int],
    cut: int,
    with_moments: bool,
    num_microbatches: int,
    pipeline_depth: int,
) -> tuple[pb.Begin, dict[str, Tensor]]:
    """Begin as an edge sends it, and the tensors of its units."""
    skeleton = build_skeleton(student)
    layout = find_layout(skeleton)
    state = state_like(skeleton.state_dict())
    names = versioned_units(skeleton, layout)
    own = [name for unit in layout.units(cut)[0] for name in (unit, unit + FROZEN) if name in names]
    frozen = {name for name, parameter in skeleton.named_parameters() if not parameter.requires_grad}
    begin = pb.Begin(
        mode=pb.MODE_TRAIN,
        task=pb.TASK_CAUSAL_LM,
        cut=cut,
        local_epochs=1,
        run="memory",
        uplink_codec=pb.CODEC_NONE,
        downlink_codec=pb.CODEC_NONE,
        optimizer=OptimizerSettings().to_wire(),
        optimizer_handover=pb.OPTIMIZER_HANDOVER_FULL,
        frozen=[name for unit in own for name in names[unit] if name in frozen],
        teacher_embedding_scale=1.0,
        num_microbatches=num_microbatches,
        pipeline_depth=pipeline_depth,
        ignore_index=-100,
    )
    step, squares = torch.tensor(1.0), {}
    tensors: dict[str, Tensor] = {}
    for unit in own:
        weights = {name: state[name] for name in names[unit]}
        moments: dict[str, dict[str, Tensor]] = {}
        if with_moments and not unit.endswith(FROZEN):
            for name, weight in weights.items():
                square = squares.setdefault(tuple(weight.shape), torch.full_like(weight, 1e-4))
                moments[name] = {"step": step, "exp_avg": weight, "exp_avg_sq": square}
        begin.units.add(unit=unit, version="0")
        tensors.update({f"{unit}|{name}": tensor for name, tensor in pack(weights, moments).items()})
    begin.units.add(unit=TEACHER_UNIT, version="0")
    tensors[f"{TEACHER_UNIT}|weight/embedding"] = torch.full(teacher_embedding, 0.01)
    return begin, tensors


class _Edge(pb_grpc.DataPlaneServicer):  # type: ignore[misc]
    """One turn, then nothing more."""

    def __init__(self, plan: tuple[pb.Begin, dict[str, Tensor]], handed: HandIn) -> None:
        self._begin, self._tensors = plan
        self._handed = handed
        self._sequence = self._received = 0

    def Turn(self, frames: Iterator[pb.UplinkFrame], context: grpc.ServicerContext) -> Iterator[pb.DownlinkFrame]:
        """Serve it, lock-step."""
        next(frames)  # Hello: whoever comes is let in
        yield from self._frames(pb.Welcome(protocol_version=PROTOCOL_VERSION, resume_token=b"0" * 16), {})
        tensors = {name: encode(tensor) for name, tensor in self._tensors.items()}
        self._handed.sent_bytes = sum(len(tensor.payload) for tensor in tensors.values())
        yield from self._frames(self._begin, tensors)
        for body, shapes in self._messages(frames):
            if isinstance(body, pb.Forward):
                gradient = encode(torch.full(shapes["smashed"], 1e-4))
                answer = pb.Backward(step=body.step, microbatch=body.microbatch)
                if body.microbatch + 1 == body.num_microbatches:
                    answer.update.CopyFrom(pb.Update(step=body.step, learning_rate=1e-5, clip_coefficient=1.0))
                yield from self._frames(answer, {"gradient": gradient})
            elif isinstance(body, pb.TurnDone):
                self._handed.steps = body.num_steps
                self._handed.received_bytes = sum(header.total_bytes for header in body.tensors)
                units = [pb.UnitVersion(unit=item.unit, version="1") for item in self._begin.units]
                yield from self._frames(pb.TurnResult(commit_id="1", units=units), {})
            elif not isinstance(body, pb.TeacherData):
                self._handed.failures.append(str(body)[:500])
                return

    def _messages(self, frames: Iterator[pb.UplinkFrame]) -> Iterator[tuple[Any, dict[str, tuple[int, ...]]]]:
        """Every message when its last chunk has come, with the shapes of its tensors; the chunks themselves are dropped."""
        body, missing = None, 0
        for frame in frames:
            if kind := frame.WhichOneof("body"):
                body = getattr(frame, kind)
                missing = sum(header.num_chunks for header in getattr(body, "tensors", []))
            missing -= len(frame.chunks)
            if frame.last:
                return
            if body is not None and missing == 0:
                self._received += 1
                yield body, {header.name: tuple(header.shape) for header in getattr(body, "tensors", [])}
                body = None

    def _frames(self, body: Any, tensors: dict[str, EncodedTensor]) -> Iterator[pb.DownlinkFrame]:
        """A message in frames of one chunk each, after one with the body alone."""
        first = pb.DownlinkFrame()
        slot = getattr(first, _FIELDS[body.DESCRIPTOR.name])
        slot.CopyFrom(body)
        for name, tensor in tensors.items():
            total = len(tensor.payload)
            slot.tensors.add(
                name=name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                codec=tensor.codec,
                total_bytes=total,
                num_chunks=-(-total // _CHUNK_BYTES),
            )
        yield self._numbered(first)
        for position, tensor in enumerate(tensors.values()):
            payload = memoryview(tensor.payload)
            for index, start in enumerate(range(0, len(payload), _CHUNK_BYTES)):
                chunk = bytes(payload[start : start + _CHUNK_BYTES])
                frame = pb.DownlinkFrame()
                frame.chunks.add(tensor=position, index=index, data=chunk, crc32=zlib.crc32(chunk))
                yield self._numbered(frame)

    def _numbered(self, frame: pb.DownlinkFrame) -> pb.DownlinkFrame:
        frame.sequence, frame.acknowledged = self._sequence, self._received
        self._sequence += 1
        return frame


_FIELDS = {item.message_type.name: item.name for item in pb.DownlinkFrame.DESCRIPTOR.oneofs_by_name["body"].fields}
