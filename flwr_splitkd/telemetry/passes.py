"""One forward and backward pass of the blocks of a model, and the moments at which each begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.split import Layout
from flwr_splitkd.split.surgery import ReachedCutSignal, device_arguments

__all__ = ["Clock", "clock_of", "marks", "own_randomness", "place", "reach_the_top", "step"]


class Clock(Protocol):
    """Tells how long work takes on a device."""

    def mark(self) -> Any:
        """Remember this moment of the device's work."""

    def differences(self, marks: Sequence[Any]) -> list[float]:
        """Seconds between each mark and the next, once the work up to the last is done."""


def clock_of(device: torch.device) -> Clock:
    """Return a clock for the work of a device."""
    return _CudaClock(device) if device.type == "cuda" else _ProcessorClock()


class _ProcessorClock:
    def mark(self) -> float:
        return time.perf_counter()

    def differences(self, marks: Sequence[float]) -> list[float]:
        return [then - first for first, then in pairwise(marks)]


class _CudaClock:
    """Events in the stream of the work: the processor runs ahead of a GPU, its own clock would tell nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def differences(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize(self._device)
        return [1e-3 * first.elapsed_time(then) for first, then in pairwise(marks)]


def step(model: nn.Module, layout: Layout, tokens: Tensor, clock: Clock) -> tuple[list[float], list[float]]:
    """Seconds of the embedding and of each block forward, ``[1 + L]``, and of each block backward, ``[L]``."""
    model.zero_grad(set_to_none=True)
    with marks(model, layout, clock.mark) as (forward, backward):
        start = clock.mark()
        top = reach_the_top(model, layout, tokens)
        gradient = torch.randn_like(top)
        backward.append(clock.mark())
        top.backward(gradient)  # type: ignore[no-untyped-call]
    return clock.differences([start, *forward]), clock.differences(backward)[::-1]


@contextmanager
def marks(model: nn.Module, layout: Layout, mark: Callable[[], Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Mark where the hidden states come into each block and leave the last, and where their gradients do.

    A gradient of a block's input is ready when all of the block's gradients are: autograd takes what was computed last first.
    """
    forward: list[Any] = []
    backward: list[Any] = []

    def note_gradient(_: Tensor) -> None:
        backward.append(mark())

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not forward:
            # Makes the first block's backward pass like the others', and ends it there. A block may work in place.
            hidden = hidden.detach().requires_grad_().clone()
        hidden.register_hook(note_gradient)
        forward.append(mark())
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def leave(_: nn.Module, _args: Any, output: Any) -> None:
        forward.append(mark())
        raise ReachedCutSignal(output[0] if isinstance(output, tuple) else output)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(enter, with_kwargs=True) for name in layout.block_names
    ]
    handles.append(model.get_submodule(layout.block_names[-1]).register_forward_hook(leave))
    try:
        yield forward, backward
    finally:
        for handle in handles:
            handle.remove()


def reach_the_top(model: nn.Module, layout: Layout, tokens: Tensor) -> Tensor:
    """Run the model up to its head, inside `marks`."""
    try:
        model(**device_arguments(model, layout, {layout.data_input: tokens}))
    except ReachedCutSignal as signal:
        return signal.hidden
    raise ConfigError(
        f"{type(model).__name__} finished without running `{layout.block_names[-1]}`; expected every block to run. Name its blocks."
    )


def place(model: nn.Module, layout: Layout, device: torch.device) -> None:
    """Give what is below the head memory on a device, with random weights where it had none."""
    head = set(layout.head)
    placed: dict[int, nn.Parameter] = {}  # a parameter that is used twice stays one
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for leaf, parameter in module._parameters.items():
            if parameter is None or prefix + leaf in head:
                continue
            if id(parameter) not in placed:
                placed[id(parameter)] = _placed(parameter, leaf, device)
            module._parameters[leaf] = placed[id(parameter)]
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = buffer.to(device)


def _placed(parameter: nn.Parameter, leaf: str, device: torch.device) -> nn.Parameter:
    if not parameter.is_meta:
        parameter.data = parameter.data.to(device)
        return parameter
    values = torch.empty_like(parameter, device=device)
    if values.dim() > 1:
        values.normal_(std=0.02)
    else:
        values.fill_(1.0 if leaf == "weight" else 0.0)  # scales of norms, and biases
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Draw from seed 0, and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
