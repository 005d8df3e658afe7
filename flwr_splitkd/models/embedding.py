"""A model's token embedding as plain data, for a device that runs nothing else of the model."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flwr_splitkd.errors import UncuttableModelError
from flwr_splitkd.split.shrink import build_tiny

__all__ = ["token_embedding"]


def token_embedding(model: nn.Module) -> tuple[Float[Tensor, "vocab hidden"], float]:
    """Weight and scale with which the model's embedding module is one table look-up.

    ``F.embedding(ids, weight) * scale`` equals ``model.get_input_embeddings()(ids)`` bit for bit, which is
    checked; Gemma 3, for one, scales by the square root of the width. What a model adds later (positions,
    token types, a normalisation) is not part of the module and runs where the rest of the model runs.

    Parameters
    ----------
    model
        A whole model or its skeleton.

    Raises
    ------
    UncuttableModelError
        The embedding module does something else.
    """
    getter = getattr(model, "get_input_embeddings", None)
    module: Any = getter() if callable(getter) else None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UncuttableModelError(
            f"the input embedding of {type(model).__name__} is a {type(module).__name__} without a [vocab, "
            "hidden] weight; expected a table look-up. Use another model."
        )
    # A skeleton has nothing to look up in; its tiny copy has the same kind of module at another width.
    tried = build_tiny(model).get_input_embeddings() if weight.is_meta else module  # type: ignore[operator]
    ids = torch.arange(min(tried.weight.shape[0], 16), device=tried.weight.device)
    with torch.no_grad():
        same = torch.equal(tried(ids), functional.embedding(ids, tried.weight) * _scale(tried))
    if not same:
        raise UncuttableModelError(
            f"the input embedding of {type(model).__name__} ({type(module).__name__}) is not a scaled table "
            f"look-up with scale {_scale(module)}; expected F.embedding(ids, weight) * scale. Use another "
            "model."
        )
    return weight, _scale(module)


def _scale(module: nn.Module) -> float:
    scale = getattr(module, "embed_scale", 1.0)
    # A scale that is a tensor is multiplied in the weight's dtype, where it may round (bfloat16).
    return float(scale.to(module.weight.dtype)) if isinstance(scale, Tensor) else float(scale)  # type: ignore[arg-type]
