"""The two models: an encoder (SLM), which is a small ModernBERT, and a language model (LLM), a small Llama, with one tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, ModernBertConfig, PreTrainedTokenizerBase

from flwr_splitkd.data.questions import Question, QuestionConfig, split_questions
from flwr_splitkd.small_chain.pretraining import Progress, Recipe, log_progress, pretrained_models

__all__ = ["RECIPES", "TOKENIZER_FOLDER", "Recipes", "llm_config", "load_tokenizer", "models_folder", "slm_config"]

# Part of the package rather than trained where it runs: Python versions document themselves differently, and device and
# cloud must mean the same token by the same id. Made on Python 3.11 by train_tokenizer(..., 2048, words_apart=True)
# from the public documents and the public questions (contexts, questions and answers). Words apart, because an answer
# stands after a bracket or an equals sign in the context, and must be the same tokens by itself.
TOKENIZER_FOLDER = Path(__file__).parent / "tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """How the encoder, the language model, and then both together are trained."""

    slm: Recipe
    llm: Recipe
    both: Recipe

    def shortened(self, share: float) -> Recipes:
        """Return the same with a share of the steps; the models are then worse."""
        parts = [replace(one, steps=max(1, round(share * one.steps))) for one in (self.slm, self.llm, self.both)]
        return Recipes(slm=parts[0], llm=parts[1], both=parts[2])


RECIPES = Recipes(
    slm=Recipe(steps=1200, learning_rate=2.5e-3),
    llm=Recipe(steps=1000, learning_rate=2e-3),
    both=Recipe(steps=1200, learning_rate=1.5e-3),
)


def load_tokenizer(**options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of both; ``options`` go to ``from_pretrained``."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(TOKENIZER_FOLDER, **options)
    return tokenizer


def models_folder(recipes: Recipes = RECIPES, progress: Progress = log_progress) -> Path:
    """Return the folder with the trained ``slm`` and ``llm``; train them first if the cache has none."""
    tokenizer = load_tokenizer()
    configs = (slm_config(tokenizer), llm_config(tokenizer))
    parts = (recipes.slm, recipes.llm, recipes.both)
    return pretrained_models(*configs, parts, tokenizer, public_questions, progress=progress)


def slm_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> ModernBertConfig:
    """Return the encoder's config: 4 layers of width 128, every other one for neighbours alone."""
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
    """Return the language model's config: 3 layers of width 128."""
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
    """Return what the models are trained on: public questions in four wordings."""
    return tuple(question for salt in range(4) for question in split_questions(QuestionConfig(), 1, salt=salt).public)


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
