"""A small model's shape for tests of the planner."""

from __future__ import annotations

import numpy as np

from flwr_splitkd.costs import ModelShape


def small_shape(num_blocks: int = 8, *, block_flops_per_token: float = 4e5) -> ModelShape:
    """Blocks of width 128, all alike."""
    return ModelShape(
        name="small",
        hidden_size=128,
        embedding_width=128,
        vocab_size=1000,
        block_parameters=np.full(num_blocks, 2e5),
        block_flops_per_token=np.full(num_blocks, block_flops_per_token),
        block_flops_per_pair=np.full(num_blocks, 512.0),
        embedding_parameters=128_000,
        head_parameters=128_128,
        head_flops_per_token=256_000.0,
    )
