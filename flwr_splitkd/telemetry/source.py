"""A model to measure: its architecture from a config or a function, its weights random."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import build_skeleton
from flwr_splitkd.split import find_layout

__all__ = ["Source", "alike_blocks", "find_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model comes from.

    Parameters
    ----------
    name
        For messages and the profile.
    config
        Of transformers; None if a function builds the model.
    build
        Builds the model; None if it has a config.
    """

    name: str
    config: Any = None
    build: Callable[[], nn.Module] | None = None

    def skeleton(self, *, dtype: torch.dtype | None = None, layers: int | None = None) -> nn.Module:
        """Build the model with its parameters on the meta device.

        Parameters
        ----------
        dtype
            Of its parameters; float32 for a config and what the function chooses, when not given.
        layers
            Only so many layers, at least 2; all when not given.

        Raises
        ------
        ConfigError
            If the config or the function gives no model, or `layers` is out of range or not for a function to say.
        """
        if self.build is not None:
            if layers is not None:
                raise ConfigError(
                    f"`layers` is {layers} and {self.name} is a function; expected a model with a config. Have the function "
                    "build fewer layers, or give the folder of a config.json."
                )
            model = build_skeleton(self.build)
            return model if dtype is None else model.to(dtype)
        config = self.config if layers is None else _with_layers(self.config, layers, self.name)
        try:
            # The base model: the head of a task never runs on the device, and costs an edge little beside the blocks.
            return build_skeleton(lambda: AutoModel.from_config(config, dtype=dtype or torch.float32))  # type: ignore[no-untyped-call]
        except ConfigError:
            raise
        except Exception as error:  # whatever a config's values lead to in any of transformers' models
            raise ConfigError(
                f"{self.name} cannot be built from its config: {_line(error)} Expected the config of a model of transformers."
            ) from error


def find_source(model: str) -> Source:
    """Find a model by what a person calls it.

    Parameters
    ----------
    model
        A config.json or a folder with one, ``"package.module:function"`` for a function that builds the model, or a name on
        the Hugging Face hub, of which only the config is read.

    Raises
    ------
    ConfigError
        If there is none.
    """
    path = Path(model)
    if not path.exists() and ":" in model:
        return Source(name=model, build=_function(model))
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(
            f"{model!r} is a folder without a config.json; expected one as save_pretrained() writes it. Choose another."
        )
    if not path.exists() and (model.startswith((".", "/", "~")) or path.suffix == ".json"):
        raise ConfigError(f"{model!r} does not exist; expected a config.json or a folder with one. Check the path.")
    try:
        config = AutoConfig.from_pretrained(model)
    except Exception as error:  # of the hub's, of the file's syntax, of the checks that each config has
        raise ConfigError(
            f"{model!r} is no known model; expected a config.json, a folder with one, 'package.module:function', or a name on the "
            f"Hugging Face hub. {_line(error)}"
        ) from error
    name = (path.resolve().parent if path.is_file() else path.resolve()).name if path.exists() else model
    return Source(name=name, config=config)


def alike_blocks(source: Source, layers: int) -> list[list[int]]:
    """For each block of the whole model, those of its first `layers` blocks that are like it in all that takes time.

    Raises
    ------
    ConfigError
        If a block is like none of them.
    """
    model = source.skeleton()
    kinds = [_kind(model.get_submodule(name)) for name in find_layout(model).block_names]
    alike = [[index for index in range(min(layers, len(kinds))) if kinds[index] == kind] for kind in kinds]
    if [] in alike:
        first = alike.index([])
        enough = max(kinds.index(kind) for kind in kinds) + 1
        raise ConfigError(
            f"`layers` is {layers} and block {first} of {source.name} is like none of them; expected at least {enough}, so that "
            "each kind of block is measured."
        )
    return alike


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """What two blocks that take equally long have in common: modules, shapes of weights, and settings such as a window."""
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
    settings = Counter(
        (path, type(module).__name__, name, value)
        for path, module in block.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, str | int) and not name.startswith(("_", "layer_id", "layer_index")) and name != "training"
    )
    return shapes, frozenset(settings.items())


def _with_layers(config: Any, layers: int, name: str) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    whole = getattr(text, "num_hidden_layers", None)
    if not isinstance(whole, int) or not 2 <= layers <= whole:
        bound = f"2..{whole}" if isinstance(whole, int) else "a config that says `num_hidden_layers`"
        raise ConfigError(f"`layers` is {layers}; expected {bound} for {name}. Leave it out to measure all.")
    for setting, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, setting, value[:layers])  # an entry for each layer, such as `layer_types`
    text.num_hidden_layers = layers
    return config


def _function(path: str) -> Callable[[], nn.Module]:
    module_name, _, names = path.partition(":")
    try:
        found: Any = import_module(module_name)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path!r} cannot be imported: {_line(error)} Expected 'package.module:function', of an installed package or of the "
            "folder where you are."
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}; expected a function without arguments.")
    build: Callable[[], nn.Module] = found
    return build


def _line(error: Exception) -> str:
    """The beginning of a message as one line, with a full stop."""
    text = " ".join((str(error) or type(error).__name__).split())
    text = text if len(text) < 300 else text[:300].rpartition(" ")[0] + " ..."
    return text if text.endswith(".") else text + "."
