"""Seeds that depend on where in the run a thing happens, not on which machine it happens."""

from __future__ import annotations

import hashlib

__all__ = ["data_seed", "device_seed"]


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


def device_seed(seed: int, position: int) -> int:
    """Seed for one device's dropout and the order of its data, where all devices work at the same time.

    Parameters
    ----------
    seed
        The run's.
    position
        Of the device among all of the run, from 0.
    """
    key = f"device/{seed}/{position}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
