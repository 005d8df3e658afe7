"""The two halves of an encoder whose output goes on to another model.

In the chain device - edge - cloud every device has a small encoder of its own. Its stem and first blocks run on the
device, its other blocks and what comes after them on the edge, and its last hidden state goes to the cloud. Other than
in `halves`, nobody keeps the whole model, and the device may hold all of it: the split point goes up to L.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flwr_splitkd.errors import CutError, UncuttableModelError
from flwr_splitkd.split import surgery
from flwr_splitkd.split.halves import DeviceHalf, EdgeHalf, refuse_trainable_shared
from flwr_splitkd.split.layout import Layout

__all__ = [
    "DeviceEncoder",
    "ServerEncoder",
    "check_encoder",
    "check_split_point",
    "encoder_units",
    "last_hidden_state",
]


def check_split_point(layout: Layout, split_point: int) -> None:
    """Refuse a split point that leaves the device without a block, or asks for more blocks than there are.

    Raises
    ------
    CutError
        `split_point` is no integer within 1 and L.
    """
    number = isinstance(split_point, int) and not isinstance(split_point, bool)
    if number and 1 <= split_point <= layout.num_blocks:
        return
    remedy = (
        f"Lower `split_point`, or use an encoder with {split_point} layers."
        if number and split_point > layout.num_blocks
        else "It counts the layers that run on the device; raise it to 1 or more."
    )
    raise CutError(
        f"`split_point` is {split_point!r}; expected 1..{layout.num_blocks} for a {layout.num_blocks}-layer encoder. {remedy}"
    )


def encoder_units(layout: Layout, split_point: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Units of the device and units of the edge; see :meth:`Layout.units`.

    At L the device has every unit, the head too, and the edge none.

    Raises
    ------
    CutError
        `split_point` is no integer within 1 and L.
    """
    check_split_point(layout, split_point)
    if split_point < layout.num_blocks:
        return layout.units(split_point)
    device, _ = layout.units(split_point - 1)
    return (*device, f"blocks.{split_point - 1}", "head"), ()


def check_encoder(model: nn.Module) -> None:
    """Refuse a model that is no encoder: one whose output is not the hidden states after its last block.

    Any base model of transformers that reads tokens will do, a decoder's too (``LlamaModel``): its hidden states are an
    encoding, if one in which a token knows only of those before it. A model with a language modelling or classification head
    is refused, since its head would be held, sent and never trained.

    Raises
    ------
    UncuttableModelError
        `model` does not read tokens, or has a head.
    """
    name = type(model).__name__
    if not surgery.is_token_model(model):
        raise UncuttableModelError(
            f"{name} is no encoder: its config lacks `vocab_size` or `num_hidden_layers`; expected a base model of transformers "
            "that reads tokens. Build it with AutoModel."
        )
    base = getattr(model, "base_model", model)
    if base is not model:
        raise UncuttableModelError(
            f"{name} is no encoder: it puts a head on a {type(base).__name__} and returns that head's output; expected a base "
            "model, whose output has `last_hidden_state`. Build it with AutoModel, or pass its `base_model`."
        )


def last_hidden_state(model: nn.Module, output: Any) -> Float[Tensor, "batch positions width"]:
    """What an encoder hands on, out of the output of its forward pass.

    Raises
    ------
    UncuttableModelError
        The output has no `last_hidden_state` of three dimensions.
    """
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        found = f"has one of shape {tuple(hidden.shape)}" if isinstance(hidden, Tensor) else "has none"
        raise UncuttableModelError(
            f"{type(model).__name__} is no encoder: expected an output with `last_hidden_state` [batch, positions, width], but its "
            f"{type(output).__name__} {found}. Use a base model of transformers, as AutoModel builds it."
        )
    return hidden


class DeviceEncoder:
    """Stem and blocks ``0..s-1`` of an encoder; at ``s = L`` the whole encoder.

    Takes `model` over, as :class:`DeviceHalf` does, and drops what the edge has.

    Parameters
    ----------
    model
        The encoder or its skeleton. It is changed for good, but for ``s = L``.
    split_point
        Number of blocks that run on the device, s = 1..L.
    layout
        What :func:`find_layout` returned for this model.

    Raises
    ------
    CutError
        `split_point` is out of range, the model is no encoder, or both halves would train the same tensor. The latter is
        refused at L too, since the next split point may be a lower one.
    """

    def __init__(self, model: nn.Module, split_point: int, layout: Layout) -> None:
        check_encoder(model)
        check_split_point(layout, split_point)
        refuse_trainable_shared(model, layout)
        self._half = DeviceHalf(model, split_point, layout) if split_point < layout.num_blocks else None
        self.model = model
        self.split_point = split_point
        self.layout = layout

    def __call__(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch positions hidden"]:
        """Return the hidden states of one batch after block ``s-1``; at L the encoder's output.

        Parameters
        ----------
        inputs
            The batch under the argument names of the model's forward(); ``labels`` are ignored.

        Raises
        ------
        ConfigError
            The batch lacks the model's data input.
        CutError
            The model's forward pass ended without reaching the split point, or without a last hidden state.
        """
        if self._half is not None:
            return self._half(inputs)
        output = self.model(**surgery.device_arguments(self.model, self.layout, inputs))
        return last_hidden_state(self.model, output)

    def edge_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that must travel beside the hidden states; see :meth:`DeviceHalf.edge_inputs`. The same at every s."""
        return surgery.edge_inputs(self.model, self.layout, inputs)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that the device holds, under the whole model's names and in its order."""
        return self.model.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the device holds."""
        return self.model.parameters()

    def state_names(self) -> tuple[str, ...]:
        """State-dict names of the whole model that the device holds, persistent buffers included."""
        return tuple(self.model.state_dict())

    def train(self, mode: bool = True) -> DeviceEncoder:
        """Set training mode (dropout on) or evaluation mode."""
        self.model.train(mode)
        return self

    def eval(self) -> DeviceEncoder:
        """Set evaluation mode."""
        return self.train(False)

    def to(self, device: torch.device | str) -> DeviceEncoder:
        """Move the half to another device."""
        self.model.to(device)
        return self


class ServerEncoder:
    """Blocks ``s..L-1`` and head of one device's encoder; at ``s = L`` nothing.

    Takes `model` over for good. The edge holds one of these per device, so nothing is kept aside: blocks ``0..s-1`` are let
    go, and every parameter of the stem becomes zeros that share one element. The stem runs on these and on surrogate tokens
    only so that the model builds its masks and positions; its output is thrown away at the first stub. The stem's buffers
    stay as they are.

    Parameters
    ----------
    model
        The encoder's skeleton, which :func:`flwr_splitkd.models.materialize` fills afterwards, or the encoder.
    split_point
        Number of blocks that run on the device, s = 1..L.
    layout
        What :func:`find_layout` returned for this model.

    Raises
    ------
    CutError
        As for :class:`DeviceEncoder`; also when the model is already cut.
    """

    def __init__(self, model: nn.Module, split_point: int, layout: Layout) -> None:
        check_encoder(model)
        check_split_point(layout, split_point)
        refuse_trainable_shared(model, layout)
        self.model = model
        self.split_point = split_point
        self.layout = layout
        self._stem: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._half = EdgeHalf(model, split_point, layout) if split_point < layout.num_blocks else None
        if self._half is None:
            self._empty()
        else:
            self._let_go()

    def _empty(self) -> None:
        # The tree of modules stays, never called, so that whoever looks a block up by name finds one.
        for name in self.layout.block_names:
            stub = surgery.FeedStub(self.model.get_submodule(name), self.layout.arity)
            stub.let_go()
            surgery.replace_block(self.model, name, stub)
        for name in self.model.state_dict():
            surgery.drop_tensor(self.model, name)

    def _let_go(self) -> None:
        for name in self.layout.block_names[: self.split_point]:
            stub = self.model.get_submodule(name)
            if isinstance(stub, surgery.FeedStub):
                stub.let_go()
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        held = [name for name in self.layout.stem if name in parameters]
        self._stem = {name: (parameters[name].shape, parameters[name].dtype) for name in held}
        for name in held:
            surgery.drop_tensor(self.model, name)
        for name in set(self.layout.stem) - set(held):
            # No longer part of the state: the device has it, and this half neither sends nor receives it.
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._non_persistent_buffers_set.add(leaf)
        device = next((p.device for p in parameters.values() if not p.is_meta), torch.device("cpu"))
        self._fill_stem(device)

    def _fill_stem(self, device: torch.device | str) -> None:
        # Plain attributes: as parameters they would be trained, sent, and made dense by a move to another device.
        for name, (shape, dtype) in self._stem.items():
            owner, _, leaf = name.rpartition(".")
            zeros = torch.zeros((), dtype=dtype, device=device).expand(shape)
            self.model.get_submodule(owner).__dict__[leaf] = zeros

    def __call__(
        self, smashed: Float[Tensor, "batch positions hidden"], edge_inputs: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch positions width"]:
        """Finish the encoder's forward pass; at L return `smashed` itself.

        Parameters
        ----------
        smashed
            What the device half returned; a leaf that requires a gradient when the caller wants one.
        edge_inputs
            What :meth:`DeviceEncoder.edge_inputs` returned.

        Raises
        ------
        UncuttableModelError
            The model's output has no last hidden state.
        """
        if self._half is None:
            return smashed
        return last_hidden_state(self.model, self._half(smashed, edge_inputs))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of this half, under the whole model's names and in its order."""
        return self.model.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of this half."""
        return self.model.parameters()

    def state_names(self) -> tuple[str, ...]:
        """State-dict names of this half, persistent buffers included."""
        return tuple(self.model.state_dict())

    def train(self, mode: bool = True) -> ServerEncoder:
        """Set training mode (dropout on) or evaluation mode."""
        if self._half is not None:
            self._half.train(mode)
        else:
            self.model.train(mode)
        return self

    def eval(self) -> ServerEncoder:
        """Set evaluation mode."""
        return self.train(False)

    def to(self, device: torch.device | str) -> ServerEncoder:
        """Move the half to another device."""
        self.model.to(device)
        self._fill_stem(device)
        return self
