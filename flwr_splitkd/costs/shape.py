"""How large a transformer is, block by block: what every cost formula starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_splitkd.errors import ConfigError

__all__ = ["Float", "ModelShape"]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelShape:
    """Parameters and FLOPs of a model's parts. A multiply-accumulate is two FLOPs; norms and activations count as none.

    Parameters
    ----------
    name
        For messages and tables.
    hidden_size
        Width of the smashed data in values per token.
    embedding_width
        Width of a row of the token embedding, which is `hidden_size` in most models.
    vocab_size
        Rows of the token embedding.
    block_parameters
        Parameters of each block. Shape ``[L]``.
    block_flops_per_token
        Forward FLOPs of each block that grow with the tokens. Shape ``[L]``.
    block_flops_per_pair
        Forward FLOPs of each block that grow with pairs of tokens: 4 x heads x head width. Shape ``[L]``.
    embedding_parameters
        All that comes before the first block.
    head_parameters
        All that comes after the last block and is not a part of the embedding: the final norm, and the head unless tied.
    head_flops_per_token
        Forward FLOPs of the head.
    tied
        Whether the head is the token embedding.
    block_kept_per_token
        Values that each block keeps in training for its backward pass, for each token; those of a block like Llama's when not
        given. Shape ``[L]``.
    block_kept_per_pair
        The same for each pair of tokens in a sample: attention maps; none when not given. Shape ``[L]``.
    """

    name: str
    hidden_size: int
    embedding_width: int
    vocab_size: int
    block_parameters: Float
    block_flops_per_token: Float
    block_flops_per_pair: Float
    embedding_parameters: int
    head_parameters: int
    head_flops_per_token: float
    tied: bool = False
    block_kept_per_token: Float | None = None
    block_kept_per_pair: Float | None = None

    def __post_init__(self) -> None:
        """Check that the arrays belong together.

        Raises
        ------
        ConfigError
            If they do not, or hold what is no count.
        """
        names = ["block_parameters", "block_flops_per_token", "block_flops_per_pair"]
        names += [name for name in ("block_kept_per_token", "block_kept_per_pair") if getattr(self, name) is not None]
        arrays = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in names}
        for name, array in arrays.items():
            if array.shape != arrays["block_parameters"].shape or array.ndim != 1 or not array.size:
                raise ConfigError(
                    f"`{name}` of {self.name} has shape {array.shape}; expected one value for each block, as in every array."
                )
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise ConfigError(
                    f"`{name}` of {self.name} holds {array.min()}; expected finite numbers of at least 0."
                )
            object.__setattr__(self, name, array)

    @property
    def num_blocks(self) -> int:
        """Blocks; a cut is in ``1 .. num_blocks - 1``."""
        return len(self.block_parameters)

    @property
    def num_parameters(self) -> int:
        """All parameters; a matrix that is used twice counts once."""
        return int(self.block_parameters.sum()) + self.embedding_parameters + self.head_parameters

    def block_flops(self, sequence_length: int, *, causal: bool = False) -> Float:
        """Forward FLOPs of each block for one sample. Shape ``[L]``.

        ``S * linear + S^2 * attention``; with `causal` half of the attention, which is what a kernel that skips masked blocks
        computes.
        """
        pairs = sequence_length**2 * (0.5 if causal else 1.0)
        return self.block_flops_per_token * sequence_length + self.block_flops_per_pair * pairs

    def head_flops(self, sequence_length: int) -> float:
        """Forward FLOPs of the head for one sample."""
        return self.head_flops_per_token * sequence_length

    def forward_flops(self, sequence_length: int, *, causal: bool = False) -> float:
        """Forward FLOPs of the whole model for one sample."""
        return float(self.block_flops(sequence_length, causal=causal).sum()) + self.head_flops(sequence_length)
