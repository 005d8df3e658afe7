"""What arrives at the cloud, looked at before the LLM sees it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flwr_splitkd.errors import ProtocolError, TensorError
from flwr_splitkd.models.prefix import IGNORED
from flwr_splitkd.tiers.units import require_finite

__all__ = ["check_hidden", "check_inputs", "check_labels"]

_REMEDY = "Nothing of it was applied; check the edge's encoder and the devices' data, or lower its learning rate."


def check_hidden(hidden: Tensor, mask: Tensor, width: int) -> None:
    """Check an encoder's output and its mask.

    Raises
    ------
    TensorError
        If they are of another kind or shape.
    NonFiniteError
        If the output has NaN or infinity.
    """
    if not hidden.is_floating_point() or hidden.dim() != 3 or hidden.shape[-1] != width or not hidden.shape[0]:
        raise TensorError(
            f"`hidden` is {hidden.dtype} of shape {tuple(hidden.shape)}; expected floats of shape [batch, positions, {width}] "
            "with a batch of at least 1. Set `slm_width` to the encoder's width."
        )
    _check_mask("mask", mask, hidden)
    require_finite(hidden, "`hidden`", _REMEDY)


def check_labels(labels: Tensor, batch: int, vocab_size: int) -> None:
    """Check the answer's tokens.

    Raises
    ------
    TensorError
        If they are no integers, do not go with the batch, or are none of the LLM's tokens.
    """
    _check_tokens("labels", labels, vocab_size, lowest=IGNORED)
    if len(labels) != batch:
        raise TensorError(f"`labels` has {len(labels)} rows; expected {batch}, as many as the input has.")


def check_inputs(name: str, inputs: Mapping[str, Tensor], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Check tokens of context and question, and return them with their mask.

    Raises
    ------
    ProtocolError
        If one of the two is missing.
    TensorError
        If they are of another kind or shape, or are none of the LLM's tokens.
    """
    if not {"input_ids", "attention_mask"} <= set(inputs):
        raise ProtocolError(f"`{name}` has {sorted(inputs)[:8]}; expected 'input_ids' and 'attention_mask'.")
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    _check_tokens("input_ids", tokens, vocab_size, lowest=IGNORED)
    _check_mask("attention_mask", mask, tokens)
    if bool(((tokens < 0) & (mask.to(tokens.device) != 0)).any()):
        raise TensorError(f"`input_ids` of `{name}` has {IGNORED} where its mask is 1; expected tokens there.")
    return tokens, mask


def _check_mask(name: str, mask: Tensor, tensor: Tensor) -> None:
    if mask.is_floating_point() or mask.shape != tensor.shape[:2]:
        raise TensorError(
            f"`{name}` is {mask.dtype} of shape {tuple(mask.shape)}; expected integers or booleans of shape "
            f"{tuple(tensor.shape[:2])}."
        )


def _check_tokens(name: str, tokens: Tensor, vocab_size: int, *, lowest: int) -> None:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool or tokens.dim() != 2:
        raise TensorError(
            f"`{name}` is {tokens.dtype} of shape {tuple(tokens.shape)}; expected integers of shape [batch, tokens]."
        )
    wrong = tokens[((tokens < 0) & (tokens != lowest)) | (tokens >= vocab_size)]
    if wrong.numel():
        raise TensorError(
            f"`{name}` has the token {int(wrong[0])}; expected 0..{vocab_size - 1}, or {lowest} for padding. Use the LLM's own "
            "tokenizer."
        )
