"""What a policy may know when it decides."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Candidate", "DeviceView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that could take a turn, before it is called.

    Parameters
    ----------
    node_id
        Flower's identifier.
    turns
        Turns that it has completed in this run.
    """

    node_id: int
    turns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device that is connected and about to begin its turn.

    Parameters
    ----------
    node_id
        Flower's identifier.
    name
        The device's own name: its partition id unless the node config has a ``device-name``.
    server_round
        From 1.
    turn
        Turns begun in this run before this one.
    num_blocks
        Blocks of the student; a cut is in ``1 .. num_blocks - 1``.
    num_examples, num_batches
        Samples and batches in the device's data set.
    """

    node_id: int
    name: str
    server_round: int
    turn: int
    num_blocks: int
    num_examples: int
    num_batches: int
