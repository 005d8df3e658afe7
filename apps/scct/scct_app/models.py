"""The app's models by name: ``builtin``, or a name or path that ``from_pretrained`` takes.

The built-in encoder (SLM) is a small RoBERTa, the built-in language model (LLM) a small Llama. They share a tokenizer;
named ones have their own.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    RobertaConfig,
)

from flwr_splitkd import data
from flwr_splitkd.data import DataConfig, Document
from flwr_splitkd.data.questions import Question, QuestionConfig, split_questions
from flwr_splitkd.models import PretrainedModel
from scct_app.pretraining import Progress, Recipe, log_progress, pretrained_llm, pretrained_slm

BUILTIN = "builtin"

# Part of the app rather than trained where it runs: Python versions document themselves differently, and device and
# cloud must mean the same token by the same id. Made on Python 3.11 by train_tokenizer(..., 2048, words_apart=True)
# from the public documents and the public questions (contexts, questions and answers). Words apart, because an answer
# stands after a bracket or an equals sign in the context, and must be the same tokens by itself.
_TOKENIZER_FOLDER = Path(__file__).parent / "tokenizer"

# Of the heads that `look_up_heads` sets: how sharply they look one token back, which frequencies count as slow, how
# sharply they match, and how loudly they bring what they found.
_SHARPNESS = 40.0
_SLOW = 0.005
_MATCH = 2.5
_BRING = 0.5

SLM_RECIPE = Recipe(steps=350, learning_rate=2e-3)
# Slow enough that the heads which look things up are not lost: at 1.5e-3 they were, within 200 steps.
LLM_RECIPE = Recipe(steps=1200, learning_rate=6e-4)


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
    documents, questions = public_text()
    tokenizer = load_slm_tokenizer()
    return pretrained_slm(slm_config(tokenizer), SLM_RECIPE, tokenizer, documents, questions, progress=progress)


def llm_folder(progress: Progress = log_progress) -> Path:
    """Return the folder of the built-in language model; train it first if the cache has none."""
    documents, questions = public_text()
    tokenizer = load_llm_tokenizer()
    return pretrained_llm(
        llm_config(tokenizer), LLM_RECIPE, tokenizer, documents, questions, prepare=look_up_heads, progress=progress
    )


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


def slm_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> RobertaConfig:
    """Return the built-in encoder's config: 6 layers of width 128."""
    settings: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "max_position_embeddings": 260,
        "initializer_range": 0.05,
    }
    return RobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, **_special(tokenizer), **{**settings, **changes})


def llm_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> LlamaConfig:
    """Return the built-in language model's config: 4 layers of width 128, with biases in its attention."""
    settings: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 344,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "initializer_range": 0.08,
        # So slow that most dimensions hardly turn over a context: what they hold can be compared at any distance.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    return LlamaConfig(vocab_size=len(tokenizer), **_special(tokenizer), **{**settings, **changes})


def look_up_heads(model: LlamaForCausalLM) -> None:
    """Give an untrained model the attention with which language models look things up.

    In the first layer every head looks at the token before its own and notes it; in the two after it, every head looks
    for notes of the present token, and brings what stands there: after "timeout=" it finds what followed "timeout=" before.
    Large models find this by themselves, over many million tokens of training; this one has a few minutes. (Olsson et
    al., "In-context Learning and Induction Heads", 2022, describe the heads.) Everything is trained from there on.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    first, *others = (layer.self_attn for layer in model.model.layers[:3])
    noted, turned, brought = (torch.linalg.qr(torch.randn(width, width))[0] for _ in range(3))
    # Keys point one way and queries that way turned back by one position, on the fast frequencies.
    fast = frequency[: max(1, size * 9 // 64)]
    key, query = torch.zeros(size), torch.zeros(size)
    key[: len(fast)] = math.sqrt(_SHARPNESS)
    query[: len(fast)] = math.sqrt(_SHARPNESS) * torch.cos(fast)
    query[size // 2 : size // 2 + len(fast)] = -math.sqrt(_SHARPNESS) * torch.sin(fast)
    slow = torch.tensor([place for place in range(size) if frequency[place % (size // 2)] < _SLOW])
    with torch.no_grad():
        for layer in model.model.layers:
            # Quiet at first: what the layers add must not drown the token that it is added to.
            layer.self_attn.o_proj.weight *= 0.05
            layer.mlp.down_proj.weight *= 0.05
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            first.q_proj.bias[rows], first.k_proj.bias[rows] = query, key
            first.q_proj.weight[rows] *= 0.05
            first.k_proj.weight[rows] *= 0.05
            first.v_proj.weight[rows] = noted[rows]
            first.o_proj.weight[:, rows] = 0.1 * turned @ noted[rows].T
            for attention in others:
                match = torch.zeros(size, width)
                match[slow] = torch.linalg.qr(torch.randn(width, len(slow)))[0].T
                attention.q_proj.weight[rows] = _MATCH * match
                attention.k_proj.weight[rows] = _MATCH * match @ turned.T
                attention.v_proj.weight[rows] = brought[rows]
                attention.o_proj.weight[:, rows] = _BRING * brought[rows].T


@lru_cache(maxsize=1)
def public_text() -> tuple[tuple[Document, ...], tuple[Question, ...]]:
    """Return what the built-in models are trained on: public documents, and questions in two wordings."""
    documents = data.split_documents(DataConfig(), num_partitions=1).teacher.documents
    asked = [split_questions(QuestionConfig(), 1, salt=salt).public for salt in (0, 1)]
    return documents, tuple(question for part in asked for question in part)


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
