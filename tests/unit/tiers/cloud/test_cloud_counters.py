"""What a cloud's service counts while edges ask it for something."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_cloud_service import SLM, Edge, dialled, setup

from flwr_splitkd.errors import HandshakeError, ProtocolError
from flwr_splitkd.tiers.cloud import CloudService, open_cloud
from flwr_splitkd.tiers.cloud.counters import CloudCounters, CloudReading
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 10.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[CloudService]:
    one = open_cloud(setup(tmp_path))
    yield one
    one.close()


def after(service: CloudService, so: Callable[[CloudReading], object]) -> CloudReading:
    """The first reading for which it is so: what was answered is counted a moment later."""
    deadline_s = time.monotonic() + WAIT_S
    while not so(reading := service.reading()):
        assert time.monotonic() < deadline_s, reading
        time.sleep(0.005)
    return reading


def asked(reading: CloudReading, task: str = "qa") -> dict[tuple[str, str], int]:
    return {key: count for key, count in reading.tasks[task].requests.items() if count}


def test_seconds_in_the_queue_and_at_work() -> None:
    now_s = iter([10.0, 12.0, 15.0, 20.0, 20.0, 21.0])
    counters = CloudCounters(["qa"], clock=lambda: next(now_s))
    assert counters.timed("qa", "train", lambda: "done")() == "done"

    def broken() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        counters.timed("qa", "step", broken)()
    assert {stage: s for stage, s in counters.stages_s("qa").items() if s} == {"queue": 2.0, "train": 3.0, "step": 1.0}


def test_before_anybody_came(service: CloudService) -> None:
    reading = service.reading()
    assert reading.sessions == {
        ("qa", "north", "train"): 0,
        ("qa", "south", "train"): 0,
        ("own", "south", "train"): 0,
    }
    assert asked(reading) == {} and reading.faults == {} and reading.received_bytes == 0
    assert reading.tasks["qa"].loss is None


def test_an_edge_that_trains(service: CloudService) -> None:
    with dialled(service) as edge:
        edge.open()
        answers = [edge.ask(0, device=device).body for device in (0, 1)]
        assert after(service, lambda now: asked(now).get(("train", "answered")) == 2).tasks["qa"].waiting_gradients == 2
        edge.step(0, (0, 0), (1, 0))
        edge.ask(1)
        edge.step(1, (0, 1))
        edge.ask(2, mode=pb.MODE_EVALUATE)
        edge.weights()
        reading = after(service, lambda now: ("fetch", "answered") in asked(now))
        task = reading.tasks["qa"]
        assert asked(reading) == {
            ("open", "answered"): 1,
            ("train", "answered"): 3,
            ("step", "answered"): 2,
            ("answer", "answered"): 1,
            ("fetch", "answered"): 1,
        }
        assert (task.num_steps, task.next_step, task.uncommitted_steps, task.waiting_gradients) == (2, 2, 0, 0)
        assert task.num_commits == 2  # of the beginning, and after two steps
        assert task.num_tokens == 3 * answers[0].num_tokens and task.loss is not None
        assert all(
            task.stages_s[stage] > 0 for stage in ("queue", "open", "train", "step", "commit", "answer", "fetch")
        )
        assert reading.sessions["qa", "north", "train"] == 1 and reading.num_streams == 1
        assert reading.received_bytes > 4 * 2 * 5 * SLM * 4 and reading.sent_bytes > 0
        assert asked(reading, "own") == {} and reading.faults == {}
    gone = after(service, lambda now: not any(now.sessions.values()))
    assert gone.faults == {}, "an edge whose run is over leaves, and is no fault"


def test_a_session_that_only_reads(service: CloudService) -> None:
    with dialled(service, reads_only=True) as edge:
        edge.open(pb.TASK_START_CONTINUE)
        assert after(service, lambda now: ("open", "answered") in asked(now)).sessions["qa", "north", "ask"] == 1


def test_a_device_whose_data_are_not_finite(service: CloudService) -> None:
    with dialled(service) as edge:
        edge.open()
        broken = torch.full((2, 5, SLM), float("nan"))
        answer = edge.ask(0, hidden=broken).body
        assert answer.failure.code == pb.FAILURE_CODE_NON_FINITE
        reading = after(service, lambda now: ("train", "failed") in asked(now))
        assert reading.faults == {("request", "non_finite"): 1} and reading.tasks["qa"].num_tokens == 0
        edge.ask(1)
        after(service, lambda now: ("train", "answered") in asked(now))


def test_a_session_that_is_cut_off(service: CloudService) -> None:
    with dialled(service) as edge, pytest.raises(ProtocolError):
        edge.open()
        edge.step(7, (0, 0))
    reading = after(service, lambda now: now.faults)
    assert reading.faults == {("session", "protocol"): 1} and asked(reading)["step", "failed"] == 1


def test_an_edge_that_is_lost(service: CloudService) -> None:
    with dialled(service) as edge:
        edge.open()
        (session,) = service._open
        session._link.grace_period_s = 0.0  # as if it had not come back in time
        session._link.lost(session._link._stream, "the network is gone")
        reading = after(service, lambda now: not any(now.sessions.values()))
        assert after(service, lambda now: now.faults).faults == {("session", "lost"): 1}, reading


def test_who_is_refused(service: CloudService) -> None:
    with pytest.raises(HandshakeError), dialled(service, token=b"wrong"):
        pytest.fail("it was let in")
    assert service.reading().faults == {("stream", "handshake"): 1}


def test_another_process_of_an_edge(service: CloudService) -> None:
    with dialled(service) as first:
        first.open()
        with dialled(service) as second:
            Edge(second.link).open(pb.TASK_START_CONTINUE)
            reading = after(service, lambda now: now.sessions["qa", "north", "train"] == 1)
            assert reading.faults == {("stream", "restarted"): 1, ("session", "handshake"): 1}


def test_the_same_process_of_an_edge_again(service: CloudService) -> None:
    """Its connection was lost, and the cloud has not noticed yet: nothing was started again."""
    with dialled(service, link_id="one") as first:
        first.open()
        with dialled(service, link_id="one") as second:
            Edge(second.link).open(pb.TASK_START_CONTINUE)
            reading = after(service, lambda now: now.sessions["qa", "north", "train"] == 1)
            assert reading.faults == {("stream", "resumed"): 1, ("session", "handshake"): 1}
