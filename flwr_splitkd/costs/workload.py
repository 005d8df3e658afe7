"""What a turn has to do: how much data, and how its values are stored and sent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr_splitkd.errors import ConfigError

__all__ = ["CODEC_BYTES", "Workload"]

CODEC_BYTES = {"float16": 2.0, "bfloat16": 2.0, "int8": 1.0 + 4 / 128}
"""Bytes a value takes on the way; with ``"none"`` it is those of the activations themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a turn has to do.

    Parameters
    ----------
    batch_size, sequence_length
        Samples in a batch, tokens in a sample.
    num_batches
        Batches in one pass over the device's data.
    local_epochs
        Passes in the turn.
    activation_bytes, weight_bytes
        Bytes of one value of smashed data and of one weight.
    moments
        Values of optimiser state that travel with each weight; 2 for AdamW with ``optimizer_handover="full"``.
    token_bytes
        What travels beside the smashed data for each token: labels, masks, positions.
    kept_moments
        Values of optimiser state that each trained weight has in memory; those of `moments` when not given.
    train_embeddings
        Whether the token embedding trains, and so changes hands.
    trained_share
        Share of the blocks' weights that train: 1 but for adapters.
    causal
        Whether attention skips what is masked.
    gradient_accumulation_steps
        Batches in an optimiser step.
    num_microbatches
        Parts that a batch goes through in.
    pipeline_depth
        Micro-batches that the device has under way at once.
    joined_devices
        Devices of a cluster whose micro-batches the server takes in one batch, at most.
    runtime_bytes
        What the device's process takes beside the model, such as `RUNTIME_BYTES`; 0 leaves it out.
    """

    batch_size: int
    sequence_length: int
    num_batches: int
    local_epochs: int = 1
    activation_bytes: float = 4.0
    weight_bytes: float = 4.0
    moments: int = 2
    token_bytes: float = 8.0
    kept_moments: int | None = None
    train_embeddings: bool = False
    trained_share: float = 1.0
    causal: bool = False
    gradient_accumulation_steps: int = 1
    num_microbatches: int = 1
    pipeline_depth: int = 1
    joined_devices: int = 1
    runtime_bytes: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        of_data = ("batch_size", "sequence_length", "num_batches", "local_epochs")
        of_steps = ("gradient_accumulation_steps", "num_microbatches", "pipeline_depth", "joined_devices")
        for name in (*of_data, *of_steps):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        if not 0 <= self.trained_share <= 1:
            raise ConfigError(f"`trained_share` is {self.trained_share}; expected 0 to 1.")
        for name in ("activation_bytes", "weight_bytes", "moments", "token_bytes", "runtime_bytes"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected a finite number of at least 0.")

    @property
    def memory_moments(self) -> int:
        """Values of optimiser state in memory for each trained weight."""
        return self.moments if self.kept_moments is None else self.kept_moments

    @property
    def num_steps(self) -> int:
        """Batches that go through in the turn."""
        return self.num_batches * self.local_epochs

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * self.sequence_length

    @property
    def step_microbatches(self) -> int:
        """Micro-batches in an optimiser step."""
        return self.gradient_accumulation_steps * self.num_microbatches

    @property
    def microbatch_tokens(self) -> int:
        """Tokens in a micro-batch, the largest of them if they are not alike."""
        return -(-self.batch_size // self.num_microbatches) * self.sequence_length

    def value_bytes(self, codec: str) -> float:
        """Bytes that a value takes on the way.

        Raises
        ------
        ConfigError
            If there is no such codec.
        """
        if codec != "none" and codec not in CODEC_BYTES:
            raise ConfigError(f"The codec is {codec!r}; expected 'none' or one of {sorted(CODEC_BYTES)}.")
        return self.activation_bytes if codec == "none" else CODEC_BYTES[codec]
