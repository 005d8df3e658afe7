"""What a training of the small chain came to. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Curve", "Training"]

Training = Literal["chain", "cloud-only"]
"""Along the chain, or the module of the language model alone, from the questions' tokens: the paper's CloudO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one training came to.

    Parameters
    ----------
    training, seed
        Which.
    loss
        Mean training loss of each epoch, nats per token of the answers.
    heldout_loss, f1, exact_match
        On held-out questions before the first round and after each.
    """

    training: Training
    seed: int
    loss: tuple[float, ...]
    heldout_loss: tuple[float, ...]
    f1: tuple[float, ...]
    exact_match: tuple[float, ...]
