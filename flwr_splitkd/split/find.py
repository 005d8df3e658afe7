"""Find the parts of a model that a cut separates."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flwr_splitkd.errors import CutError, UncuttableModelError
from flwr_splitkd.split import shrink, surgery
from flwr_splitkd.split.layout import Layout

__all__ = ["find_layout", "layout_of_tiny"]


def find_layout(
    model: nn.Module, blocks: str | Sequence[str] | None = None, *, stem: Sequence[str] | None = None
) -> Layout:
    """Find the blocks of a model, and which tensors outside them each half needs.

    A transformers model is probed: a tiny model is built from a shrunken copy of its config and run in two
    halves; what the device half touches is its stem, what the edge half's gradient reaches is its head. Any
    other module, and a transformers model of other data than tokens, is read from its structure. The model
    itself is never run, so its parameters may be on the meta device.

    Parameters
    ----------
    model
        The whole model.
    blocks
        Where the blocks are: the dotted path of their container (``""`` is the model itself, as for an
        ``nn.Sequential``), or the path of every block in running order. Needed for modules that are not from
        transformers.
    stem
        Only for modules that are not from transformers: paths of the submodules that run before the first
        block. By default those registered before it.

    Raises
    ------
    CutError
        The blocks are missing, ambiguous or too few.
    UncuttableModelError
        The architecture cannot be cut, e.g. because its layers share weights.
    """
    if surgery.is_token_model(model):
        _refuse_by_name(model)
        container, names = _named_blocks(model, blocks) if blocks is not None else _find_blocks(model)
        return _probe(model, container, names)
    if blocks is None and surgery.has_layer_count(model):
        return _read_structure(model, *_find_blocks(model), stem)
    if blocks is None:
        raise CutError(
            f"`blocks` is None and {type(model).__name__} has no config.num_hidden_layers; expected the path "
            "of the container of its blocks, or a list of paths. Pass e.g. find_layout(model, 'features')."
        )
    container, names = _named_blocks(model, blocks)
    return _read_structure(model, container, names, stem)


def _refuse_by_name(model: nn.Module) -> None:
    name, config = type(model).__name__, surgery.text_config(model)

    def refuse(setting: str, why: str) -> None:
        raise UncuttableModelError(f"{name} cannot be cut: `{setting}` is {getattr(config, setting)!r} and {why}")

    if getattr(model.config, "is_encoder_decoder", False):
        raise UncuttableModelError(
            f"{name} cannot be cut: it is an encoder-decoder, whose decoder reads the encoder's output in "
            "every layer. Use a decoder-only or an encoder-only student."
        )
    if getattr(config, "num_hidden_groups", None) is not None:
        refuse(
            "num_hidden_groups",
            "its layers share weights, so no layer is on one side only. Use BERT or RoBERTa.",
        )
    if getattr(config, "hidden_size_per_layer_input", None):
        refuse("hidden_size_per_layer_input", "every layer reads token ids, which must not leave the device.")
    if getattr(config, "num_kv_shared_layers", None):
        refuse("num_kv_shared_layers", "late layers read keys and values of early ones, across the cut.")
    if getattr(config, "layerdrop", 0.0):
        refuse("layerdrop", "it leaves out whole layers at random, the cut among them. Set it to 0.")
    if getattr(config, "output_router_logits", False):
        refuse(
            "output_router_logits",
            "the load-balancing loss needs the router logits of both halves. Set it to False to train without it.",
        )


def _named_blocks(model: nn.Module, blocks: str | Sequence[str]) -> tuple[str, tuple[str, ...]]:
    if isinstance(blocks, str):
        try:
            container = model.get_submodule(blocks)
        except AttributeError as error:
            known = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
            raise CutError(
                f"`blocks` is {blocks!r}, which {type(model).__name__} does not have; expected one of "
                f"{known}, or a list of paths."
            ) from error
        prefix = f"{blocks}." if blocks else ""
        return blocks, _enough(model, tuple(prefix + child for child, _ in container.named_children()))
    names = tuple(blocks)
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise CutError(
                f"`blocks` names {name!r}, which {type(model).__name__} does not have; expected paths of "
                "submodules as named_modules() lists them."
            ) from error
    parents = {name.rpartition(".")[0] for name in names}
    return parents.pop() if len(parents) == 1 else "", _enough(model, names)


def _enough(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise CutError(
            f"{type(model).__name__} has {len(names)} block(s); expected at least 2, one for each side. Name "
            "other blocks, or use a deeper model."
        )
    return names


def _find_blocks(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    layers = surgery.text_config(model).num_hidden_layers
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    marked = [n for n, m in lists if all(_is_layer(item) for item in m)]
    candidates = marked or [n for n, _ in lists]
    if len(candidates) != 1:
        found = f"{len(candidates)} candidates {candidates}" if candidates else "none"
        raise CutError(
            f"the blocks of {type(model).__name__} are not clear: expected one list of {layers} layers, "
            f"found {found}. Name it: find_layout(model, blocks='...')."
        )
    return _named_blocks(model, candidates[0])


def _is_layer(module: nn.Module) -> bool:
    # By name, since this package does not import transformers.
    return any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(module).__mro__)


def _names_outside(model: nn.Module, block_names: Sequence[str]) -> list[str]:
    prefixes = tuple(name + "." for name in block_names)
    return [name for name in model.state_dict() if not name.startswith(prefixes)]


def _read_structure(model: nn.Module, container: str, names: tuple[str, ...], stem: Sequence[str] | None) -> Layout:
    outside = _names_outside(model, names)
    if stem is None:
        order = [name for name, _ in model.named_modules()]
        first = min(order.index(name) for name in names)
        before = {name for name in order[:first] if name}
        # A parent of the blocks comes before them in this order, but its other children may come after.
        before -= {name for name in before if any(block.startswith(name + ".") for block in names)}
        in_stem = [n for n in outside if n.rpartition(".")[0] in before]
    else:
        for path in stem:
            if not any(n.startswith(path + ".") for n in outside):
                raise CutError(
                    f"`stem` names {path!r}, which holds no tensor outside the blocks; expected paths of "
                    "submodules that run before the first block."
                )
        in_stem = [n for n in outside if n.startswith(tuple(path + "." for path in stem))]
    rest = tuple(n for n in outside if n not in set(in_stem))
    argument = next(iter(inspect.signature(model.forward).parameters), None)
    if argument is None:
        raise CutError(f"{type(model).__name__}.forward takes no argument; expected the data as its first one.")
    return Layout(container, names, tuple(in_stem), rest, data_input=argument)


def layout_of_tiny(layout: Layout, tiny: nn.Module) -> Layout:
    """Give the layout of a tiny model, from that of the model that it was shrunk from."""
    kept = surgery.text_config(tiny).num_hidden_layers
    return Layout(
        layout.blocks,
        layout.block_names[:kept],
        layout.stem,
        layout.head,
        layout.shared,
        layout.arity,
        layout.data_input,
    )


class _Touched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the storage of every tensor that an operator reads while `recording`."""

    def __init__(self, recording: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = recording
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.recording:
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, Tensor):
                    self.storages.add(leaf.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def _probe(model: nn.Module, container: str, names: tuple[str, ...]) -> Layout:
    tiny = shrink.build_tiny(model).eval()
    kept = surgery.text_config(tiny).num_hidden_layers
    tiny_names = _enough(model, names[:kept])
    actual = _names_outside(model, names)
    outside = _names_outside(tiny, tiny_names)
    if sorted(outside) != sorted(actual) and not surgery.has_adapters(model):
        differing = sorted(set(outside) ^ set(actual))
        raise UncuttableModelError(
            f"{type(model).__name__} cannot be probed: `{differing[0]}` is outside the blocks and depends on "
            "the number or kind of layers. Pass a Layout made by hand, and check it with verify_cut(model, "
            "layout, inputs=batch)."
        )
    inputs = shrink.probe_inputs(tiny)
    data_input = getattr(model, "main_input_name", "input_ids")
    try:
        arity = _observe_blocks(tiny, tiny_names, inputs)
        bare = Layout(container, tiny_names, arity=arity, data_input=data_input)
        cut = len(tiny_names) // 2
        tensors = {n: t for n, t in tiny.state_dict(keep_vars=True).items() if n in set(outside)}
        by_device, smashed = _device_needs(tiny, bare, cut, inputs, tensors)
        by_edge = _edge_needs(tiny, bare, cut, smashed, inputs, tensors)
    except CutError:
        raise
    except Exception as error:
        raise UncuttableModelError(
            f"{type(model).__name__} cannot be probed: running a tiny copy of it in halves failed with "
            f"{type(error).__name__}: {error}. Pass a Layout made by hand, and check it with "
            "verify_cut(model, layout, inputs=batch)."
        ) from error
    stem, head, shared = _sort_names(tiny, outside, tensors, by_device, by_edge)
    found = Layout(container, names, stem, head, shared, arity, data_input)
    return _with_adapters(model, found, actual) if surgery.has_adapters(model) else found


def _with_adapters(model: nn.Module, bare: Layout, names: Iterable[str]) -> Layout:
    """The layout of a model with adapters outside its blocks too, such as a classifier that is trained beside LoRA.

    What a tuner puts in place of a module is below that module's path, so it belongs where the module belongs.
    """
    owners = {"stem": bare.stem, "head": bare.head, "shared": bare.shared}
    units: dict[str, list[str]] = {unit: [] for unit in owners}
    for name in names:
        path = name
        while path:
            found = {u for u, own in owners.items() if any(n == path or n.startswith(path + ".") for n in own)}
            if found:
                break
            path = path.rpartition(".")[0]
        if not path or len(found) != 1:
            raise UncuttableModelError(
                f"`{name}` of {type(model).__name__} belongs to {sorted(found) or 'no part'} of the model without adapters; "
                "expected one. Choose other `target_modules`."
            )
        units[found.pop()].append(name)
    return replace(bare, stem=tuple(units["stem"]), head=tuple(units["head"]), shared=tuple(units["shared"]))


def _observe_blocks(tiny: nn.Module, names: Sequence[str], inputs: dict[str, Tensor]) -> int:
    """Check that the blocks run once each and in order; return what they return as an arity."""
    seen: list[tuple[str, int]] = []

    def observer(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen.append((name, len(output) if isinstance(output, tuple) else 0))

        return hook

    handles = [tiny.get_submodule(n).register_forward_hook(observer(n)) for n in names]
    with torch.no_grad():
        shrink.run_forward(tiny, inputs)
    for handle in handles:
        handle.remove()
    if [name for name, _ in seen] != list(names):
        raise UncuttableModelError(
            f"{type(tiny).__name__} ran its blocks as {[name for name, _ in seen]}; expected each of "
            f"{list(names)} once, in this order. A model that skips, repeats or goes around its layers "
            "cannot be cut."
        )
    arities = {arity for _, arity in seen}
    if len(arities) != 1:
        raise UncuttableModelError(
            f"the blocks of {type(tiny).__name__} return {sorted(arities)} values; expected the same from each."
        )
    return arities.pop()


def _device_needs(
    tiny: nn.Module, layout: Layout, cut: int, inputs: dict[str, Tensor], tensors: dict[str, Tensor]
) -> tuple[set[str], Tensor]:
    name = layout.block_names[cut]
    block = surgery.replace_block(tiny, name, surgery.StopStub(tiny.get_submodule(name)))
    touched = _Touched(recording=True)
    try:
        with touched, torch.no_grad():
            tiny(**surgery.device_arguments(tiny, layout, inputs))
        raise UncuttableModelError(f"{type(tiny).__name__} finished without running `{name}`; it cannot be cut.")
    except surgery.ReachedCutSignal as signal:
        smashed = signal.hidden.detach().requires_grad_()
    finally:
        surgery.replace_block(tiny, name, block)
    return {n for n, t in tensors.items() if t.untyped_storage().data_ptr() in touched.storages}, smashed


def _edge_needs(
    tiny: nn.Module,
    layout: Layout,
    cut: int,
    smashed: Tensor,
    inputs: dict[str, Tensor],
    tensors: dict[str, Tensor],
) -> set[str]:
    stubs = {n: surgery.FeedStub(tiny.get_submodule(n), layout.arity) for n in layout.block_names[:cut]}
    touched = _Touched(recording=False)
    for name, stub in stubs.items():
        surgery.replace_block(tiny, name, stub)
        stub.smashed = smashed

    def start_recording(*_: Any) -> None:
        touched.recording = True

    stubs[layout.block_names[cut - 1]].register_forward_hook(start_recording)
    travelling = surgery.edge_inputs(tiny, layout, inputs)
    try:
        with touched:
            output = tiny(**surgery.edge_arguments(tiny, layout, smashed, travelling))
    finally:
        for name, stub in stubs.items():
            surgery.replace_block(tiny, name, stub.block)
    trained = {n: t for n, t in tensors.items() if t.requires_grad}
    loss = torch.stack([t.sum() for t in shrink.output_tensors(output).values()]).sum()
    grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    reached = {n for n, grad in zip(trained, grads, strict=True) if grad is not None}
    # A mask or position table may be read before the blocks and matter to all of them: that is what gradients
    # show.
    return reached | {n for n, t in tensors.items() if t.untyped_storage().data_ptr() in touched.storages}


def _sort_names(
    tiny: nn.Module,
    outside: Iterable[str],
    tensors: dict[str, Tensor],
    by_device: set[str],
    by_edge: set[str],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Give each name one owner; a tied tensor goes by its embedding's name, else by its first."""
    embedding = getattr(getattr(tiny, "get_input_embeddings", lambda: None)(), "weight", None)
    owner: dict[int, str] = {}
    modules = dict(tiny.named_modules())
    for name in outside:
        module_name, _, leaf = name.rpartition(".")
        tensor = tensors[name]
        is_embedding = tensor is embedding and modules[module_name] is tiny.get_input_embeddings()  # type: ignore[operator]
        if id(tensor) not in owner or (is_embedding and leaf == "weight"):
            owner[id(tensor)] = name
    stem, head, shared = [], [], []
    for name in outside:
        if owner[id(tensors[name])] != name or name not in by_device:
            head.append(name)
        elif name in by_edge:
            shared.append(name)
        else:
            stem.append(name)
    return tuple(stem), tuple(head), tuple(shared)
