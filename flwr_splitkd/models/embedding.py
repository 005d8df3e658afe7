"""A model's token embedding as plain data, for a device that runs nothing else of the model."""

from __future__ import annotations

import copy

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
    module = model.get_input_embeddings()  # type: ignore[operator]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UncuttableModelError(
            f"the input embedding of {type(model).__name__} is a {type(module).__name__} without a [vocab, "
            "hidden] weight; "
            "expected a table look-up. Use another model."
        )
    raw = getattr(module, "embed_scale", 1.0)
    # The module multiplies in the weight's dtype, where the scale may round (bfloat16).
    scale = float(torch.as_tensor(raw, device="cpu").to(weight.dtype)) if raw is not None else 1.0
    rows = min(weight.shape[0], 16)
    ids = torch.arange(rows, device="cpu" if weight.is_meta else weight.device)
    tried = build_tiny(model).get_input_embeddings() if weight.is_meta else module  # type: ignore[operator]
    tried_scale = scale
    if weight.is_meta:
        tried = copy.deepcopy(tried)
        if hasattr(tried, "embed_scale") and raw is not None:
            tried_scale = float(torch.as_tensor(tried.embed_scale))
    with torch.no_grad():
        expected = tried(ids)
        got = functional.embedding(ids, tried.weight) * tried_scale
    if not torch.equal(expected, got):
        raise UncuttableModelError(
            f"the input embedding of {type(model).__name__} ({type(module).__name__}) is not a scaled table "
            "look-up with "
            f"scale {scale}; expected F.embedding(ids, weight) * scale. Use another model."
        )
    return weight, scale
