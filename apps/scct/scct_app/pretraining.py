"""The built-in models: trained once on the public questions of the built-in data, then read from a cache on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerBase,
)

from flwr_splitkd.data import IGNORED_LABEL
from flwr_splitkd.data.questions import Question
from flwr_splitkd.data.questions.kept import built_in_data_version
from flwr_splitkd.store.made_once import made_once
from scct_app.exercises import Batch, exercises, finding_batches, saying_batches

Progress = Callable[[str, int, int, float], None]
Questions = Callable[[], Sequence[Question]]

_log = logging.getLogger("flwr")
_SHARE_OF_TEXT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How long and how fast a built-in model is trained.

    Parameters
    ----------
    steps
        Optimiser steps: the length of training is counted in steps, not in seconds, so that it is the same on every
        machine.
    batch_size
        Sequences per step.
    sequence_length
        Most tokens per sequence.
    learning_rate
        Peak rate of AdamW, reached after ``warmup_steps`` and lowered along a half cosine.
    warmup_steps
        Steps of linear warm-up.
    seed
        Seed of the initial weights and of the batches.
    num_threads
        Threads of torch while training, at most the machine's number of cores.
    """

    steps: int
    batch_size: int = 32
    sequence_length: int = 160
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    seed: int = 0
    num_threads: int = 2

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warmup * (0.03 + 0.97 * cosine)


def log_progress(name: str, step: int, steps: int, loss: float) -> None:
    """Log a tenth of the training at a time, in the words of Flower's log."""
    if step == 1 or step * 10 // steps != (step - 1) * 10 // steps:
        done = step * 10 // steps
        _log.info("%s [%s%s] step %d/%d, loss %.2f", name, "#" * done, "." * (10 - done), step, steps, loss)


class Finder(nn.Module):
    """An encoder, and what makes it show where the answer is.

    The loss is the cross entropy of the first and the last place of the answer, and that of the answer's tokens against
    padding elsewhere: the hidden states say what was asked for, and nothing where nothing was.
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.model = ModernBertModel(config)
        self.places = nn.Linear(config.hidden_size, 3)

    def hidden(self, batch: Batch) -> Tensor:
        """Return what the encoder hands on."""
        hidden: Tensor = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        return hidden

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss."""
        hidden, real = self.hidden(batch), batch["attention_mask"] != 0
        first, last, inside = self.places(hidden).masked_fill(~real.unsqueeze(-1), -1e4).unbind(-1)
        found = _missed(first, batch["first"]) + _missed(last, batch["last"])
        # Answers do not overlap: between a first and its last place more have begun than ended.
        within = batch["first"].long().cumsum(-1) > batch["last"].long().cumsum(-1) - batch["last"].long()
        found = found + nn.functional.binary_cross_entropy_with_logits(inside[real], within[real].float())
        words = batch["labels"] != IGNORED_LABEL
        if not bool(words.any()):
            return found
        logits = hidden[words] @ self.model.embeddings.tok_embeddings.weight.T
        return found + cross_entropy(logits, batch["labels"][words])


class Sayer(nn.Module):
    """A language model, and marks on the embeddings that it is to repeat.

    The loss is the cross entropy of the answer's tokens, and a share of that of the text before it.
    """

    def __init__(self, config: LlamaConfig, noise: float = 0.2) -> None:
        super().__init__()
        self.model = LlamaForCausalLM(config)
        self.marks = nn.Parameter(torch.randn(3, config.hidden_size) * 0.1)
        self.noise = noise

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss; embeddings are disturbed a little, as no projection will meet them exactly."""
        embedded = self.model.get_input_embeddings()
        prefix, labels = embedded(batch["input_ids"]), batch["labels"]
        noise = self.noise * torch.rand(len(prefix), 1, 1) * prefix.detach().std() * torch.randn_like(prefix)
        prefix = prefix + noise + batch["marks"] @ self.marks
        inputs = torch.cat([prefix, embedded(labels.clamp_min(0))], 1)
        mask = torch.cat([batch["attention_mask"], (labels != IGNORED_LABEL).long()], 1)
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        hidden = self.model.model(inputs_embeds=inputs, attention_mask=mask, position_ids=places).last_hidden_state
        start = prefix.shape[1] - 1
        said = labels != IGNORED_LABEL
        answer = cross_entropy(self.model.lm_head(hidden[:, start:-1][said]), labels[said])
        # A fifth of the places is enough to stay a model of the language, for a fifth of the price.
        words = (batch["attention_mask"][:, 1:] * batch["attention_mask"][:, :-1]).bool()
        words = words & (batch["input_ids"][:, 1:] != self.model.config.pad_token_id) & (torch.rand(words.shape) < 0.2)
        text = cross_entropy(self.model.lm_head(hidden[:, :start][words]), batch["input_ids"][:, 1:][words])
        return answer + _SHARE_OF_TEXT * text


def pretrained_llm(
    config: LlamaConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    *,
    root: Path | None = None,
    progress: Progress = log_progress,
) -> Path:
    """Return the folder of the trained language model; train it first if the cache has none for the same recipe.

    Parameters
    ----------
    config
        Its architecture.
    recipe
        How it is trained.
    tokenizer
        The tokenizer of both built-in models.
    questions
        Returns the public questions; called only to train.
    root
        The cache folder, by default `cache_root`.
    progress
        Called after every step with the model's name, the step (from 1), the number of steps and the loss.
    """

    def make(folder: Path) -> None:
        known = exercises(tokenizer, questions(), recipe.sequence_length)
        with _seeded(recipe.seed):
            sayer = Sayer(config)
            batches = saying_batches(known, tokenizer, recipe.batch_size, recipe.seed)
            _train(sayer, recipe, batches, "LLM", progress)
        sayer.model.save_pretrained(folder)

    return _kept("scct-llm", config, recipe, tokenizer, make, root)


def pretrained_slm(
    config: ModernBertConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    *,
    root: Path | None = None,
    progress: Progress = log_progress,
) -> Path:
    """Return the folder of the encoder, trained to find answers; parameters as for `pretrained_llm`."""

    def make(folder: Path) -> None:
        known = exercises(tokenizer, questions(), recipe.sequence_length)
        with _seeded(recipe.seed):
            finder = Finder(config)
            batches = finding_batches(known, tokenizer, recipe.batch_size, recipe.seed)
            _train(finder, recipe, batches, "SLM", progress)
        finder.model.save_pretrained(folder)

    return _kept("scct-slm", config, recipe, tokenizer, make, root)


def _kept(
    kind: str,
    config: LlamaConfig | ModernBertConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[[Path], None],
    root: Path | None,
) -> Path:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    code = hashlib.sha256()
    for name in ("pretraining.py", "exercises.py", "models.py"):
        code.update((Path(__file__).parent / name).read_bytes())
    description = {
        # Without what transformers writes about itself: another version reads the same weights.
        "config": {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"},
        "recipe": dataclasses.asdict(recipe),
        # What decides the questions rather than the questions: reading them would take seconds of every start.
        "data": built_in_data_version(),
        "code": code.hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
    }

    def announced(folder: Path) -> None:
        _log.info("training the built-in %s: %d steps, once; it is kept in the cache", kind, recipe.steps)
        make(folder)

    return made_once(kind, description, announced, root=root, warn=_log.warning)


def _train(model: nn.Module, recipe: Recipe, batches: Iterator[Batch], name: str, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    with _threads(min(recipe.num_threads, os.cpu_count() or 1)):
        for step, batch in zip(range(recipe.steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            loss = model(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress(name, step + 1, recipe.steps, loss.item())
    model.train(False)


def _missed(scores: Tensor, right: Tensor) -> Tensor:
    """Cross entropy of hitting any of the right places."""
    return (scores.logsumexp(-1) - scores.masked_fill(~right, -1e9).logsumexp(-1)).mean()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
