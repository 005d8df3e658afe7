"""Global-norm gradient clipping across the two halves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError

__all__ = ["clip_coefficient", "grad_norms", "scale_gradients"]


def grad_norms(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Float[Tensor, ""]]:
    """L2 norm of each parameter's gradient; parameters without a gradient are left out."""
    return {
        name: torch.linalg.vector_norm(parameter.grad)
        for name, parameter in named_parameters
        if parameter.grad is not None
    }


def clip_coefficient(
    norms: Mapping[str, Float[Tensor, ""]], order: Sequence[str], max_norm: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Factor that clips the gradients of both halves together.

    ``total = ||(n_1, ..., n_k)||_2`` over the norms of all tensors in the whole model's order, and
    ``factor = min(1, max_norm / (total + 1e-6))``, as in ``torch.nn.utils.clip_grad_norm_`` on the whole
    model. The order matters for the last bit, which is why the halves exchange one norm per tensor and not
    one each.

    Parameters
    ----------
    norms
        Norms of both halves, by parameter name.
    order
        Names in the whole model's parameter order; names without a norm are skipped.
    max_norm
        Largest allowed total norm, > 0.

    Returns
    -------
    factor, total
        The factor for every gradient, and the norm before clipping.

    Raises
    ------
    ConfigError
        `max_norm` is not positive, or a norm has a name that is not in `order`.
    """
    if not max_norm > 0:
        raise ConfigError(f"`max_norm` is {max_norm}; expected a number > 0. Leave clipping out to disable it.")
    unknown = sorted(set(norms) - set(order))
    if unknown:
        raise ConfigError(f"`norms` has {unknown[0]!r}; expected only names in `order`. Pass the whole model's names.")
    ordered = [norms[name] for name in order if name in norms]
    if not ordered:
        total = torch.tensor(0.0)
    else:
        total = torch.linalg.vector_norm(torch.stack([norm.to(ordered[0].device) for norm in ordered]))
    return torch.clamp(max_norm / (total + 1e-6), max=1.0), total


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: Float[Tensor, ""]) -> None:
    """Multiply every gradient by `factor` in place, also when it is 1, as torch's clipping does."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.device))
