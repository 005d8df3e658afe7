"""A model's structure without its memory, and how received tensors fill it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, TensorError
from flwr_splitkd.models.adapters import add_adapters
from flwr_splitkd.split import DeviceEncoder, DeviceHalf, EdgeHalf, ServerEncoder

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["build_skeleton", "materialize", "parameters_on_meta"]

_patching = threading.RLock()


class _MetaTwins:
    """Gives each parameter one twin on the meta device, so that tied parameters stay tied."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.is_meta:
            return parameter
        known = self._twins.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]
        twin = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        self._twins[id(parameter)] = (weakref.ref(parameter), twin)
        return twin


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let modules built in this thread register their parameters on the meta device.

    Only parameters go there: buffers such as rotary tables and position ids stay real, since nobody would
    send them. A parameter's memory is released before it is initialised, so that it is never touched.
    """
    with _patching:
        thread = threading.get_ident()
        original = nn.Module.register_parameter
        twins = _MetaTwins()

        def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
            if param is not None and threading.get_ident() == thread:
                param = twins.of(param)
            original(module, name, param)

        nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = original  # type: ignore[method-assign]


def build_skeleton(builder: Callable[[], nn.Module], peft: PeftConfig | None = None) -> nn.Module:
    """Build a model whose parameters are on the meta device and whose buffers are real.

    Parameters
    ----------
    builder
        Builds the whole model on the CPU. If it has a ``skeleton()`` method, as :class:`PretrainedModel` has,
        that is called instead. A builder that reads weights would hold them all for a moment: use
        `PretrainedModel`.
    peft
        Adapters to add.

    Raises
    ------
    ConfigError
        The adapters do not fit, or the builder returns no module, or cannot run without memory for its parameters.
    """
    own = getattr(builder, "skeleton", None)
    try:
        if callable(own):
            model = own()
        else:
            with parameters_on_meta():
                model = builder()
    except NotImplementedError as error:
        raise ConfigError(
            f"the model builder failed with {error} while its parameters had no memory; expected a builder "
            "that only builds. Move the model to its device and change its weights elsewhere, or give the "
            "builder a skeleton() method."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the model builder returned a {type(model).__name__}; expected a torch.nn.Module. Return the model itself."
        )
    if peft is not None:
        with parameters_on_meta():
            model = add_adapters(model, peft)
    twins = _MetaTwins()
    for module in model.modules():  # whatever got its memory after it was registered
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = twins.of(parameter)
    return model


def materialize(
    half_or_model: DeviceHalf | EdgeHalf | DeviceEncoder | ServerEncoder | nn.Module,
    state: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
) -> None:
    """Give every parameter of a skeleton its received tensor, and move the whole to `device`.

    Tensors already on `device` are taken over without a copy. One name is enough for a tied parameter.

    Parameters
    ----------
    half_or_model
        A half or a model; parameters that already have memory may be left out of `state`.
    state
        Tensors by the whole model's state-dict names, persistent buffers included.
    device
        Where the parameters shall live.

    Raises
    ------
    TensorError
        A name is unknown or missing, or a shape or dtype does not fit. Nothing has changed then.
    """
    model = half_or_model if isinstance(half_or_model, nn.Module) else half_or_model.model
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    slots: dict[str, Tensor] = {name: p for p, aliases in names.items() for name in aliases}
    persistent = model.state_dict(keep_vars=True)
    slots.update({name: tensor for name, tensor in persistent.items() if name not in slots})
    for name, tensor in state.items():
        if name not in slots:
            raise TensorError(
                f"`{name}` was received but {type(model).__name__} does not hold it here; expected only this "
                "half's tensors. Check that both sides cut the same model at the same layer."
            )
        _check_fits(name, tensor, slots[name])
    missing = [a[0] for p, a in names.items() if p.is_meta and not any(name in state for name in a)]
    if missing:
        raise TensorError(
            f"`{missing[0]}` of {type(model).__name__} was not received ({len(missing)} missing); expected "
            "every parameter that the half holds. Send all units that Layout.units(cut) lists."
        )
    for parameter, aliases in names.items():
        received = next((state[name] for name in aliases if name in state), None)
        if received is not None:
            filled = nn.Parameter(received.detach().to(device), requires_grad=parameter.requires_grad)
            for name in aliases:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._parameters[leaf] = filled
    trained = {name for aliases in names.values() for name in aliases}
    # A server encoder has more to move than its model's parameters and buffers.
    (half_or_model if isinstance(half_or_model, ServerEncoder) else model).to(device)
    with torch.no_grad():
        for name, buffer in model.state_dict().items():
            if name in state and name not in trained:
                buffer.copy_(state[name])


def _check_fits(name: str, tensor: Tensor, slot: Tensor) -> None:
    if tensor.shape != slot.shape or tensor.dtype != slot.dtype:
        raise TensorError(
            f"`{name}` has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; expected "
            f"{tuple(slot.shape)} and {slot.dtype}. Build the model with the same config and dtype on both "
            "sides."
        )
