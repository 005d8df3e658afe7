"""Arrays of given shapes and dtypes, in Flower's record and out of it."""

from __future__ import annotations

import json

import numpy as np
from flwr.app import Array, ArrayRecord


def make(description: str) -> ArrayRecord:
    """Return arrays as ``{"name": [[shape], "dtype"]}`` says."""
    described = json.loads(description)
    return ArrayRecord({name: Array(np.ones(shape, dtype)) for name, (shape, dtype) in described.items()})


def read(record: ArrayRecord) -> int:
    """Decode every array; return their bytes."""
    return sum(array.numpy().nbytes for array in record.values())
