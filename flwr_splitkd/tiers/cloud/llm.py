"""The cloud's frozen LLM and the tasks that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models.prefix import PrefixedLLM
from flwr_splitkd.tiers.cloud.modules import ModuleHost
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.task import CloudTask

__all__ = ["CloudLLM"]


class CloudLLM:
    """One LLM for all tasks: frozen, with a module and a projection for each of them.

    Nothing here is safe to call from two threads at once: a task takes part by being put into the shared LLM.

    Parameters
    ----------
    llm
        A causal language model of transformers without adapters, in any dtype, quantised or spread over devices. It is frozen
        and set to evaluation mode.
    compute_device
        Where it is moved to; None leaves it where it is, which a quantised or spread one needs.

    Raises
    ------
    ConfigError
        If it cannot be fed with embeddings.
    """

    def __init__(self, llm: nn.Module, compute_device: torch.device | str | None = None) -> None:
        if compute_device is not None:
            llm.to(compute_device)
        self._prefixed = PrefixedLLM(llm)
        self.llm = llm.eval().requires_grad_(False)
        self.vocab_size, self.hidden_size = self._prefixed.vocab_size, self._prefixed.width
        self._host = ModuleHost(llm)
        self._tasks: dict[str, CloudTask] = {}

    @property
    def tasks(self) -> Mapping[str, CloudTask]:
        """By name, in the order in which they were added."""
        return MappingProxyType(self._tasks)

    def add_task(self, name: str, settings: TaskSettings) -> CloudTask:
        """Make a task's module and projection, with new weights that the settings' seed decides.

        Raises
        ------
        ConfigError
            If there is such a task, or the LLM has not the layers that the module is for.
        """
        if not name or name in self._tasks:
            known = f"names other than {sorted(self._tasks)}" if self._tasks else "a name"
            raise ConfigError(f"`name` of the task is {name!r}; expected {known}.")
        if settings.add_bos:
            self._prefixed.check_bos()
        task = CloudTask(name, self._prefixed, self._host.add(settings.peft, settings.seed), settings)
        self._tasks[name] = task
        return task
