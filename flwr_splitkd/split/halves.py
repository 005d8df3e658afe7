"""The two halves of a cut model.

Both keep the parameter names of the whole model, so checkpoints, optimiser states and adapters fit either
side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flwr_splitkd.errors import CutError
from flwr_splitkd.split import surgery
from flwr_splitkd.split.layout import Layout

__all__ = ["DeviceHalf", "EdgeHalf", "refuse_trainable_shared"]

SharedGradients = Literal["refuse", "sum"]


def refuse_trainable_shared(model: nn.Module, layout: Layout) -> None:
    """Refuse a model in which both halves would train the same tensor.

    Raises
    ------
    CutError
        A tensor of ``layout.shared`` requires a gradient: each half would see only its share of the gradient.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trainable = [n for n in layout.shared if n in parameters and parameters[n].requires_grad]
    if trainable:
        raise CutError(
            f"`{trainable[0]}` of {type(model).__name__} is used by both halves and is trainable "
            f"({len(trainable)} such tensor(s)); expected shared tensors to be frozen, because each half "
            "sees only its share of their gradient. Untie or freeze tied embeddings with "
            "set_tied_embeddings(model, 'untie' or 'freeze'), or call requires_grad_(False) on the tensor."
        )


class DeviceHalf:
    """Stem and blocks ``0..cut-1`` of a model: what runs beside the data.

    Takes `model` over: the block at `cut` becomes a stub that ends the forward pass, and every tensor that
    the half does not need is dropped from it, so that the memory is free as soon as the caller holds no
    reference. Works on a model whose parameters are on the meta device.

    Parameters
    ----------
    model
        The whole model (or its skeleton). It is changed for good.
    cut
        Number of blocks that stay on the device, 1..L-1.
    layout
        What :func:`find_layout` returned for this model.
    shared_gradients
        ``"refuse"`` a trainable tensor that both halves use, or accept it because the caller will ``"sum"``
        the two halves' gradients.

    Raises
    ------
    CutError
        `cut` is out of range, or a trainable tensor is shared.
    """

    def __init__(
        self, model: nn.Module, cut: int, layout: Layout, *, shared_gradients: SharedGradients = "refuse"
    ) -> None:
        layout.check_cut(cut)
        if shared_gradients == "refuse":
            refuse_trainable_shared(model, layout)
        for name in layout.block_names[cut:]:
            surgery.replace_block(model, name, surgery.StopStub(model.get_submodule(name)))
        for name in layout.head:
            surgery.drop_tensor(model, name)
        self.model = model
        self.cut = cut
        self.layout = layout

    def __call__(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch *positions hidden"]:
        """Run the half on one batch; see :meth:`forward`."""
        return self.forward(inputs)

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch *positions hidden"]:
        """Return the smashed data of one batch; nothing after the cut runs.

        Parameters
        ----------
        inputs
            The batch under the argument names of the whole model's forward(); ``labels`` are ignored.

        Raises
        ------
        ConfigError
            The batch lacks the model's data input.
        CutError
            The model's forward pass ended without reaching the cut.
        """
        try:
            self.model(**surgery.device_arguments(self.model, self.layout, inputs))
        except surgery.ReachedCutSignal as signal:
            return signal.hidden
        raise CutError(
            f"{type(self.model).__name__} finished without running `{self.layout.block_names[self.cut]}`; "
            "expected every block to run. Call find_layout again, or name the blocks in the order in which "
            "they run."
        )

    def edge_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that must travel beside the smashed data.

        Whatever the batch has apart from the data itself and ``labels`` (attention mask, position ids, token
        types). Token ids never travel. A ``token_mask``, true where the token is not the padding token, is
        added when the model knows a padding token and the attention mask does not already say the same.
        """
        return surgery.edge_inputs(self.model, self.layout, inputs)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that the half holds, under the whole model's names and in its order."""
        return self.model.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the half holds."""
        return self.model.parameters()

    def state_names(self) -> tuple[str, ...]:
        """State-dict names of the whole model that the half holds, persistent buffers included."""
        return tuple(self.model.state_dict())

    def train(self, mode: bool = True) -> DeviceHalf:
        """Set training mode (dropout on) or evaluation mode."""
        self.model.train(mode)
        return self

    def eval(self) -> DeviceHalf:
        """Set evaluation mode."""
        return self.train(False)

    def to(self, device: torch.device | str) -> DeviceHalf:
        """Move the half to another device."""
        self.model.to(device)
        return self


class EdgeHalf:
    """Blocks ``cut..L-1`` and head of a model, run on received smashed data.

    The edge keeps the whole model. While the half is active, blocks ``0..cut-1`` are kept aside, untouched,
    and stubs take their place; :meth:`restore` (or leaving the ``with`` block) puts the same objects back.

    Parameters
    ----------
    model
        The whole model.
    cut
        0..L-1. At 0 the smashed data are the outputs of the model's input embedding module, which is how a
        teacher whose embedding runs on the device is fed.
    layout
        What :func:`find_layout` returned for this model.
    shared_gradients
        As for :class:`DeviceHalf`; not looked at when `cut` is 0.

    Raises
    ------
    CutError
        `cut` is out of range, a trainable tensor is shared, or the model is already cut.
    """

    def __init__(
        self, model: nn.Module, cut: int, layout: Layout, *, shared_gradients: SharedGradients = "refuse"
    ) -> None:
        layout.check_cut(cut, lowest=0)
        if shared_gradients == "refuse" and cut > 0:
            refuse_trainable_shared(model, layout)
        for name in layout.block_names:
            if isinstance(model.get_submodule(name), surgery.FeedStub | surgery.StopStub):
                raise CutError(
                    f"`{name}` of {type(model).__name__} is already cut away; expected a whole model. "
                    "restore() the other EdgeHalf first."
                )
        self.model = model
        self.cut = cut
        self.layout = layout
        self._stubs: dict[str, surgery.FeedStub] = {}
        self._feed: RemovableHandle | None = None
        self._fed: Tensor | None = None
        glued = not surgery.is_token_model(model)
        if glued and cut:
            entry = model.get_submodule(layout.block_names[cut])
            self._feed = entry.register_forward_pre_hook(self._enter, with_kwargs=True)
        for name in layout.block_names[:cut]:
            block = model.get_submodule(name)
            self._stubs[name] = surgery.PassStub(block) if glued else surgery.FeedStub(block, layout.arity)
            surgery.replace_block(model, name, self._stubs[name])
        self._held_by_device = frozenset(layout.stem) if cut else _embedding_names(model)
        self._stem_with_buffers = self._find_stem_with_buffers() if cut else []
        self._stem_modes = [module.training for module in self._stem_with_buffers]
        self._calm_stem()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Put the smashed data in the place of what comes to the block after the cut."""
        if self._fed is None:
            raise CutError(
                "the edge half's model was called without smashed data; call the EdgeHalf, or restore() it first."
            )
        if not args:
            raise CutError(
                f"a {type(module).__name__} is called without a positional argument; expected its input first. "
                "Call each block in `blocks` as block(x)."
            )
        return (self._fed, *args[1:]), kwargs

    def _find_stem_with_buffers(self) -> list[nn.Module]:
        stem = set(self.layout.stem)
        found = []
        for module_name, module in self.model.named_modules():
            prefix = f"{module_name}." if module_name else ""
            if any(prefix + leaf in stem for leaf in module._buffers):
                found.append(module)
        return found

    def _calm_stem(self) -> None:
        # The stem still runs here, on surrogate data, and its result is thrown away. In training mode a
        # normalisation layer would fold that data into its running statistics.
        for module in self._stem_with_buffers:
            module.training = False

    def __call__(self, smashed: Float[Tensor, "batch *positions hidden"], inputs: Mapping[str, Tensor]) -> Any:
        """Finish the forward pass.

        Parameters
        ----------
        smashed
            What the device half returned; a leaf that requires a gradient when the caller wants one.
        inputs
            What :meth:`DeviceHalf.edge_inputs` returned; ``labels`` may be added and reach the model.

        Returns
        -------
        object
            The model's own output object.
        """
        arguments = surgery.edge_arguments(self.model, self.layout, smashed, inputs)
        if self.cut == 0:
            with surgery.embedding_output(self.model, smashed):
                return self.model(**arguments)
        fed = smashed.clone()  # the next block may work in place, which autograd forbids on the caller's leaf
        self._fed = fed
        for stub in self._stubs.values():
            stub.smashed = fed
        try:
            return self.model(**arguments)
        finally:
            self._fed = None
            for stub in self._stubs.values():
                stub.smashed = None

    def __enter__(self) -> EdgeHalf:
        """Use the half in a ``with`` block, which restores the model at its end."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Restore the whole model."""
        self.restore()

    def restore(self) -> nn.Module:
        """Put the blocks that were kept aside back in place; return the whole model. Safe to call twice."""
        for name, stub in self._stubs.items():
            surgery.replace_block(self.model, name, stub.block)
        if self._feed is not None:
            self._feed.remove()
        for module, mode in zip(self._stem_with_buffers, self._stem_modes, strict=True):
            module.training = mode
        self._stubs = {}
        self._stem_with_buffers, self._stem_modes = [], []
        return self.model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of this half only, under the whole model's names and in its order."""
        for name, parameter in self.model.named_parameters():
            if name not in self._held_by_device:
                yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of this half only."""
        for _, parameter in self.named_parameters():
            yield parameter

    def state_names(self) -> tuple[str, ...]:
        """State-dict names of this half, persistent buffers included."""
        return tuple(n for n in self.model.state_dict() if n not in self._held_by_device)

    def train(self, mode: bool = True) -> EdgeHalf:
        """Set training mode (dropout on) or evaluation mode, of the blocks kept aside too."""
        self.model.train(mode)
        for stub in self._stubs.values():
            stub.block.train(mode)
        self._stem_modes = [mode] * len(self._stem_with_buffers)
        self._calm_stem()
        return self

    def eval(self) -> EdgeHalf:
        """Set evaluation mode."""
        return self.train(False)


def _embedding_names(model: nn.Module) -> frozenset[str]:
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if callable(getter) else None
    for name, module in model.named_modules():
        if module is embedding:
            return frozenset(f"{name}.{leaf}" for leaf in embedding.state_dict())
    return frozenset()
