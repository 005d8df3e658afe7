"""What a classifier's forward pass returned, as logits."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from flwr_splitkd.errors import ConfigError

__all__ = ["class_logits"]


def class_logits(output: Any, whose: str) -> Float[Tensor, "batch classes"]:
    """The class logits of a transformers output, or of a module that returns them as they are.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ConfigError(f"The {whose}'s output is {shape}; expected logits of shape [batch, classes].")
    return logits
