"""How large any model of transformers is, and what it keeps, measured on a skeleton: no weight gets memory, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from flwr_splitkd.costs.kept import llama_kept
from flwr_splitkd.costs.shape import ModelShape
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models.adapters import inner_model
from flwr_splitkd.models.skeleton import build_skeleton
from flwr_splitkd.models.tied import embeddings_are_tied
from flwr_splitkd.split import Layout, find_layout
from flwr_splitkd.split.shrink import run_forward
from flwr_splitkd.split.surgery import is_token_model

__all__ = ["measured_shape"]

# Two lengths for two unknowns, and a third one that must agree, or that tells what does not grow at all.
_LENGTHS = (8, 16, 24)

# Samples in which kept values are counted: with a single one torch keeps views of what it would copy.
_SAMPLES = 2

# Setting, its setter, and the kernel that is counted and looks at no value: other forms of an expert layer look up which
# experts were hit, or have no formula in torch's counter.
_KERNELS = (
    ("_attn_implementation", "set_attn_implementation", "eager"),
    ("_experts_implementation", "set_experts_implementation", "batched_mm"),
)


def measured_shape(
    build: Callable[[], nn.Module], *, blocks: Sequence[str] | None = None, name: str = ""
) -> ModelShape:
    """Measure a model's shape.

    Parameters are counted, shared ones once. FLOPs are those that torch's `FlopCounterMode` counts with fake tensors,
    eager attention and one sample; each block's are split into a part that grows with the tokens and one that grows with
    their pairs. As in `flwr_splitkd.costs.shape_from_config`, what is computed once a sample or before the first block counts
    as none.

    What blocks keep in training is counted with torch's hooks for saved tensors: each memory once, parameters not at all, with the
    model's own attention and dropout, as on a processor, of samples without padding. Blocks of experts are taken for Llama's, since
    their form that looks at no value copies weights.

    Parameters
    ----------
    build
        Builds the model, as for `build_skeleton`.
    blocks
        Path of every block in running order; found when not given.
    name
        For messages and tables; the model's class when not given.

    Raises
    ------
    ConfigError
        If it is not a model of transformers that reads tokens, or cannot run without memory.
    CutError
        If its blocks cannot be found.
    UncuttableModelError
        If it cannot be cut.
    """
    model = inner_model(build_skeleton(build)).eval()
    name = name or type(model).__name__
    if not is_token_model(model):
        raise ConfigError(
            f"{name} is a {type(model).__name__} without `vocab_size` and `num_hidden_layers` in its config; expected a model of "
            "transformers that reads tokens. Describe any other module by a ModelShape made by hand."
        )
    layout = find_layout(model, blocks)
    embedding, block_parameters, head = _parameters(model, layout)
    weight, tied = model.get_input_embeddings().weight, embeddings_are_tied(model)  # type: ignore[operator]
    block_flops, head_flops, width, saved = _counts(model, layout, name)
    per_token, per_pair = _split(block_flops, name)
    kept_per_token, kept_per_pair = _split_kept(saved, name)
    experts = np.array([_has_experts(model.get_submodule(path)) for path in layout.block_names])
    return ModelShape(
        name=name,
        hidden_size=width,
        embedding_width=weight.shape[1],
        vocab_size=weight.shape[0],
        block_parameters=block_parameters,
        block_flops_per_token=per_token,
        block_flops_per_pair=per_pair,
        embedding_parameters=embedding,
        head_parameters=head,
        head_flops_per_token=float(head_flops[1] - head_flops[0]) / (_LENGTHS[1] - _LENGTHS[0]),
        tied=tied,
        block_kept_per_token=np.where(experts, llama_kept(per_token, per_pair, width), kept_per_token),
        block_kept_per_pair=np.where(experts, 0.0, kept_per_pair),
    )


def _parameters(model: nn.Module, layout: Layout) -> tuple[int, np.ndarray, int]:
    """Parameters before the blocks, of each block, and after them."""
    before = {*layout.stem, *layout.shared}
    # A tied matrix is the embedding's, so that goes first.
    named = sorted(model.named_parameters(remove_duplicate=False), key=lambda item: item[0] not in before)
    counts = {-1: 0, layout.num_blocks: 0, **{index: 0 for index in range(layout.num_blocks)}}
    seen: set[nn.Parameter] = set()
    for name, parameter in named:
        if parameter in seen:
            continue
        seen.add(parameter)
        index = -1 if name in before else layout.block_of(name)
        counts[layout.num_blocks if index is None else index] += parameter.numel()
    per_block = np.array([counts[index] for index in range(layout.num_blocks)], dtype=np.float64)
    return counts[-1], per_block, counts[layout.num_blocks]


def _counts(model: nn.Module, layout: Layout, name: str) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """FLOPs of each block and of the head, the width of what leaves the last block, and values that each block keeps.

    Counts have a row for each of `_LENGTHS`.
    """
    try:
        # On the meta device itself models fail where they ask for a value, or for the device's kind; with fake tensors they
        # know that they are traced.
        with FakeTensorMode(allow_non_fake_inputs=True):
            traced = model.to_empty(device="cpu")
            with _counted_kernels(model, _KERNELS):
                counts = [_count(traced, layout, length) for length in _LENGTHS]
            with _counted_kernels(model, _KERNELS[1:]):
                saved = [_count_kept(traced, layout, length) for length in _LENGTHS]
    except Exception as error:
        raise ConfigError(
            f"{name} cannot run without memory, which is how its FLOPs are counted: {type(error).__name__}: {error}. Expected a "
            "forward pass that does not depend on values; describe it by flwr_splitkd.costs.shape_from_config, or by a ModelShape "
            "made by hand."
        ) from error
    marks = np.array([marks for marks, _ in counts], dtype=np.float64)
    return np.diff(marks[:, :-1], axis=1), marks[:, -1] - marks[:, -2], counts[0][1], np.array(saved, dtype=np.float64)


def _count(model: nn.Module, layout: Layout, length: int) -> tuple[list[int], int]:
    """FLOPs that are done where the first block begins, where each one ends, and at the end."""
    counter = FlopCounterMode(display=False)
    marks: list[int] = []
    width = 0

    def mark(*_: Any) -> None:
        marks.append(counter.get_total_flops())

    def end(_module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal width
        mark()
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        width = hidden.shape[-1]

    modules = [model.get_submodule(path) for path in layout.block_names]
    handles = [modules[0].register_forward_pre_hook(mark), *(block.register_forward_hook(end) for block in modules)]
    ids = torch.zeros((1, length), dtype=torch.int64)
    try:
        # A model that was built for fused attention, and keeps to it, computes it as eager attention does.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            run_forward(model, {"input_ids": ids})
    finally:
        for handle in handles:
            handle.remove()
    mark()
    return marks, width


def _count_kept(model: nn.Module, layout: Layout, length: int) -> list[float]:
    """Values that each block keeps for the backward pass of one sample, in those of what it reads."""
    modules = [model.get_submodule(path) for path in layout.block_names]
    kept = [0.0] * len(modules)
    # Memory is known by its storage; tensors stay, so that no other one takes its place.
    known = {_storage(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    running: tuple[int, int] | None = None

    def begin(index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal running
        args, kwargs = tree_map(partial(_without_mask, length), (args, kwargs))
        hidden, *shared = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        # Rotary tables are there once for all blocks.
        known.update({_storage(tensor): tensor for tensor in shared})
        running = (index, hidden.element_size())
        return args, kwargs

    def end(*_: Any) -> None:
        nonlocal running
        running = None

    def pack(tensor: Tensor) -> Tensor:
        if running is not None and (storage := _storage(tensor)) not in known:
            known[storage] = tensor
            index, value_bytes = running
            kept[index] += tensor.untyped_storage().nbytes() / value_bytes / _SAMPLES
        return tensor

    handles = [block.register_forward_hook(end) for block in modules]
    for index, block in enumerate(modules):
        handles.append(block.register_forward_pre_hook(partial(begin, index), with_kwargs=True))
        block.train()  # these alone: around them models choose blocks by chance
    ids = torch.zeros((_SAMPLES, length), dtype=torch.int64)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run_forward(model, {"input_ids": ids})
    finally:
        model.eval()
        for handle in handles:
            handle.remove()
    return kept


def _without_mask(length: int, value: Any) -> Any:
    """None for a mask of so many tokens: transformers makes one of whatever it traces, and none for samples without padding."""
    # A column more: transformers 5.0, for a kernel of older versions of torch.
    shapes = [(1, length, length), (1, length, length + 1)]
    is_mask = isinstance(value, Tensor) and value.ndim == 4 and tuple(value.shape[1:]) in shapes
    return None if is_mask and not value.requires_grad else value


def _storage(tensor: Tensor) -> int:
    """What tells a memory from others, though it has no address."""
    storage: int = tensor.untyped_storage()._cdata
    return storage


def _has_experts(block: nn.Module) -> bool:
    """Whether a block has matrices of many experts in one parameter."""
    return any(parameter.ndim == 3 for parameter in block.parameters())


@contextmanager
def _counted_kernels(model: nn.Module, kernels: Sequence[tuple[str, str, str]]) -> Iterator[None]:
    """Have the model use these of `_KERNELS`. The config may be its builder's own, so that it gets its settings back."""
    kernels = [kernel for kernel in kernels if hasattr(model, kernel[1])]
    before = [(setter, getattr(model.config, setting, None)) for setting, setter, _ in kernels]
    try:
        for _, setter, wanted in kernels:
            getattr(model, setter)(wanted)
        yield
    finally:
        for setter, value in before:
            if value is not None:
                getattr(model, setter)(value)


def _split(flops: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of ``a S + b S^2``. `flops` has a row for each of `_LENGTHS`."""
    first, second, third = _LENGTHS
    rates = flops / np.array(_LENGTHS, dtype=np.float64)[:, None]
    per_pair = (rates[1] - rates[0]) / (second - first)
    per_token = rates[0] - per_pair * first
    expected = third * (per_token + per_pair * third)
    if not np.allclose(flops[2], expected, rtol=1e-3) or (per_pair < 0).any() or (per_token < 0).any():
        raise ConfigError(
            f"The blocks of {name} take {flops[:, 0].tolist()} FLOPs for {list(_LENGTHS)} tokens; expected a sum of terms in the "
            "tokens and in their pairs. Describe it by a ModelShape made by hand."
        )
    return per_token, per_pair


def _split_kept(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The first two factors of ``a S + b S^2 + c``. `values` has a row for each of `_LENGTHS`, equally far apart."""
    step = _LENGTHS[1] - _LENGTHS[0]
    per_pair = (values[2] - 2 * values[1] + values[0]) / (2 * step**2)
    per_token = (values[1] - values[0]) / step - per_pair * (_LENGTHS[0] + _LENGTHS[1])
    if (per_pair < 0).any() or (per_token < 0).any():
        raise ConfigError(
            f"The blocks of {name} keep {values[:, 0].tolist()} values for {list(_LENGTHS)} tokens; expected a sum of terms in the "
            "tokens and in their pairs. Describe it by a ModelShape made by hand."
        )
    return per_token, per_pair
