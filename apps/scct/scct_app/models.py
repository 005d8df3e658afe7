"""The app's models by name: ``builtin``, or a name or path that ``from_pretrained`` takes.

The built-in encoder (SLM) is a small ModernBERT, the built-in language model (LLM) a small Llama. They share a tokenizer;
named ones have their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerBase,
)

from flwr_splitkd.data.questions import Question, QuestionConfig, split_questions
from flwr_splitkd.models import PretrainedModel
from scct_app.pretraining import Progress, Recipe, log_progress, pretrained_models

BUILTIN = "builtin"

# Part of the app rather than trained where it runs: Python versions document themselves differently, and device and
# cloud must mean the same token by the same id. Made on Python 3.11 by train_tokenizer(..., 2048, words_apart=True)
# from the public documents and the public questions (contexts, questions and answers). Words apart, because an answer
# stands after a bracket or an equals sign in the context, and must be the same tokens by itself.
_TOKENIZER_FOLDER = Path(__file__).parent / "tokenizer"

SLM_RECIPE = Recipe(steps=1200, learning_rate=2.5e-3)
LLM_RECIPE = Recipe(steps=1000, learning_rate=2e-3)
BOTH_RECIPE = Recipe(steps=1200, learning_rate=1.5e-3)


def load_slm_tokenizer(name: str = BUILTIN, **options: Any) -> PreTrainedTokenizerBase:
    """Return the encoder's tokenizer; ``options`` go to ``from_pretrained``."""
    return _tokenizer(name, options)


def load_llm_tokenizer(name: str = BUILTIN, **options: Any) -> PreTrainedTokenizerBase:
    """Return the language model's tokenizer; ``options`` go to ``from_pretrained``."""
    return _tokenizer(name, options)


def build_slm(progress: Progress = log_progress) -> nn.Module:
    """Return the built-in encoder, trained in the first run and read from the cache later."""
    return PretrainedModel(slm_folder(progress), task="encoder")()


def build_llm(progress: Progress = log_progress) -> nn.Module:
    """Return the built-in language model, trained in the first run and read from the cache later."""
    return PretrainedModel(llm_folder(progress))()


def slm_folder(progress: Progress = log_progress) -> Path:
    """Return the folder of the built-in encoder; train it first if the cache has none."""
    return _models_folder(progress) / "slm"


def llm_folder(progress: Progress = log_progress) -> Path:
    """Return the folder of the built-in language model; train it first if the cache has none."""
    return _models_folder(progress) / "llm"


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
    if BUILTIN in (slm_tokenizer, llm_tokenizer):  # the app itself lies where Flower installs it, and not for long
        shutil.copytree(_TOKENIZER_FOLDER, tokenizer, dirs_exist_ok=True)
    return {
        "slm": str(slm_folder()) if slm == BUILTIN else slm,
        "slm_tokenizer": str(tokenizer) if slm_tokenizer == BUILTIN else slm_tokenizer,
        "llm": str(llm_folder()) if llm == BUILTIN else llm,
        "llm_tokenizer": str(tokenizer) if llm_tokenizer == BUILTIN else llm_tokenizer,
        "dtype": dtype,
    }


def slm_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> ModernBertConfig:
    """Return the built-in encoder's config: 4 layers of width 128, every other one for neighbours alone."""
    settings: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 260,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "initializer_range": 0.05,
        "cls_token_id": tokenizer.bos_token_id,
        "sep_token_id": tokenizer.eos_token_id,
    }
    return ModernBertConfig(vocab_size=len(tokenizer), **_special(tokenizer), **{**settings, **changes})


def llm_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> LlamaConfig:
    """Return the built-in language model's config: 3 layers of width 128."""
    settings: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 344,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
    }
    return LlamaConfig(vocab_size=len(tokenizer), **_special(tokenizer), **{**settings, **changes})


def public_questions() -> tuple[Question, ...]:
    """Return what the built-in models are trained on: public questions in four wordings."""
    return tuple(question for salt in range(4) for question in split_questions(QuestionConfig(), 1, salt=salt).public)


def _models_folder(progress: Progress) -> Path:
    tokenizer = load_slm_tokenizer()
    recipes = (SLM_RECIPE, LLM_RECIPE, BOTH_RECIPE)
    configs = (slm_config(tokenizer), llm_config(tokenizer))
    return pretrained_models(*configs, recipes, tokenizer, public_questions, progress=progress)


def _tokenizer(name: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    source = _TOKENIZER_FOLDER if name == BUILTIN else name
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    return tokenizer


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
