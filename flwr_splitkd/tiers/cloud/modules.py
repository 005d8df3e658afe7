"""Modules of several tasks on one LLM, of which one at a time takes part."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig, SerialAdapters

__all__ = ["ModuleHost", "TaskModule"]


class TaskModule(Protocol):
    """What a task trains in the LLM."""

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """By names that say nothing of the task."""

    def active(self) -> AbstractContextManager[None]:
        """Let it take part, and no other; forward and backward pass belong inside."""


class ModuleHost:
    """Puts modules into an LLM.

    Outside of `TaskModule.active` none of them takes part: the LLM computes what it did before.

    Parameters
    ----------
    llm
        Frozen.
    """

    def __init__(self, llm: nn.Module) -> None:
        self._llm: Any = llm
        self._tuned: Any = None
        self._num_loras = 0

    def add(self, config: SerialAdapterConfig | LoraConfig, seed: int) -> TaskModule:
        """Make a new module; the global generator is left alone.

        Raises
        ------
        ConfigError
            If the LLM has no such layers, or a layer is one that tasks share.
        """
        if isinstance(config, SerialAdapterConfig):
            adapters = SerialAdapters(self._llm, config, seed=seed)
            return _Serial(adapters, self._llm)
        self._refuse_shared(config)
        name = f"splitkd_task_{self._num_loras}"
        # PEFT fills in what a configuration leaves open; the caller's stays as it is.
        own = copy.deepcopy(config)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                if self._tuned is None:
                    self._tuned = get_peft_model(self._llm, own, adapter_name=name)
                else:
                    self._tuned.add_adapter(name, own)
        except ValueError as error:  # PEFT's word for target modules that are not there
            raise ConfigError(f"`peft` does not fit {type(self._llm).__name__}: {error}") from error
        finally:
            if self._tuned is not None:
                self._tuned.base_model.disable_adapter_layers()
        self._num_loras += 1
        lora = _Lora(self._tuned, self._llm, name)
        if any(parameter.is_meta for parameter in lora.parameters_by_name().values()):
            raise ConfigError(
                "`peft` is a LoraConfig for layers that are on no device until they run; expected layers on a device. Give them "
                "one in the `device_map`, or take a SerialAdapterConfig."
            )
        return lora

    def _refuse_shared(self, config: LoraConfig) -> None:
        targets = config.target_modules
        shared = (self._llm.get_input_embeddings(), self._llm.get_output_embeddings())
        for path, module in self._llm.named_modules():
            if not any(module is one for one in shared) or targets is None:
                continue
            if isinstance(targets, str):
                hit = targets != "all-linear" and re.fullmatch(targets, path) is not None
            else:
                hit = any(path == target or path.endswith("." + target) for target in targets)
            if hit:
                raise ConfigError(
                    f"`target_modules` of the LoraConfig takes in {path!r}; expected layers between the LLM's embedding and "
                    "its output projection, which are used on their own, too."
                )


class _Serial:
    def __init__(self, adapters: SerialAdapters, llm: nn.Module) -> None:
        self._adapters, self._llm = adapters, llm

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        return self._adapters.parameters_by_name()

    def active(self) -> AbstractContextManager[None]:
        return self._adapters.attached(self._llm)


class _Lora:
    def __init__(self, tuned: Any, llm: nn.Module, name: str) -> None:
        self._tuned, self._name = tuned, name
        self._parameters = {
            path.replace(f".{name}", ""): parameter
            for path, parameter in llm.named_parameters()
            if name in path.split(".")
        }

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    @contextmanager
    def active(self) -> Iterator[None]:
        layers = self._tuned.base_model
        layers.enable_adapter_layers()
        layers.set_adapter(self._name)
        try:
            yield
        finally:
            layers.disable_adapter_layers()
