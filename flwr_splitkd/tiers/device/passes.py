"""A device's half forward and backward: whatever goes wrong in a batch or a gradient is said in the product's own words."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flwr_splitkd.errors import DataError, SplitKDError, TensorError
from flwr_splitkd.tiers.units import require_finite
from flwr_splitkd.wire.codec import decode
from flwr_splitkd.wire.tensors import EncodedTensor

__all__ = ["forward_pass", "received_gradient"]


def forward_pass(
    half: Callable[[dict[str, Tensor]], Tensor],
    inputs: dict[str, Tensor],
    *,
    training: bool,
    model: str,
    check: str = "Check the data set of this device.",
) -> Tensor:
    """Return the half's smashed data.

    Parameters
    ----------
    half
        Up to the cut.
    inputs
        Of one micro-batch, without labels.
    training
        Whether a backward pass will follow.
    model, check
        What the half belongs to, and what to look at if the batch does not fit it, for the error.

    Raises
    ------
    DataError
        If the batch does not go through.
    """
    try:
        with torch.set_grad_enabled(training):
            return half(inputs)
    except SplitKDError:
        raise
    except Exception as error:  # torch's own words for shapes and kinds that do not go together
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        raise DataError(
            f"A batch of the shapes {shapes} does not go through the {model}: {type(error).__name__}: {error}. {check}"
        ) from error


def received_gradient(encoded: EncodedTensor, smashed: Tensor, step: int) -> Tensor:
    """Return the gradient at the cut, on the device of the smashed data that it belongs to.

    Raises
    ------
    TensorError
        If its shape is another than theirs.
    NonFiniteError
        If it holds NaN or infinity.
    """
    gradient = decode(encoded).to(smashed.device)
    if gradient.shape != smashed.shape:
        raise TensorError(
            f"The gradient of step {step} has shape {tuple(gradient.shape)}; expected {tuple(smashed.shape)}."
        )
    return require_finite(gradient, f"The gradient of step {step}", "Lower the learning rate.")
