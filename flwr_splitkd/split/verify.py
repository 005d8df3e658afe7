"""Try every cut on a tiny copy of a model before the real one is touched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, UncuttableModelError
from flwr_splitkd.split import shrink, surgery
from flwr_splitkd.split.dropout import seed_dropout
from flwr_splitkd.split.encoder import DeviceEncoder, ServerEncoder, check_encoder, check_split_point, last_hidden_state
from flwr_splitkd.split.find import find_layout, layout_of_tiny
from flwr_splitkd.split.halves import DeviceHalf, EdgeHalf, refuse_trainable_shared
from flwr_splitkd.split.layout import Layout

__all__ = ["CutCheck", "CutReport", "random_batch", "verify_cut", "verify_encoder"]


_MOST_VALUES = 2**28
_TRANSFORMER_REMEDY = "Its layers pass something else than hidden states to each other; use another student."
_ENCODER_REMEDY = "Its blocks read more than hidden states and what travels beside them; use another encoder."
_MODULE_REMEDY = (
    "Name in `blocks` every module with weights between the first block and the last, in running order, such that nothing "
    "but one block's output goes on to the next; or cut elsewhere."
)


@dataclass(frozen=True)
class CutCheck:
    """Result of one cut or split point: whether every tensor was bit-equal, and the worst relative norm with its tensor."""

    cut: int
    bit_equal: bool
    worst: float
    worst_name: str


@dataclass(frozen=True)
class CutReport:
    """Results of all cuts that were tried on one architecture."""

    architecture: str
    checks: tuple[CutCheck, ...]

    @property
    def bit_equal(self) -> bool:
        """Whether every cut gave every tensor bit for bit."""
        return all(check.bit_equal for check in self.checks)


def verify_cut(
    model: nn.Module,
    layout: Layout | None = None,
    cuts: Sequence[int] | None = None,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-6,
) -> CutReport:
    """Compare split with unsplit training steps: outputs, every gradient and every buffer.

    A transformers model is tried as a tiny copy with padded sequences and active dropout, so `model` may be
    on the meta device. Any other module is tried as a copy of itself on `inputs`.

    Parameters
    ----------
    model
        The model that is to be cut; it is not changed.
    layout
        Its layout; found when not given.
    cuts
        Cuts to try on the copy; all of them by default.
    inputs
        A batch, for modules that are not from transformers.
    tolerance
        Largest relative norm ``||split - unsplit|| / ||unsplit||`` of the worst tensor.

    Raises
    ------
    UncuttableModelError
        A cut changes the model, or the model cannot be tried.
    """
    layout = layout or find_layout(model)
    if inputs is None:
        if not hasattr(model, "config"):
            raise ConfigError(
                f"`inputs` is None; expected a batch to try {type(model).__name__} on, since it has no "
                "config to build "
                "a tiny copy from. Pass inputs={argument: tensor}."
            )
        copied, layout = _tiny_copy(model, layout)
        batch: Mapping[str, Tensor] = shrink.probe_inputs(copied)
    else:
        copied, batch = copy.deepcopy(model), inputs
    copied.train()
    checks = _try_all(model, cuts or range(1, layout.num_blocks), lambda cut: _check(copied, layout, cut, batch))
    return _report(model, checks, tolerance, "cut", _TRANSFORMER_REMEDY if inputs is None else _MODULE_REMEDY)


def verify_encoder(
    model: nn.Module,
    layout: Layout | None = None,
    split_points: Sequence[int] | None = None,
    *,
    tolerance: float = 1e-6,
) -> CutReport:
    """Compare a split encoder with the unsplit one: last hidden state, every gradient and every buffer.

    A tiny copy of `model` is tried with padded sequences and active dropout, on the way that training takes:
    `DeviceEncoder`, then `ServerEncoder`.

    Parameters
    ----------
    model
        The encoder, or its skeleton; it is not changed.
    layout
        Its layout; found when not given.
    split_points
        Split points to try on the copy, which has fewer layers; all of them, the number of its layers too, by default.
    tolerance
        As for :func:`verify_cut`.

    Raises
    ------
    CutError
        Both halves would train the same tensor, or a split point is out of the copy's range.
    UncuttableModelError
        The model is no encoder, a split changes it, or it cannot be tried.
    """
    check_encoder(model)
    layout = layout or find_layout(model)
    refuse_trainable_shared(model, layout)
    copied, layout = _tiny_copy(model, layout)
    copied.train()
    for name, parameter in copied.named_parameters(remove_duplicate=False):
        if name in layout.shared:
            parameter.requires_grad_(False)  # as in the model itself
    batch = shrink.probe_inputs(copied)
    chosen = split_points or range(1, layout.num_blocks + 1)
    for split_point in chosen:
        check_split_point(layout, split_point)
    checks = _try_all(model, chosen, lambda split_point: _check_encoder(copied, layout, split_point, batch))
    return _report(model, checks, tolerance, "split point", _ENCODER_REMEDY)


def _tiny_copy(model: nn.Module, layout: Layout) -> tuple[nn.Module, Layout]:
    tiny = shrink.build_tiny(model)
    # The copy is made from the config, which knows nothing of adapters.
    return tiny, find_layout(tiny) if surgery.has_adapters(model) else layout_of_tiny(layout, tiny)


def _try_all(model: nn.Module, cuts: Sequence[int], check: Callable[[int], CutCheck]) -> tuple[CutCheck, ...]:
    try:
        return tuple(check(cut) for cut in cuts)
    except (UncuttableModelError, ConfigError):
        raise
    except Exception as error:
        raise UncuttableModelError(
            f"{type(model).__name__} cannot be cut: running it in halves failed with {type(error).__name__}: {error}"
        ) from error


def _report(model: nn.Module, checks: tuple[CutCheck, ...], tolerance: float, place: str, remedy: str) -> CutReport:
    for check in checks:
        if not check.worst <= tolerance:
            raise UncuttableModelError(
                f"{type(model).__name__} cannot be cut: at {place} {check.cut} `{check.worst_name}` differs from "
                f"the unsplit model by a relative norm of {check.worst:.1e}; expected at most "
                f"{tolerance:.0e}. {remedy}"
            )
    return CutReport(type(model).__name__, checks)


def random_batch(layout: Layout, travelling: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch to try a module from outside transformers on, where its data are not known.

    Parameters
    ----------
    layout
        Of the module.
    travelling
        What :meth:`DeviceHalf.edge_inputs` returned for a real batch: shape and dtype of its data are taken from it, and
        everything else as it is.

    Raises
    ------
    ConfigError
        The shape or the dtype is missing, or the shape is not that of data in batches of at most 2**28 values.
    """
    shape, zero = travelling.get(surgery.DATA_SHAPE), travelling.get(surgery.DATA_ZERO)
    sizes = shape.tolist() if shape is not None and shape.dim() == 1 and shape.dtype == torch.int64 else []
    if zero is None or not sizes or min(sizes) < 0 or math.prod(sizes) > _MOST_VALUES:
        raise ConfigError(
            f"`{surgery.DATA_SHAPE}` is {sizes}; expected the sizes of a batch of at most {_MOST_VALUES} values. Pass what "
            "DeviceHalf.edge_inputs() returned."
        )
    if zero.dtype.is_floating_point:
        data = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(zero.dtype)
    else:
        data = torch.zeros(sizes, dtype=zero.dtype)  # the one index that every table has
    rest = {name: tensor for name, tensor in travelling.items() if name not in surgery.DEVICE_ONLY}
    return {**rest, layout.data_input: data.to(zero.device)}


def _loss(output: Any) -> Tensor:
    return torch.stack([t.float().pow(2).mean() for t in shrink.output_tensors(output).values()]).sum()


def _gradients(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    # A tied tensor goes by the name under which both halves know it, whichever the model registered first.
    names: dict[int, str] = {}
    grads: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in names or name in layout.shared:
            grads.pop(f"gradient of {names.get(id(parameter))}", None)
            names[id(parameter)] = name
            if parameter.grad is not None:
                grads[f"gradient of {name}"] = parameter.grad
    return grads


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    names = {n for n, _ in model.named_buffers()}
    return {f"buffer {n}": t for n, t in model.state_dict().items() if n in names and t.is_floating_point()}


def _check(model: nn.Module, layout: Layout, cut: int, inputs: Mapping[str, Tensor]) -> CutCheck:
    whole = copy.deepcopy(model)
    with seed_dropout(whole, layout, 0):
        output = shrink.run_forward(whole, dict(inputs))
    _loss(output).backward()  # type: ignore[no-untyped-call]
    expected = {**shrink.output_tensors(output), **_gradients(whole, layout), **_buffers(whole)}

    device = DeviceHalf(copy.deepcopy(model), cut, layout, shared_gradients="sum")
    edge = EdgeHalf(copy.deepcopy(model), cut, layout, shared_gradients="sum")
    with seed_dropout(device.model, layout, 0):
        sent = device(inputs)
    smashed = sent.detach().requires_grad_()
    with seed_dropout(edge.model, layout, 0):
        output = edge(smashed, device.edge_inputs(inputs))
    _loss(output).backward()  # type: ignore[no-untyped-call]
    sent.backward(smashed.grad)  # type: ignore[no-untyped-call]
    held = set(edge.state_names())
    on_edge = {n: t for n, t in {**_gradients(edge.model, layout), **_buffers(edge.model)}.items() if _bare(n) in held}
    got = {**_gradients(device.model, layout), **_buffers(device.model)}
    for name, tensor in on_edge.items():
        summed = name in got and name.startswith("gradient")
        got[name] = got[name] + tensor if summed else tensor
    return _compare(cut, expected, {**shrink.output_tensors(output), **got})


def _check_encoder(model: nn.Module, layout: Layout, split_point: int, inputs: Mapping[str, Tensor]) -> CutCheck:
    whole = copy.deepcopy(model)
    with seed_dropout(whole, layout, 0):
        encoding = last_hidden_state(whole, shrink.run_forward(whole, dict(inputs)))
    _loss(encoding).backward()  # type: ignore[no-untyped-call]
    expected = {"last_hidden_state": encoding, **_gradients(whole, layout), **_buffers(whole)}

    device = DeviceEncoder(copy.deepcopy(model), split_point, layout)
    server = ServerEncoder(copy.deepcopy(model), split_point, layout)
    with seed_dropout(device.model, layout, 0):
        sent = device(inputs)
    smashed = sent.detach().requires_grad_()
    with seed_dropout(server.model, layout, 0):
        encoding = server(smashed, device.edge_inputs(inputs))
    _loss(encoding).backward()  # type: ignore[no-untyped-call]
    sent.backward(smashed.grad)  # type: ignore[no-untyped-call]
    got = {
        n: t for half in (server, device) for n, t in {**_gradients(half.model, layout), **_buffers(half.model)}.items()
    }
    return _compare(split_point, expected, {"last_hidden_state": encoding, **got})


def _bare(name: str) -> str:
    return name.removeprefix("gradient of ").removeprefix("buffer ")


def _compare(cut: int, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> CutCheck:
    if set(expected) != set(got):
        name = sorted(set(expected) ^ set(got))[0]
        return CutCheck(cut, False, float("inf"), name)
    bit_equal, worst, worst_name = True, 0.0, ""
    for name in expected:
        tensor, other = expected[name].detach().double(), got[name].detach().double()
        if torch.equal(tensor, other):
            continue
        bit_equal = False
        reference = torch.linalg.vector_norm(tensor)
        difference = torch.linalg.vector_norm(other - tensor)
        relative = float(difference / reference.clamp_min(torch.finfo(torch.float64).tiny))
        if not relative <= worst:  # also true for NaN
            worst, worst_name = relative, name
    return CutCheck(cut, bit_equal, worst, worst_name)
