"""Spans on the wire."""

from __future__ import annotations

import math

from flwr_splitkd.errors import ProtocolError
from flwr_splitkd.telemetry.spans import MOST_SPANS, STAGES, Span, SpanRecorder
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["spans_from_wire", "spans_to_wire"]

_CODES = {stage: pb.Stage.Value(f"STAGE_{stage.upper()}") for stage in STAGES}
_STAGES = {code: stage for stage, code in _CODES.items()}


def spans_to_wire(recorder: SpanRecorder) -> pb.Spans:
    """Every span of a recorder as a message."""
    spans = recorder.spans()
    return pb.Spans(
        stage=[_CODES[span.stage] for span in spans],
        step=[span.step - recorder.first_step for span in spans],
        microbatch=[span.microbatch for span in spans],
        start_s=[span.start_s for span in spans],
        duration_s=[span.duration_s for span in spans],
        num_dropped=recorder.num_dropped,
    )


def spans_from_wire(message: pb.Spans, *, first_step: int, longest_s: float) -> list[Span]:
    """A device's spans, by its own clock.

    Parameters
    ----------
    first_step
        The turn's.
    longest_s
        No span of the turn is longer.

    Raises
    ------
    ProtocolError
        If the columns differ in length, there are too many, or a value is out of range.
    """
    columns = (message.stage, message.step, message.microbatch, message.start_s, message.duration_s)
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or max(lengths) > MOST_SPANS:
        raise ProtocolError(
            f"Spans have columns of {sorted(lengths)} entries; expected equal lengths of at most {MOST_SPANS}."
        )
    spans = []
    for stage, step, microbatch, start_s, duration_s in zip(*columns, strict=True):
        if stage not in _STAGES or not math.isfinite(start_s) or not 0 <= duration_s <= longest_s:
            raise ProtocolError(
                f"A span has stage {stage}, start {start_s} s and duration {duration_s} s; expected a known stage and 0 to "
                f"{longest_s:.3f} s."
            )
        spans.append(Span(_STAGES[stage], first_step + step, microbatch, start_s, duration_s))
    return spans
