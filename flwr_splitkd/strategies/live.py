"""How a run is at any moment, for callbacks that are asked by others."""

from __future__ import annotations

from collections.abc import Callable

from flwr_splitkd.callbacks import LiveReading
from flwr_splitkd.tiers.edge import EdgeService
from flwr_splitkd.tiers.edge.chain import ChainEdge
from flwr_splitkd.wire.server import DataPlaneServer

__all__ = ["live_chain", "live_turns"]


def live_turns(edge: EdgeService) -> Callable[[], LiveReading]:
    """What reads a run of turns; its steps are counted from now on."""
    first_step = edge.student.next_step
    return lambda: _reading(edge.server, num_steps=edge.student.next_step - first_step)


def live_chain(edge: ChainEdge) -> Callable[[], LiveReading]:
    """What reads a run of the chain."""

    def read() -> LiveReading:
        up, down = edge.cloud.bytes
        return _reading(
            edge.server, cloud_uplink_bytes=up, cloud_downlink_bytes=down, num_cloud_losses=edge.cloud.num_reopened
        )

    return read


def _reading(server: DataPlaneServer, **others: int) -> LiveReading:
    tally = server.tally.reading()
    return LiveReading(
        sessions=server.sessions(),
        num_streams=server.num_streams,
        uplink_bytes=tally.received_bytes,
        downlink_bytes=tally.sent_bytes,
        stream_faults=tally.faults,
        **others,
    )
