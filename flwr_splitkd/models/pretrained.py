"""A pretrained transformers model: whole, as a skeleton, or in part."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.utils.hub import cached_file

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models.skeleton import parameters_on_meta

__all__ = ["PretrainedModel"]

Task = Literal["causal-lm", "masked-lm", "sequence-classification", "encoder"]

_AUTO_CLASSES: dict[str, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "masked-lm": AutoModelForMaskedLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "encoder": AutoModel,
}
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class PretrainedModel:
    """Builder of a model by name or path.

    Calling it returns the whole model. :meth:`skeleton` builds the structure alone, and :meth:`load_part`
    reads single tensors, so that a device never holds more than its part.

    Parameters
    ----------
    name_or_path
        Name on the Hugging Face hub, or a folder that ``save_pretrained`` wrote.
    task
        What the model is for; chooses the ``AutoModelFor...`` class. An ``"encoder"`` is a base model without a head, and
        without a pooler too, which nobody would train.
    **options
        As for ``from_pretrained``: ``dtype``, ``revision``, ``num_labels``, ``attn_implementation``, ...

    Raises
    ------
    ConfigError
        `task` is unknown.
    """

    def __init__(self, name_or_path: str | Path, *, task: Task = "causal-lm", **options: Any) -> None:
        if task not in _AUTO_CLASSES:
            raise ConfigError(f"`task` is {task!r}; expected one of {sorted(_AUTO_CLASSES)}.")
        self.name_or_path = str(name_or_path)
        self.task = task
        self.options = options

    def __repr__(self) -> str:
        """Show what the builder was made with, apart from access tokens."""
        shown = {k: v for k, v in self.options.items() if k != "token"}
        options = "".join(f", {k}={v!r}" for k, v in shown.items())
        return f"PretrainedModel({self.name_or_path!r}, task={self.task!r}{options})"

    def __call__(self) -> nn.Module:
        """Load the whole model."""
        auto, options = _AUTO_CLASSES[self.task], self.options
        if self.task == "encoder":
            kind: Any = type(self.skeleton())
            if "add_pooling_layer" in inspect.signature(kind).parameters:
                auto, options = kind, {**options, "add_pooling_layer": False}
        model: nn.Module = auto.from_pretrained(self.name_or_path, **options)
        return self._without_pooler(model)

    def skeleton(self) -> nn.Module:
        """Build the model from its config alone, parameters on the meta device and buffers real."""
        options = {k: v for k, v in self.options.items() if k not in ("dtype", "attn_implementation")}
        config, _ = AutoConfig.from_pretrained(self.name_or_path, return_unused_kwargs=True, **options)
        settings: dict[str, Any] = {"dtype": self._dtype(config)}
        if "attn_implementation" in self.options:
            settings["attn_implementation"] = self.options["attn_implementation"]
        with parameters_on_meta():
            model: nn.Module = _AUTO_CLASSES[self.task].from_config(config, **settings)
        return self._without_pooler(model)

    def _without_pooler(self, model: nn.Module) -> nn.Module:
        if self.task == "encoder" and isinstance(getattr(model, "pooler", None), nn.Module):
            model._modules["pooler"] = None
        return model

    def _dtype(self, config: Any) -> torch.dtype:
        wanted = self.options.get("dtype", "auto")
        if wanted == "auto":
            wanted = getattr(config, "dtype", None) or torch.float32
        resolved = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
        if not isinstance(resolved, torch.dtype):
            raise ConfigError(f"`dtype` is {wanted!r}; expected a torch dtype such as 'bfloat16', or 'auto'.")
        return resolved

    def load_part(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read only the named tensors from the safetensors files.

        Parameters
        ----------
        names
            State-dict names of the model, e.g. :meth:`DeviceHalf.state_names`.

        Returns
        -------
        dict
            Tensors by these names, floating-point ones in the model's dtype, on the CPU.

        Raises
        ------
        StoreError
            There are no safetensors files, or they do not hold a tensor.
        """
        skeleton = self.skeleton()
        targets = skeleton.state_dict(keep_vars=True)
        files = self._files()
        found: dict[str, tuple[Path, str]] = {}
        for name in names:
            stored = next((key for key in _stored_names(skeleton, targets, name) if key in files), None)
            if stored is None:
                raise StoreError(
                    f"`{name}` is not in the safetensors files of {self.name_or_path!r}; expected it under "
                    "this name, since a part is read without conversion. Load the model once with "
                    "from_pretrained on a larger machine, or receive the part from the edge."
                )
            found[name] = (files[stored], stored)
        loaded: dict[str, Tensor] = {}
        for path in sorted({path for path, _ in found.values()}):
            with safe_open(path, framework="pt", device="cpu") as file:
                for name, (where, stored) in found.items():
                    if where == path:
                        loaded[name] = file.get_tensor(stored).to(targets[name].dtype)
        return {name: loaded[name] for name in found}

    def _files(self) -> Mapping[str, Path]:
        """Map each stored tensor to the file that holds it."""
        index = self._locate("model.safetensors.index.json")
        if index is not None:
            try:
                weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (OSError, ValueError, KeyError) as error:
                raise StoreError(
                    f"{index} cannot be read as a safetensors index: {error!r}. Save the model again."
                ) from error
            parts = {part: self._located(part) for part in sorted(set(weight_map.values()))}
            return {name: parts[part] for name, part in weight_map.items()}
        path = self._located("model.safetensors")
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict.fromkeys(file.keys(), path)

    def _locate(self, filename: str) -> Path | None:
        hub = {k: v for k, v in self.options.items() if k in _HUB_OPTIONS}
        path = cached_file(
            self.name_or_path,
            filename,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        return Path(path) if path is not None else None

    def _located(self, filename: str) -> Path:
        path = self._locate(filename)
        if path is None:
            raise StoreError(
                f"{self.name_or_path!r} has no {filename}; expected safetensors files, which can be read in "
                "part. Save the model with save_pretrained()."
            )
        return path


def _stored_names(model: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Names that a checkpoint may use for the tensor `name`, most likely first."""
    aliases = [
        name,
        *(other for other, tensor in state.items() if tensor is state.get(name) and other != name),
    ]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    # A checkpoint of the bare base model lacks its prefix, and one with a head has it where the base model has none.
    shorter = [a.removeprefix(prefix) for a in aliases if a.startswith(prefix)]
    return aliases + shorter + [prefix + a for a in aliases if len(prefix) > 1]
