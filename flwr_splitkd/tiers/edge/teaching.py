"""The teacher's part in a turn: it computes when its data come, which may be a step ahead, or remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flwr_splitkd.errors import ProtocolError, SplitKDError
from flwr_splitkd.telemetry.spans import SpanRecorder
from flwr_splitkd.tiers.edge.teacher import EdgeTeacher, TeacherData
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.sequences import keys_from_tensor, keys_to_tensor
from flwr_splitkd.tiers.units import decode_all, decode_one, require_finite
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Lesson", "Teaching"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teacher made of a micro-batch.

    Parameters
    ----------
    outputs
        As of `EdgeTeacher.outputs`.
    inputs
        What the student's half needs beside the smashed data, where it came with the teacher's; empty else.
    kept
        Whether the sequences that were sent are in the cache until the turn's end.
    """

    outputs: Float[Tensor, ...]
    inputs: Mapping[str, Tensor]
    kept: bool


class Teaching:
    """The teacher in one turn of one device.

    Parameters
    ----------
    teacher
        Frozen.
    cache
        Where its outcomes are kept; None to keep none.
    device
        Name of the device: what it sent is used for itself alone.
    most_microbatches
        In a step.
    spans
        Told of each stage.
    """

    def __init__(
        self,
        teacher: EdgeTeacher,
        cache: TeacherCache | None,
        *,
        device: str,
        first_step: int,
        most_microbatches: int,
        spans: SpanRecorder,
    ) -> None:
        self._teacher, self._cache, self._device, self._spans = teacher, cache, device, spans
        self._most_microbatches = most_microbatches
        self._last = first_step - 1, most_microbatches
        self._ahead: dict[tuple[int, int], Lesson] = {}

    def into(self, begin: pb.Begin) -> dict[str, Tensor]:
        """Tell the device what it sends; return the tensors that go with it."""
        self._teacher.into(begin)
        if self._cache is None:
            return {}
        begin.teacher_cache, begin.teacher_salt = True, self._cache.salt
        return {"teacher_kept": keys_to_tensor(self._cache.pin(self._device))}

    def end(self) -> None:
        """The turn is over: nothing is promised any more."""
        self._ahead.clear()
        if self._cache is not None:
            self._cache.unpin(self._device)

    def take(self, step: int, microbatch: int) -> Lesson:
        """What the teacher made of a micro-batch, once.

        Raises
        ------
        ProtocolError
            If its data have not come.
        """
        lesson = self._ahead.pop((step, microbatch), None)
        if lesson is None:
            raise ProtocolError(
                f"The device sent step {step}, micro-batch {microbatch} without TeacherData before it; expected what the plan "
                "asked for."
            )
        return lesson

    def teach(self, message: WireMessage, current_step: int) -> None:
        """Let the teacher work on a ``TeacherData``.

        Raises
        ------
        ProtocolError
            If it is out of order, too far ahead, or does not go through the teacher.
        NonFiniteError
            If it holds NaN or infinity.
        """
        step, microbatch = message.body.step, message.body.microbatch
        self._check_order(step, microbatch, current_step)
        if self._cache is None:
            data = self._data(message)
            with self._spans.span("teacher", step, microbatch):
                lesson = Lesson(self._outputs(data), self._inputs(data), kept=False)
        else:
            lesson = self._remember(message, self._cache)
        self._ahead[step, microbatch] = lesson

    def rehearse(self, message: WireMessage) -> bool:
        """Let the teacher work on a ``TeacherData`` before the turn; return whether all of it is kept, without dropping another's.

        Raises
        ------
        ProtocolError
            If it is out of order, or does not go through the teacher.
        NonFiniteError
            If it holds NaN or infinity.
        """
        step, cache = message.body.step, self._cache
        self._check_order(step, message.body.microbatch, step)
        keys, rows = _named_rows(message)
        if cache is None or not rows:
            return False
        outputs = self._outputs(self._data(message))
        _check_count(outputs, rows)
        return all(
            [cache.put(self._device, keys[row], out, evict=False) for row, out in zip(rows, outputs, strict=True)]
        )

    def _remember(self, message: WireMessage, cache: TeacherCache) -> Lesson:
        """Compute what was sent, keep it, and put it together with what was kept before."""
        step, microbatch = message.body.step, message.body.microbatch
        keys, rows = _named_rows(message)
        by_row: dict[int, Tensor] = {}
        inputs: Mapping[str, Tensor] = {}
        kept = bool(rows)
        if rows:
            data = self._data(message)
            with self._spans.span("teacher", step, microbatch):
                outputs = self._outputs(data)
            _check_count(outputs, rows)
            by_row = dict(zip(rows, outputs, strict=True))
            kept = all([cache.put(self._device, keys[row], output) for row, output in by_row.items()])
            if len(rows) == len(keys):
                inputs = self._inputs(data)
                if rows == list(range(len(keys))):
                    return Lesson(outputs, inputs, kept)
        for row in range(len(keys)):
            if row not in by_row:
                by_row[row] = cache.get(self._device, keys[row]).to(self._teacher.device)
        shapes = {tuple(outcome.shape) for outcome in by_row.values()}
        if len(shapes) > 1:
            raise ProtocolError(
                f"TeacherData names sequences whose outcomes have the shapes {shapes}; expected one shape."
            )
        return Lesson(torch.stack([by_row[row] for row in range(len(keys))]), inputs, kept)

    def _data(self, message: WireMessage) -> TeacherData:
        with self._spans.span("decode", message.body.step, message.body.microbatch):
            embeddings = decode_one(message, "embeddings")
            inputs = decode_all(message.tensors, "inputs/")
            require_finite(
                embeddings,
                f"The teacher embeddings of step {message.body.step}",
                "The turn is undone; check this device's data and hardware.",
            )
            placed = {name: tensor.to(self._teacher.device) for name, tensor in inputs.items()}
            return TeacherData(embeddings, placed)

    def _inputs(self, data: TeacherData) -> Mapping[str, Tensor]:
        return data.inputs if self._teacher.cut == 0 else {}

    def _outputs(self, data: TeacherData) -> Tensor:
        try:
            return self._teacher.outputs(data)
        except SplitKDError:
            raise
        except Exception as error:  # torch's own words for shapes and kinds that do not go together
            shapes = {name: tuple(tensor.shape) for name, tensor in data.inputs.items()}
            raise ProtocolError(
                f"Teacher embeddings of shape {tuple(data.embeddings.shape)} with {shapes} do not go through the teacher: "
                f"{type(error).__name__}: {error}. Check the batches of this device."
            ) from error

    def _check_order(self, step: int, microbatch: int, current_step: int) -> None:
        """Each micro-batch once, in order, at most a step ahead."""
        follows = (step, microbatch) == (self._last[0], self._last[1] + 1)
        begins = microbatch == 0 and step == self._last[0] + 1
        if not (follows or begins) or step > current_step + 1 or microbatch >= self._most_microbatches:
            raise ProtocolError(
                f"TeacherData is of step {step}, micro-batch {microbatch}, after {self._last} in step {current_step}; expected "
                f"the next one, at most a step ahead, of at most {self._most_microbatches} micro-batches."
            )
        self._last = step, microbatch


def _named_rows(message: WireMessage) -> tuple[list[bytes], list[int]]:
    """The names of a micro-batch's sequences, and the positions of those that were sent."""
    keys, rows = keys_from_tensor(decode_one(message, "keys")), _rows(decode_one(message, "rows"))
    if not keys or any(not 0 <= row < len(keys) for row in rows) or len(set(rows)) < len(rows):
        raise ProtocolError(
            f"TeacherData names {len(keys)} sequences and sends those at {rows[:8]}; expected positions within, each once."
        )
    return keys, rows


def _check_count(outputs: Tensor, rows: list[int]) -> None:
    if len(outputs) != len(rows):
        raise ProtocolError(
            f"The teacher made {len(outputs)} outputs of what was sent for {len(rows)} sequences; expected as many."
        )


def _rows(tensor: Tensor) -> list[int]:
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise ProtocolError(
            f"`rows` of TeacherData are {tensor.dtype} of shape {tuple(tensor.shape)}; expected torch.int64 of one dimension."
        )
    return tensor.tolist()
