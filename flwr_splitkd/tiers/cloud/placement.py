"""Where the LLM computes, and that one process serves it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flwr_splitkd.errors import ConfigError

__all__ = ["build_llm", "check_one_process", "device_words"]

_PLACED_BY = ("device_map", "tp_plan", "quantization_config")
"""Options of ``from_pretrained`` that decide where the weights are; moving them afterwards fails, or undoes it."""


def build_llm(builder: Callable[[], nn.Module], compute_device: str | None = None) -> nn.Module:
    """Build the LLM and put it where it computes.

    Parameters
    ----------
    builder
        As `CloudSetup.llm`.
    compute_device
        A torch device. When not given: the first GPU, if there is one and the model is in one piece on the CPU; one that its
        options have placed (``device_map``, quantisation), or its builder, stays where it is.

    Raises
    ------
    ConfigError
        If torch does not know the device, or cannot use it.
    """
    llm = builder()
    if not compute_device and not (torch.cuda.is_available() and _may_move(builder, llm)):
        return llm
    wanted = compute_device or "cuda"
    try:
        return llm.to(torch.device(wanted))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"`compute_device` is {wanted!r}, and the language model cannot be moved there ({str(error).partition(chr(10))[0]}); "
            "expected a device of this machine with room for it, such as 'cpu', and none with `device_map` or quantisation."
        ) from error


def device_words(llm: nn.Module) -> str:
    """Where the weights are, such as ``cuda:0``; of several devices each, once."""
    return ", ".join(sorted({str(parameter.device) for parameter in llm.parameters()})) or "cpu"


def check_one_process(builder: Callable[[], nn.Module], environment: Mapping[str, str] | None = None) -> None:
    """Refuse an LLM that several processes would have to compute together.

    Under torchrun each of them would open a cloud of its own: the first gets the port and the state, and nobody has the
    others take part in a forward pass.

    Raises
    ------
    ConfigError
        If the options have a ``tp_plan``, or this is one of several processes of torchrun.
    """
    plan = _options(builder).get("tp_plan")
    if plan is not None:
        raise ConfigError(
            f"`tp_plan` is {plan!r}; expected none: tensor parallelism needs a process for each GPU, and one process serves the "
            'language model. Set device_map = "auto", which spreads its layers over the GPUs of this machine.'
        )
    size = (os.environ if environment is None else environment).get("WORLD_SIZE", "")
    if size.isdecimal() and int(size) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {size} in the environment; expected 1 or none: one process serves the language model. Start the cloud "
            'without torchrun, and set device_map = "auto" for several GPUs.'
        )


def _options(builder: Callable[[], nn.Module]) -> Mapping[str, Any]:
    options = getattr(builder, "options", None)
    return options if isinstance(options, Mapping) else {}


def _may_move(builder: Callable[[], nn.Module], llm: nn.Module) -> bool:
    placed = any(_options(builder).get(name) is not None for name in _PLACED_BY)
    placed = placed or hasattr(llm, "hf_device_map") or bool(getattr(llm, "is_quantized", False))
    return not placed and all(parameter.device.type == "cpu" for parameter in llm.parameters())
