"""Arrays of given shapes and dtypes, in Flower's record and out of it."""

from __future__ import annotations

import json

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict


def make(description: str) -> ArrayRecord:
    """Return arrays as ``{"name": [[shape], "dtype"]}`` says."""
    described = json.loads(description)
    return ArrayRecord({name: Array(np.ones(shape, dtype)) for name, (shape, dtype) in described.items()})


def read(content: RecordDict) -> int:
    """Decode every array of a message; return their bytes."""
    return sum(array.numpy().nbytes for array in content.array_records["arrays"].values())
