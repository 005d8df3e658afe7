"""Weights and optimiser states by name, as they move between the halves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flwr_splitkd.errors import CutError, TensorError
from flwr_splitkd.split.layout import Layout

__all__ = ["export_optimizer_state", "import_optimizer_state", "load_unit_state", "unit_state"]


def unit_state(model: nn.Module, layout: Layout, unit: str) -> dict[str, Tensor]:
    """Tensors of one unit by their state-dict names, persistent buffers included.

    The tensors are the model's own, detached but not copied.

    Raises
    ------
    CutError
        `unit` does not exist, or this half does not hold it.
    """
    known = ("stem", "head", "shared", *(f"blocks.{i}" for i in range(layout.num_blocks)))
    if unit not in known:
        raise CutError(
            f"`unit` is {unit!r}; expected 'stem', 'head', 'shared' or "
            f"'blocks.0'..'blocks.{layout.num_blocks - 1}'. Take units from Layout.units(cut)."
        )
    state = {name: tensor for name, tensor in model.state_dict().items() if layout.unit_of(name) == unit}
    if not state and unit.startswith("blocks."):
        block = model.get_submodule(layout.block_names[int(unit.partition(".")[2])])
        if type(block).__name__ in ("StopStub", "FeedStub", "PassStub"):
            raise CutError(
                f"`unit` is {unit!r}, which the other half holds; expected a unit of this half. On the edge, "
                "restore() the whole model first."
            )
    return state


@torch.no_grad()
def load_unit_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's parameters and buffers of the same names.

    Nothing is copied unless every tensor fits.

    Raises
    ------
    TensorError
        A name is unknown here, the target has no memory yet, or shape or dtype differ.
    """
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise TensorError(
                f"`{name}` is not held by {type(model).__name__} at this cut; expected only tensors of this "
                "half's units. Send the units that Layout.units(cut) lists."
            )
        if own[name].is_meta:
            raise TensorError(f"`{name}` is still on the meta device; expected real memory. Call materialize() first.")
        check_fits(name, tensor, own[name])
    for name, tensor in state.items():
        own[name].copy_(tensor)


def check_fits(name: str, tensor: Tensor, target: Tensor) -> None:
    """Raise TensorError unless `tensor` has the shape and dtype of `target`."""
    if tensor.shape != target.shape:
        raise TensorError(
            f"`{name}` has shape {tuple(tensor.shape)}; expected {tuple(target.shape)}. Both sides must "
            "build the same model: compare their configs."
        )
    if tensor.dtype != target.dtype:
        raise TensorError(
            f"`{name}` is {tensor.dtype}; expected {target.dtype}. Load both sides with the same `dtype`."
        )


def export_optimizer_state(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, dict[str, Tensor]]:
    """Optimiser state of the named parameters, such as AdamW's moments and step counts.

    Parameters that have no state yet (no gradient so far) are left out. The tensors are the optimiser's own,
    not copies.

    Raises
    ------
    TensorError
        The optimiser keeps something other than tensors per parameter.
    """
    exported: dict[str, dict[str, Tensor]] = {}
    for name, parameter in named_parameters:
        entries = optimizer.state.get(parameter, {})
        present = {key: value for key, value in entries.items() if value is not None}
        for key, value in present.items():
            if not isinstance(value, Tensor):
                raise TensorError(
                    f"the state `{key}` of `{name}` in {type(optimizer).__name__} is a "
                    f"{type(value).__name__}; expected a tensor. Use an optimiser with tensor states (AdamW, "
                    "Adam, SGD), or optimizer_handover='reset'."
                )
        if present:
            exported[name] = present
    return exported


def import_optimizer_state(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    state: Mapping[str, Mapping[str, Tensor]],
    *,
    copy: bool = True,
) -> None:
    """Give the optimiser the states of parameters that it takes over, bit for bit.

    Parameters
    ----------
    optimizer
        An optimiser that already holds the parameters.
    named_parameters
        The parameters by name; those without an entry in `state` keep what they have.
    state
        What :func:`export_optimizer_state` returned on the other side.
    copy
        False lets the optimiser have the very tensors, where nobody else needs them: moments are twice the weights, and a
        small device has not the memory to hold them twice.

    Raises
    ------
    TensorError
        `state` names an unknown parameter, or a state fits neither the parameter's shape nor a scalar.
    """
    parameters = dict(named_parameters)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, entries in state.items():
        if name not in parameters or id(parameters[name]) not in known:
            raise TensorError(
                f"the optimiser state names `{name}`; expected only parameters that this optimiser holds. "
                "Hand over the state together with the unit that the parameter belongs to."
            )
        for key, value in entries.items():
            if value.shape not in (parameters[name].shape, torch.Size([])):
                raise TensorError(
                    f"the optimiser state `{key}` of `{name}` has shape {tuple(value.shape)}; expected "
                    f"{tuple(parameters[name].shape)} or a scalar."
                )
    # A step count is a scalar that optimisers keep on the CPU, unless their kernels read it.
    counts_there = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for name, entries in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: (value.detach().clone() if copy else value.detach()).to(
                parameter.device if value.dim() or parameter.dim() == 0 or counts_there else value.device
            )
            for key, value in entries.items()
        }
