"""A distilled student on the disk, as others load it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from flwr_splitkd.errors import StoreError
from flwr_splitkd.models.adapters import inner_model

__all__ = ["save_student"]


def save_student(model: nn.Module, folder: str | Path) -> None:
    """Save a student; the folder holds all of it or what it held before.

    A transformers model becomes a Hugging Face folder that ``from_pretrained`` loads. Adapters are merged into the base's
    weights, in place, so that the folder needs nothing else. Any other module becomes ``model.safetensors``, which
    ``safetensors.torch.load_model`` loads.

    Parameters
    ----------
    model
        The whole student; a `PeftModel` is of no other use afterwards.
    folder
        Replaced if it exists.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    wrapper: Any = model
    merged: Any = model if inner_model(model) is model else wrapper.merge_and_unload()
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        if callable(getattr(merged, "save_pretrained", None)):
            merged.save_pretrained(temporary)
        else:
            save_model(merged, str(temporary / "model.safetensors"))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(
            f"{folder} cannot be written: {error}. Free some disk space or check its permissions."
        ) from error
