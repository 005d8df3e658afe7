"""How the edge computes: in bfloat16, compiled, with a fused optimiser. Each is faster on some machines and rounds otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.split import Layout, is_token_model

__all__ = ["EdgeCompute"]

_MOST_COMPILED = 64
"""Times that torch may compile a kind of block anew: halves of different cuts, a batch of another shape, each block of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCompute:
    """How the edge computes; nothing here is needed, and training equals the unsplit model's that computes in the same way.

    Parameters
    ----------
    autocast
        ``"bfloat16"``: matrix products of both models' blocks in bfloat16, while weights, moments and the loss stay what they are;
        None for everything in the weights' own type.
    compile
        Whether torch compiles the blocks of both models. The first steps take as long as that needs. Of transformers models only.
    fused_optimizer
        Whether the edge's optimiser updates all weights in one kernel.
    """

    autocast: Literal["bfloat16"] | None = None
    compile: bool = False
    fused_optimizer: bool = False

    def __post_init__(self) -> None:
        """Check the choices.

        Raises
        ------
        ConfigError
            If there is no such type to compute in.
        """
        if self.autocast not in (None, "bfloat16"):
            raise ConfigError(
                f"`edge_autocast` is {self.autocast!r}; expected 'bfloat16', or None for the weights' own type."
            )

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        """Forward passes within compute as `autocast` says."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast is not None)

    def in_type_of(self, outputs: Tensor, given: Tensor) -> Tensor:
        """What a pass within `casting` gave, in the type of what was given to it; as it is where nothing is cast."""
        return outputs.to(given.dtype) if self.autocast else outputs

    def prepare(self, model: nn.Module, layout: Layout) -> None:
        """Compile the blocks of a whole model, for whichever half they will be in.

        Raises
        ------
        ConfigError
            If they cannot be: copies of a compiled module would run the original, and modules from outside transformers are tried
            on a copy.
        """
        if not self.compile:
            return
        if not is_token_model(model):
            raise ConfigError(
                f"`edge_compile` is True and the model is a {type(model).__name__}; expected a transformers model, or False."
            )
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
        setattr(config, limit, max(getattr(config, limit), _MOST_COMPILED))
        for name in layout.block_names:
            block = model.get_submodule(name)
            # Not `block.compile()`: hooks on blocks seed the dropout, and would be compiled too, anew in every turn.
            block.forward = torch.compile(block.forward)
