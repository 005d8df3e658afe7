"""What a device's iterations have taken so far in a round: for its outcome, and for whoever decides on the next epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Meter", "Reading"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Sums over a device's iterations of a round, from their start. Hand-over of layers is left out.

    Parameters
    ----------
    num_steps
        Iterations that are behind it: the device's and the edge's seconds and the downlink are theirs.
    num_forwards
        Batches that came up: the uplink is theirs.
    device_s
        The device's word: batches, both passes, optimiser; without waiting for the edge.
    edge_s, edge_wait_s
        The edge's work for it, and the seconds in which that waited for other devices'.
    uplink_s, uplink_bytes
        Payload, and the seconds in which it came: each message from its headers to its end.
    downlink_s, downlink_bytes
        Likewise; the seconds are the device's word.
    """

    num_steps: int = 0
    num_forwards: int = 0
    device_s: float = 0.0
    edge_s: float = 0.0
    edge_wait_s: float = 0.0
    uplink_s: float = 0.0
    uplink_bytes: int = 0
    downlink_s: float = 0.0
    downlink_bytes: int = 0


class Meter:
    """Of one device in one round; fed by the threads that work for it, read by any other.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.reading = Reading()
        self.edge_s = self.edge_wait_s = 0.0
        self._clock, self._began_s = clock, clock()
        self._uplink_s, self._uplink_bytes, self._sent_bytes = 0.0, 0, 0

    def start(self) -> None:
        """The device's round begins: none of its own seconds were before."""
        self._began_s = self._clock()

    def timed(self, job: Callable[[], Result]) -> Callable[[], Result]:
        """The same job of the edge's, with its seconds counted, and those from now until it begins."""
        asked_s = self._clock()

        def counted() -> Result:
            started_s = self._clock()
            self.edge_wait_s += started_s - asked_s
            try:
                return job()
            finally:
                self.edge_s += self._clock() - started_s

        return counted

    def came(self, message: WireMessage) -> None:
        """A batch came up."""
        self._uplink_s += message.receive_s
        self._uplink_bytes += message.num_bytes

    def sent(self, num_bytes: int) -> None:
        """A gradient went down."""
        self._sent_bytes += num_bytes

    def note(self, times: pb.DeviceTimes, *, num_steps: int, num_forwards: int) -> None:
        """Take a reading with the device's word on its own seconds, unless that cannot be.

        They cannot be more than have passed, nor fewer than it has told of before, nor NaN.
        """
        before, elapsed_s = self.reading, self._clock() - self._began_s
        if not before.device_s <= times.compute_s <= elapsed_s or not before.downlink_s <= times.receive_s <= elapsed_s:
            return
        # One assignment of an immutable object: no other thread sees half of it.
        self.reading = Reading(
            num_steps=num_steps,
            num_forwards=num_forwards,
            device_s=times.compute_s,
            edge_s=self.edge_s,
            edge_wait_s=self.edge_wait_s,
            uplink_s=self._uplink_s,
            uplink_bytes=self._uplink_bytes,
            downlink_s=times.receive_s,
            downlink_bytes=self._sent_bytes,
        )
