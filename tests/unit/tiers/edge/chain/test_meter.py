"""What a device's iterations took: counted on the edge, and in the device's own word, which may be anything."""

from __future__ import annotations

import math

import pytest

from flwr_splitkd.tiers.edge.chain import Meter, Reading
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def times(compute_s: float, receive_s: float = 0.0) -> pb.DeviceTimes:
    return pb.DeviceTimes(compute_s=compute_s, receive_s=receive_s)


def batch(num_bytes: int, seconds: float) -> WireMessage:
    tensor = EncodedTensor(pb.DTYPE_UINT8, (num_bytes,), pb.CODEC_NONE, bytes(num_bytes))
    return WireMessage(pb.Forward(), {"smashed": tensor}, receive_s=seconds)


def test_sums_from_the_first_iteration_on() -> None:
    clock = Clock()
    meter = Meter(clock)
    clock.now_s += 5
    meter.start()
    clock.now_s += 4
    meter.came(batch(300, 0.5))
    meter.note(times(0.0), num_steps=0, num_forwards=1)

    def job() -> str:
        clock.now_s += 0.75
        return "done"

    counted = meter.timed(job)
    clock.now_s += 0.25  # another device's turn
    assert counted() == "done"
    meter.sent(40)
    meter.came(batch(300, 0.5))
    meter.note(times(3.0, 0.5), num_steps=1, num_forwards=2)
    assert meter.reading == Reading(
        num_steps=1,
        num_forwards=2,
        device_s=3.0,
        edge_s=0.75,
        edge_wait_s=0.25,
        uplink_s=1.0,
        uplink_bytes=600,
        downlink_s=0.5,
        downlink_bytes=40,
    )


def test_a_job_that_fails_took_its_time_as_well() -> None:
    clock = Clock()
    meter = Meter(clock)

    def job() -> None:
        clock.now_s += 2
        raise ValueError

    with pytest.raises(ValueError):
        meter.timed(job)()
    assert meter.edge_s == 2.0


@pytest.mark.parametrize(
    "said",
    [
        times(math.nan),
        times(-1.0),
        times(math.inf),
        times(10.5),  # more than have passed
        times(0.5),  # less than before
        times(2.0, math.nan),
        times(2.0, 0.1),
        times(2.0, 11.0),
    ],
)
def test_a_word_that_cannot_be_is_left_out(said: pb.DeviceTimes) -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.start()
    clock.now_s += 10
    meter.note(times(1.0, 0.25), num_steps=1, num_forwards=2)
    before = meter.reading
    meter.note(said, num_steps=2, num_forwards=3)
    assert meter.reading is before
    meter.note(times(2.0, 0.5), num_steps=3, num_forwards=4)  # and the next one that can be counts
    assert (meter.reading.num_steps, meter.reading.device_s) == (3, 2.0)
