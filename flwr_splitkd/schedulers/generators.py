"""State of random generators, so that a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["generator_state", "set_generator_state"]


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """A generator's state in what JSON can hold."""
    return {key: _plain(value) for key, value in rng.bit_generator.state.items()}


def set_generator_state(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put a generator of the same kind where another one was.

    Raises
    ------
    ValueError
        If it is of another kind.
    """
    rng.bit_generator.state = dict(state)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
