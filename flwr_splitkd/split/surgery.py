"""Stand-ins that take a block's place, and how the model around them is called.

Layers are replaced, never truncated, so that the model itself still builds its masks, rotary tables and head
for the number of layers that it was made for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, CutError
from flwr_splitkd.split.layout import Layout

__all__ = [
    "FeedStub",
    "PassStub",
    "ReachedCutSignal",
    "StopStub",
    "accepts",
    "device_arguments",
    "drop_tensor",
    "edge_arguments",
    "edge_inputs",
    "embedding_output",
    "has_adapters",
    "has_layer_count",
    "is_token_model",
    "pad_token_id",
    "replace_block",
    "text_config",
]

TOKEN_MASK = "token_mask"  # bool [batch, sequence]: where the token is not the padding token
DATA_SHAPE = "data_shape"
DATA_ZERO = "data_zero"
DEVICE_ONLY = ("labels", TOKEN_MASK, DATA_SHAPE, DATA_ZERO)


class ReachedCutSignal(BaseException):
    """Carries the smashed data out of a forward pass.

    Not an `Exception`, so that a model which catches those cannot swallow it and run on.
    """

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _plain_attributes(source: nn.Module) -> dict[str, Any]:
    """List what a model may read from a block between calls, e.g. ModernBERT's `attention_type`."""
    plain: dict[str, Any] = {
        name: value
        for name, value in vars(source).items()
        if not name.startswith("_") and name != "training" and (isinstance(value, str | int | float) or value is None)
    }
    for name, child in source.named_children():
        inner = _plain_attributes(child)
        if inner:
            plain[name] = SimpleNamespace(**inner)  # no module: nothing of it may show in the module tree
    return plain


class StopStub(nn.Module):
    """Ends the forward pass with the hidden states that reach it; holds no parameter."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(_plain_attributes(block))
        self.training = block.training

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Raise the signal that ends the forward pass."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise CutError(
                f"a block's first argument is a {type(hidden).__name__}; expected the hidden states as a "
                "tensor. This model passes something else between its blocks and cannot be cut here."
            )
        raise ReachedCutSignal(hidden)


class FeedStub(nn.Module):
    """Returns the smashed data that it was given, in the form that the block would return it.

    The block is kept aside, out of the module tree, so that neither `parameters()` nor `state_dict()` shows
    it.
    """

    def __init__(self, block: nn.Module, arity: int) -> None:
        super().__init__()
        self.__dict__.update(_plain_attributes(block))
        self.training = block.training
        self._feed_arity = arity
        self.smashed: Tensor | None = None
        self.__dict__["kept"] = block

    @property
    def block(self) -> nn.Module:
        """The block whose place this stub takes."""
        kept = self.__dict__["kept"]
        if not isinstance(kept, nn.Module):
            raise TypeError("a feed stub always keeps a module")
        return kept

    def let_go(self) -> None:
        """Free the block for good: from here on this keeps an empty module in its place."""
        self.__dict__["kept"] = nn.Module()

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Return the smashed data in place of whatever came in."""
        if self.smashed is None:
            raise CutError(
                "the edge half's model was called without smashed data; call the EdgeHalf, or restore() it first."
            )
        if self._feed_arity == 0:
            return self.smashed
        return (self.smashed, *[None] * (self._feed_arity - 1))


class PassStub(FeedStub):
    """Stands for a block before the cut in a model with code of its own between its blocks.

    That code (a pooling, a reshape) runs on the edge as well, before the smashed data come in at the block after the cut.
    So this returns zeros in the shape that the block would return, which it learns by running the block once a shape.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block, arity=0)
        self._known: dict[tuple[Any, ...], tuple[torch.Size, torch.dtype, torch.device]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return zeros."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._known:
            self._known[key] = self._run(args, kwargs)
        shape, dtype, device = self._known[key]
        return torch.zeros(shape, dtype=dtype, device=device)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Size, torch.dtype, torch.device]:
        modes = {module: module.training for module in self.block.modules()}
        self.block.eval()  # a normalisation in training mode would take what comes in for data
        try:
            with torch.no_grad():
                output = self.block(*args, **kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not isinstance(output, Tensor):
            raise CutError(
                f"a {type(self.block).__name__} returns a {type(output).__name__}; expected a tensor from each named block. "
                "Name larger modules in `blocks`."
            )
        return output.shape, output.dtype, output.device


def replace_block(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` at the dotted path `name`; return what was there."""
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    old = parent.get_submodule(leaf)
    parent._modules[leaf] = module  # a container's own __setattr__ would refuse numeric names
    return old


def drop_tensor(model: nn.Module, name: str) -> None:
    """Take the parameter or buffer at the dotted path `name` out of the model."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    for registry in (owner._parameters, owner._buffers):
        if leaf in registry:
            registry[leaf] = None  # an empty slot stays, for whoever looks the module over


def text_config(model: nn.Module) -> Any:
    """Config of the text part of a transformers model, or None for any other module."""
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def is_token_model(model: nn.Module) -> bool:
    """Whether the model is one of transformers' that read tokens: a tiny copy of it can be probed with made-up ones."""
    return has_layer_count(model) and isinstance(getattr(text_config(model), "vocab_size", None), int)


def has_layer_count(model: nn.Module) -> bool:
    """Whether the model's config says how many layers it has, as any of transformers' does."""
    return isinstance(getattr(text_config(model), "num_hidden_layers", None), int)


def has_adapters(model: nn.Module) -> bool:
    """Whether a PEFT tuner has put adapters into the model."""
    return hasattr(model, "peft_config")


def pad_token_id(model: nn.Module) -> int | None:
    """Token id that the model's config calls padding, if any."""
    for config in (text_config(model), getattr(model, "config", None)):
        pad = getattr(config, "pad_token_id", None)
        if isinstance(pad, int):
            return pad
    return None


def _filler_token_id(model: nn.Module) -> int:
    """Smallest token id with no special meaning, to stand for every token that the edge does not see."""
    special: set[int] = set()
    for config in (text_config(model), getattr(model, "config", None)):
        for name, value in (vars(config) if config is not None else {}).items():
            if name.endswith(("token_id", "token_index", "token_ids")):
                values = value if isinstance(value, list | tuple) else [value]
                special.update(v for v in values if isinstance(v, int))
    return next(i for i in range(len(special) + 1) if i not in special)


def _inferred_token_mask(inputs: Mapping[str, Tensor], shape: torch.Size, device: torch.device) -> Tensor:
    """Token mask that the edge assumes when none travels: the attention mask, or no padding at all."""
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == shape:
        return mask.to(device=device, dtype=torch.bool)
    return torch.ones(shape, dtype=torch.bool, device=device)


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward() names this argument."""
    return name in inspect.signature(model.forward).parameters


def _has_tokens(model: nn.Module, layout: Layout) -> bool:
    """Whether the data are token ids whose meaning the model's config tells; any other module's are just data."""
    return layout.data_input == "input_ids" and is_token_model(model)


def device_arguments(model: nn.Module, layout: Layout, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Forward arguments of the device half: the batch without labels."""
    if layout.data_input not in inputs:
        raise ConfigError(
            f"`inputs` has {sorted(inputs)}; expected `{layout.data_input}` among them. Pass the batch under "
            "the argument names of the model's forward()."
        )
    arguments: dict[str, Any] = {k: v for k, v in inputs.items() if k not in DEVICE_ONLY}
    if accepts(model, "use_cache"):
        arguments["use_cache"] = False  # a key-value cache is of no use in training and holds memory
    return arguments


def edge_inputs(model: nn.Module, layout: Layout, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that must travel beside the smashed data; see :meth:`DeviceHalf.edge_inputs`."""
    data = inputs[layout.data_input]
    travelling = {k: v for k, v in inputs.items() if k != layout.data_input and k not in DEVICE_ONLY}
    if not _has_tokens(model, layout):
        travelling[DATA_SHAPE] = torch.tensor(data.shape, dtype=torch.int64)
        travelling[DATA_ZERO] = torch.zeros((), dtype=data.dtype)
        return travelling
    pad = pad_token_id(model)
    if pad is not None:
        token_mask = data != pad
        if not torch.equal(token_mask, _inferred_token_mask(inputs, data.shape, data.device)):
            travelling[TOKEN_MASK] = token_mask
    return travelling


def edge_arguments(model: nn.Module, layout: Layout, smashed: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Forward arguments of the edge half, with a surrogate in the place of the private data.

    Token ids are replaced by one filler token and by padding where the device's token mask says so. That
    gives what some models derive from token ids - RoBERTa's positions, the last token that a decoder
    classifies - exactly as in the unsplit run, although the edge never sees a token.
    """
    arguments: dict[str, Any] = {
        k: v for k, v in inputs.items() if k not in (TOKEN_MASK, DATA_SHAPE, DATA_ZERO, layout.data_input)
    }
    if not _has_tokens(model, layout):
        shape, zero = inputs.get(DATA_SHAPE), inputs.get(DATA_ZERO)
        if shape is None or zero is None:
            raise ConfigError(
                f"`inputs` has {sorted(inputs)}; expected `{DATA_SHAPE}` and `{DATA_ZERO}` too. Pass what "
                "DeviceHalf.edge_inputs() returned."
            )
        arguments[layout.data_input] = zero.to(smashed.device).expand(*shape.tolist())
    else:
        token_mask = inputs.get(TOKEN_MASK)
        if token_mask is None:
            mask = inputs.get("attention_mask")
            shape_like = mask.shape if mask is not None and mask.dim() == 2 else smashed.shape[:2]
            token_mask = _inferred_token_mask(inputs, shape_like, smashed.device)
        pad, filler = pad_token_id(model), _filler_token_id(model)
        surrogate = torch.full(token_mask.shape, filler, dtype=torch.int64, device=smashed.device)
        if pad is not None:
            surrogate.masked_fill_(~token_mask.to(smashed.device), pad)
        arguments["input_ids"] = surrogate
    if accepts(model, "use_cache"):
        arguments["use_cache"] = False
    return arguments


@contextmanager
def embedding_output(model: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Make the model's input embedding return `embeddings` the next time that it is called."""
    getter = getattr(model, "get_input_embeddings", None)
    if not callable(getter):
        raise CutError(
            f"`cut` is 0 but {type(model).__name__} has no get_input_embeddings(); expected a cut of 1 or more."
        )
    pending = [embeddings]  # only the first call is the tokens': GPT-2 embeds token types with the same table

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return pending.pop() if pending else output

    handle = getter().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
