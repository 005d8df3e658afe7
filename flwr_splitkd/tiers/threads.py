"""How many threads torch computes with on a device, decided on purpose.

After each parallel region OpenMP's workers spin for a while before they sleep. When the edge and a device share a
machine, the workers of whichever side waits take cores from the side that computes: `benchmarks/split_overhead.py`
shows what that costs under each wait policy. A side with one thread has no workers to spin. So a device that dials a
loopback address computes with one thread, and a device of its own with as many as torch would take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flwr_splitkd.wire.address import is_loopback

__all__ = ["compute_threads", "default_threads"]


def default_threads(edge_address: str) -> int | None:
    """Threads for a device whose edge is at ``host:port``; None leaves torch's own number."""
    host = edge_address.rpartition(":")[0].strip("[]")
    return 1 if is_loopback(host) else None


@contextmanager
def compute_threads(number: int | None) -> Iterator[None]:
    """Set torch's intra-op threads for a turn; a simulation's process serves other devices afterwards."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
