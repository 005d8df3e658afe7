"""What a device's meter says of an epoch, and what was predicted of it."""

from __future__ import annotations

from collections.abc import Sequence

from flwr_splitkd.costs import ChainLatency, MeasuredDevice
from flwr_splitkd.tiers.edge.chain import Reading

__all__ = ["measured_since", "predictions"]


def measured_since(before: Reading, now: Reading, split_point: int, subcarriers: int) -> MeasuredDevice | None:
    """What the iterations between two readings took; None if there were none.

    A device tells of its own seconds with its next batch, so that an epoch is known up to its last iteration, which counts with the
    next one; that of a round is known whole.
    """
    num_steps, num_forwards = now.num_steps - before.num_steps, now.num_forwards - before.num_forwards
    if num_steps < 1:
        return None
    # At the beginning one batch more has come up than gone through, at the end one less.
    each = num_steps / max(num_forwards, 1)
    return MeasuredDevice(
        split_point=split_point,
        num_steps=num_steps,
        device_s=now.device_s - before.device_s,
        edge_s=now.edge_s - before.edge_s,
        edge_wait_s=now.edge_wait_s - before.edge_wait_s,
        uplink_s=each * (now.uplink_s - before.uplink_s),
        downlink_s=now.downlink_s - before.downlink_s,
        uplink_bytes=each * (now.uplink_bytes - before.uplink_bytes),
        downlink_bytes=now.downlink_bytes - before.downlink_bytes,
        subcarriers=subcarriers,
    )


def predictions(names: Sequence[str], latency: ChainLatency) -> dict[str, dict[str, float]]:
    """Seconds of an iteration of each device, as they were expected; the edge's with the device's share of it."""
    stages = {
        "predicted_device_s": latency.device_s,
        "predicted_uplink_s": latency.uplink_s,
        "predicted_downlink_s": latency.downlink_s,
        "predicted_edge_s": latency.edge_s,
    }
    return {name: {stage: float(each[place]) for stage, each in stages.items()} for place, name in enumerate(names)}
