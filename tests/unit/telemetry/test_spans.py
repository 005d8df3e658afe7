"""Stages as spans: sums, what is kept, two machines' clocks, and the trace."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from flwr_splitkd.errors import ProtocolError
from flwr_splitkd.store import RunFolder
from flwr_splitkd.telemetry import spans as spans_module
from flwr_splitkd.telemetry.bottleneck import find_bottleneck
from flwr_splitkd.telemetry.spans import STAGES, LocatedSpan, Span, SpanRecorder, clock_offset_s, locate_spans
from flwr_splitkd.telemetry.trace import trace_events
from flwr_splitkd.tiers.spans import spans_from_wire, spans_to_wire
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


def test_seconds_are_summed_by_stage_and_kept_only_when_tracing() -> None:
    for tracing in (False, True):
        recorder = SpanRecorder(tracing=tracing, first_step=7)
        recorder.add("forward", 7, 0, 1.0, 0.5)
        recorder.add("forward", 8, 1, 2.0, 0.25)
        assert recorder.totals_s["forward"] == 0.75
        assert recorder.spans() == ([Span("forward", 7, 0, 1.0, 0.5), Span("forward", 8, 1, 2.0, 0.25)] * tracing)


def test_a_block_is_timed_though_it_fails() -> None:
    recorder = SpanRecorder(tracing=True)
    with pytest.raises(KeyError), recorder.span("student", 0):
        raise KeyError
    assert [span.stage for span in recorder.spans()] == ["student"]


def test_what_is_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_module, "MOST_SPANS", 2)
    recorder = SpanRecorder(tracing=True)
    for _ in range(5):
        recorder.add("wait", 0, 0, 0.0, 1.0)
    assert (len(recorder.spans()), recorder.num_dropped, recorder.totals_s["wait"]) == (2, 3, 5.0)


def test_two_threads_may_record() -> None:
    recorder = SpanRecorder(tracing=True)

    def record() -> None:
        for _ in range(2000):
            recorder.add("encode", 0, 0, 0.0, 1.0)

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.totals_s["encode"] == len(recorder.spans()) == 4000


def test_the_quickest_exchange_tells_how_far_the_clocks_are_apart() -> None:
    ahead_s = 100.0  # of the device's clock, the edge's
    slow = (1.0, 1.0 + 0.9 + ahead_s), (2.0 + ahead_s, 2.0 + 0.1)
    quick = (3.0, 3.0 + 0.02 + ahead_s), (3.1 + ahead_s, 3.1 + 0.02)
    sent, answered = zip(slow, quick, strict=True)
    assert clock_offset_s(sent, answered) == pytest.approx(ahead_s)
    assert clock_offset_s(sent[:1], answered[:1]) == pytest.approx(ahead_s + 0.4)  # half of how much the ways differ
    with pytest.raises(ValueError, match="0 exchanges"):
        clock_offset_s([], [])


def test_both_sides_on_one_clock() -> None:
    device = [Span("encode", 0, 0, 10.0, 0.5), Span("receive", 0, 0, 12.0, 0.5)]
    edge = [Span("receive", 0, 0, 110.2, 0.5), Span("encode", 0, 0, 111.3, 0.5)]
    located = locate_spans(edge, device, began_s=110.0)
    assert [(span.where, span.stage, round(span.start_s, 6)) for span in located] == [
        ("device", "encode", -0.25),
        ("edge", "receive", 0.2),
        ("edge", "encode", 1.3),
        ("device", "receive", 1.75),
    ]
    assert locate_spans(edge, device[:1], began_s=110.0) == locate_spans(edge, [], began_s=110.0)


def test_spans_travel() -> None:
    recorder = SpanRecorder(tracing=True, first_step=3)
    for number, stage in enumerate(STAGES):
        recorder.add(stage, 3 + number, number, 5.0, 0.5)
    message = pb.Spans.FromString(spans_to_wire(recorder).SerializeToString())
    assert spans_from_wire(message, first_step=3, longest_s=1.0) == recorder.spans()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"step": [0, 0]}, "columns of"),
        ({"stage": [99]}, "stage 99"),
        ({"stage": [0]}, "stage 0"),
        ({"start_s": [float("nan")]}, "start nan"),
        ({"duration_s": [-0.1]}, "duration -0.1"),
        ({"duration_s": [1.1]}, "0 to 1.000 s"),
    ],
)
def test_hostile_spans_are_refused(change: dict[str, list[float]], complaint: str) -> None:
    whole = {"stage": [1], "step": [0], "microbatch": [0], "start_s": [0.0], "duration_s": [0.5]}
    with pytest.raises(ProtocolError, match=complaint):
        spans_from_wire(pb.Spans(**{**whole, **change}), first_step=0, longest_s=1.0)


def test_a_trace_is_appended_to_and_opens_though_it_is_not_closed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    spans = (LocatedSpan("edge", "student", 4, 1, 0.25, 0.5), LocatedSpan("device", "receive", 4, 1, 0.75, 0.1))
    for pid, device in ((1, "cat"), (2, "dog")):
        folder.append_trace(trace_events(spans, device=device, pid=pid, began_s=2.0))
    events = json.loads((folder.path / "trace.json").read_text().rstrip().rstrip(",") + "]")
    work = [event for event in events if event["ph"] == "X"]
    assert [(event["pid"], event["tid"], event["ts"], event["dur"]) for event in work] == [
        (0, 1, 2.25e6, 0.5e6),
        (1, 3, 2.75e6, 0.1e6),
        (0, 1, 2.25e6, 0.5e6),
        (2, 3, 2.75e6, 0.1e6),
    ]
    assert work[0]["args"] == {"step": 4, "microbatch": 1, "device": "cat"}
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {0: "edge", 1: "device cat", 2: "device dog"}


def test_the_bottleneck_is_named_with_what_helps() -> None:
    found = find_bottleneck({"device": 2.0, "edge": 1.0, "uplink": 6.0, "downlink": 1.0}, duration_s=8.0)
    assert found.stage == "uplink"
    assert str(found).startswith("Of the turns' time: uplink 75%, device 25%")
    assert "`uplink_codec`" in str(found)
    with pytest.raises(ValueError, match="`duration_s` is 0"):
        find_bottleneck({"edge": 1.0}, duration_s=0)
