"""A task's state as it is stored and handed over: looked at before any of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ProtocolError, TensorError
from flwr_splitkd.tiers.units import require_finite

__all__ = ["NEXT_STEP", "check_state"]

NEXT_STEP = "next_step"
"""Names the scalar of a state that counts its steps."""


def check_state(
    parameters: Mapping[str, nn.Parameter],
    moment_keys: frozenset[str],
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    next_step: Tensor,
) -> None:
    """Check names, shapes, dtypes and values of a state.

    Raises
    ------
    ProtocolError
        If a name is missing or unknown.
    TensorError
        If a tensor has another shape or dtype.
    NonFiniteError
        If one has NaN or infinity.
    """
    odd = sorted(set(weights) ^ set(parameters)) or sorted(set(moments) - set(parameters))
    if odd:
        raise ProtocolError(
            f"The state has {len(weights)} weights; expected the task's {len(parameters)}. The first name that differs is "
            f"{odd[0]!r}. Configure the task as it was when the state was made."
        )
    if next_step.is_floating_point() or next_step.dim() or next_step < 0:
        raise TensorError(f"`next_step` of the state is {next_step.tolist()}; expected an integer of at least 0.")
    for name, tensor in weights.items():
        _check_like(f"weight/{name}", tensor, parameters[name].shape)
    for name, entries in moments.items():
        if set(entries) != moment_keys:
            raise ProtocolError(
                f"The state has the moments {sorted(entries)} of {name!r}; expected {sorted(moment_keys)}. Use the optimiser "
                "that it was made with, or leave moments out."
            )
        for key, tensor in entries.items():
            _check_like(f"moment/{key}/{name}", tensor, torch.Size([]) if key == "step" else parameters[name].shape)


def _check_like(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape or tensor.dtype != torch.float32:
        raise TensorError(
            f"`{name}` is {tensor.dtype} of shape {tuple(tensor.shape)}; expected torch.float32 of shape {tuple(shape)}. "
            "Configure the task as it was when the state was made."
        )
    require_finite(tensor, f"`{name}`", "Take an earlier state.")
