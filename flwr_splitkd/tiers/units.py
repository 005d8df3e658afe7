"""Units as they travel and as they are stored: weights and optimiser moments in one flat mapping of tensors.

What trains in a unit of the layout and what does not are versioned apart, as ``blocks.3`` and ``blocks.3.frozen``: under
LoRA, or beside a frozen embedding, a turn changes little, and only what changed travels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import NonFiniteError, ProtocolError
from flwr_splitkd.split import Layout
from flwr_splitkd.wire.codec import decode, encode
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.tensors import EncodedTensor

__all__ = [
    "FROZEN",
    "TEACHER_UNIT",
    "Moments",
    "decode_all",
    "decode_one",
    "encode_all",
    "pack",
    "require_finite",
    "trained_names",
    "unpack",
    "versioned_units",
]

FROZEN = ".frozen"
"""Ends the name of what does not train in a unit."""

TEACHER_UNIT = "teacher"
"""The teacher's token embedding, which travels like a unit of the student; with more of it, a prefix before a dot."""

Moments = dict[str, dict[str, Tensor]]
"""Optimiser state by parameter name, then by the optimiser's own key (``exp_avg``, ``step``, ...)."""


def pack(weights: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name tensors ``weight/<name>`` and ``moment/<key>/<name>``; moments of other units are left out."""
    flat = {f"weight/{name}": tensor for name, tensor in weights.items()}
    for name in weights:
        for key, tensor in moments.get(name, {}).items():
            flat[f"moment/{key}/{name}"] = tensor
    return flat


def unpack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Moments]:
    """Undo `pack`.

    Raises
    ------
    ProtocolError
        If a name is neither a weight's nor a moment's.
    """
    weights: dict[str, Tensor] = {}
    moments: Moments = {}
    for flat_name, tensor in tensors.items():
        kind, _, rest = flat_name.partition("/")
        key, _, name = rest.partition("/")
        if kind == "weight" and rest:
            weights[rest] = tensor
        elif kind == "moment" and name:
            moments.setdefault(name, {})[key] = tensor
        else:
            raise ProtocolError(f"A unit has a tensor {flat_name!r}; expected weight/<name> or moment/<key>/<name>.")
    return weights, moments


def encode_all(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, EncodedTensor]:
    """Encode tensors without loss, each name after `prefix`."""
    return {prefix + name: encode(tensor) for name, tensor in tensors.items()}


def decode_all(tensors: Mapping[str, EncodedTensor], prefix: str = "") -> dict[str, Tensor]:
    """Decode the tensors whose names start with `prefix`, which is taken off."""
    return {name[len(prefix) :]: decode(item) for name, item in tensors.items() if name.startswith(prefix)}


def decode_one(message: WireMessage, name: str) -> Tensor:
    """Decode one tensor of a message.

    Raises
    ------
    ProtocolError
        If the message has none of this name.
    """
    if name not in message.tensors:
        raise ProtocolError(
            f"{message.kind} has {len(message.tensors)} tensors, {sorted(message.tensors)[:8]} among them; expected {name!r} as "
            "well."
        )
    return decode(message.tensors[name])


def trained_names(model: nn.Module) -> set[str]:
    """State-dict names that training changes: trainable parameters and persistent buffers."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name for name in model.state_dict() if name not in parameters or parameters[name].requires_grad}


def versioned_units(model: nn.Module, layout: Layout) -> dict[str, list[str]]:
    """State-dict names of a whole model by the unit that they are versioned with; see this module's docstring."""
    trained = trained_names(model)
    units: dict[str, list[str]] = {}
    for name in model.state_dict():
        units.setdefault(layout.unit_of(name) + ("" if name in trained else FROZEN), []).append(name)
    return units


def require_finite(tensor: Tensor, what: str, remedy: str) -> Tensor:
    """Return the tensor.

    Raises
    ------
    NonFiniteError
        If it has NaN or infinity.
    """
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NonFiniteError(f"{what} has {bad} of {tensor.numel()} values NaN or infinite; expected none. {remedy}")
    return tensor
