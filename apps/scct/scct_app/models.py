"""The app's models by name: ``builtin``, or a name or path that ``from_pretrained`` takes.

The built-in encoder (SLM) is a small ModernBERT, the built-in language model (LLM) a small Llama: `flwr_splitkd.small_chain`.
They share a tokenizer; named ones have their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flwr_splitkd.models import PretrainedModel
from flwr_splitkd.small_chain.models import TOKENIZER_FOLDER, models_folder

BUILTIN = "builtin"


def load_slm_tokenizer(name: str = BUILTIN, **options: Any) -> PreTrainedTokenizerBase:
    """Return the encoder's tokenizer; ``options`` go to ``from_pretrained``."""
    return _tokenizer(name, options)


def load_llm_tokenizer(name: str = BUILTIN, **options: Any) -> PreTrainedTokenizerBase:
    """Return the language model's tokenizer; ``options`` go to ``from_pretrained``."""
    return _tokenizer(name, options)


def slm_folder() -> Path:
    """Return the folder of the built-in encoder; train it first if the cache has none."""
    return models_folder() / "slm"


def llm_folder() -> Path:
    """Return the folder of the built-in language model; train it first if the cache has none."""
    return models_folder() / "llm"


def slm_builder(name: str = BUILTIN, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds the encoder; ``options`` go to ``from_pretrained``."""
    return PretrainedModel(slm_folder() if name == BUILTIN else name, task="encoder", **options)


def llm_builder(name: str = BUILTIN, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds the language model; ``options`` go to ``from_pretrained``."""
    return PretrainedModel(llm_folder() if name == BUILTIN else name, **options)


def model_sources(
    slm: str, slm_tokenizer: str, llm: str | None, llm_tokenizer: str, *, dtype: str, run_folder: Path
) -> dict[str, str | None]:
    """Return where the models of a run are, for ``config.json``: `flwr-splitkd ask` asks them by it."""
    tokenizer = run_folder / "tokenizer"
    if BUILTIN in (slm_tokenizer, llm_tokenizer):  # another version of the package may have another one
        shutil.copytree(TOKENIZER_FOLDER, tokenizer, dirs_exist_ok=True)
    return {
        "slm": str(slm_folder()) if slm == BUILTIN else slm,
        "slm_tokenizer": str(tokenizer) if slm_tokenizer == BUILTIN else slm_tokenizer,
        "llm": str(llm_folder()) if llm == BUILTIN else llm,
        "llm_tokenizer": str(tokenizer) if llm_tokenizer == BUILTIN else llm_tokenizer,
        "dtype": dtype,
    }


def _tokenizer(name: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    source = TOKENIZER_FOLDER if name == BUILTIN else name
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    return tokenizer
