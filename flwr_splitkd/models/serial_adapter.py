"""The serial adapter of SCCT: a small bottleneck after some of a frozen model's linear layers.

PEFT has none, and takes none from outside: its registry knows only the types of its own enumeration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flwr_splitkd.errors import ConfigError

__all__ = ["SerialAdapterConfig", "SerialAdapters"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
_USUAL_TARGETS = (
    ("o_proj", "down_proj"),  # Llama, Mistral, Qwen, Gemma, Phi-3
    ("out_proj", "c_proj"),  # GPT-Neo
    ("c_proj",),  # GPT-2, both in attention and after it
    ("out_proj", "fc_out"),  # GPT-J
    ("out_proj", "fc2"),  # OPT
    ("dense", "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    ("dense", "fc2"),  # Phi
)
"""Names of the layers that end attention and that end the MLP, by family; the first that a model has all of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialAdapterConfig:
    """Which layers of a model get an adapter, and its shape.

    Parameters
    ----------
    bottleneck
        Width between the two projections, at least 1.
    activation
        Between the two projections: gelu, relu, silu or tanh.
    target_modules
        Last parts of the dotted names of the linear layers that are followed by an adapter. None stands for the layers that
        end attention and the MLP: ``("o_proj", "down_proj")`` in models of Llama's kind, what corresponds to it in others.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    bottleneck: int = 64
    activation: str = "gelu"
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if isinstance(self.bottleneck, bool) or not isinstance(self.bottleneck, int) or self.bottleneck < 1:
            raise ConfigError(f"`bottleneck` is {self.bottleneck!r}; expected an integer of at least 1.")
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(f"`activation` is {self.activation!r}; expected one of {', '.join(_ACTIVATIONS)}.")
        targets = self.target_modules
        if targets is None:
            return
        if not isinstance(targets, tuple) or not targets or not all(isinstance(t, str) and t for t in targets):
            raise ConfigError(
                f"`target_modules` is {targets!r}; expected a tuple of names of linear layers, such as ('o_proj', "
                "'down_proj'), or None for the usual ones."
            )


class _Adapter(nn.Module):
    def __init__(self, width: int, bottleneck: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self._activation = activation
        # An untrained adapter changes nothing: training starts from the model as it is.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*positions width"]) -> Float[Tensor, "*positions width"]:
        narrow = x.to(self.down.weight.device, self.down.weight.dtype)
        change: Tensor = self.up(self._activation(self.down(narrow)))
        return x + change.to(x.device, x.dtype)


class SerialAdapters(nn.Module):
    """Houlsby adapters for one task: ``x + up(act(down(x)))`` after each target layer (SCCT, section III-A).

    They take part only inside :meth:`attached`, through forward hooks. The model's modules, names and state dict stay as
    they are, several tasks can share one model, and it does not matter how a layer stores its weight. Weights are float32
    and lie where the layer's lie.

    Parameters
    ----------
    model
        The model that they are made for.
    config
        Shape and places.
    seed
        Of the initial weights; the global generator is left alone.

    Raises
    ------
    ConfigError
        If the model has none of the target layers.
    """

    def __init__(self, model: nn.Module, config: SerialAdapterConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_names = _targets(model, config.target_modules)
        self._adapters = nn.ModuleDict()
        activation = _ACTIVATIONS[config.activation]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for name in self.layer_names:
                layer = model.get_submodule(name)
                # Made on the CPU, so that the same seed gives the same weights wherever the layer lies.
                adapter = _Adapter(_width(layer) or 0, config.bottleneck, activation).to(torch.float32)
                self._adapters[_key(name)] = adapter.to(_device(layer))

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Parameters by ``<layer>.down.weight`` and so on, in the model's order."""
        return {
            f"{layer}.{name}": parameter
            for layer in self.layer_names
            for name, parameter in self._adapters[_key(layer)].named_parameters()
        }

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Let the adapters take part in `model`. A backward pass that computes layers again belongs inside, too."""
        handles = [
            # Looked up by name: another tuner may have wrapped the layer since.
            model.get_submodule(name).register_forward_hook(_after(self._adapters[_key(name)]))
            for name in self.layer_names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _after(adapter: nn.Module) -> Any:
    def hook(_layer: nn.Module, _args: Any, output: Tensor) -> Tensor:
        changed: Tensor = adapter(output)
        return changed

    return hook


def _key(name: str) -> str:
    return name.replace(".", "/")


def _width(layer: nn.Module) -> int | None:
    """Width of what a linear layer gives; GPT-2's Conv1D calls it `nf`, quantised ones keep torch's word."""
    for attribute in ("out_features", "nf"):
        width = getattr(layer, attribute, None)
        if isinstance(width, int):
            return width
    return None


def _device(layer: nn.Module) -> torch.device:
    parameter = next(layer.parameters(), None)
    # Weights that are on no device until they are used (offloaded ones) are not where an adapter could be.
    return torch.device("cpu") if parameter is None or parameter.is_meta else parameter.device


def _targets(model: nn.Module, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    linear = [
        name
        for name, module in model.named_modules()
        # What a LoRA layer is made of is no layer of the model.
        if _width(module) is not None and not any(p.startswith(("lora_", "base_layer")) for p in name.split("."))
    ]

    def found(target: str) -> list[str]:
        return [name for name in linear if name == target or name.endswith("." + target)]

    if wanted is None:
        wanted = next((names for names in _USUAL_TARGETS if all(found(name) for name in names)), None)
    missing = [name for name in wanted or () if not found(name)]
    if wanted is None or missing:
        raise ConfigError(
            f"`target_modules` is {missing[0] if missing else None!r} and {type(model).__name__} has no such layer; expected "
            f"names of linear layers. It has: {', '.join(sorted({name.rpartition('.')[2] for name in linear})) or 'none'}."
        )
    chosen = {name for target in wanted for name in found(target)}
    return tuple(name for name in linear if name in chosen)
