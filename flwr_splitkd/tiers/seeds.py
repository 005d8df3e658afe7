"""Seeds that depend on where in the run a thing happens, not on which machine it happens."""

from __future__ import annotations

import hashlib

__all__ = ["data_seed"]


def data_seed(seed: int, order_step: int, epoch: int) -> int:
    """Seed for the order of a device's data.

    Parameters
    ----------
    seed
        The run's.
    order_step
        Number of the turn's first optimiser step, when it first began.
    epoch
        Local epoch of the turn, from 0.
    """
    key = f"data/{seed}/{order_step}/{epoch}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
