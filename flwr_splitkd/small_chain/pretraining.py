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
from flwr_splitkd.small_chain.exercises import Batch, exercises, finding_batches, saying_batches
from flwr_splitkd.store.made_once import made_once

__all__ = ["Finder", "Progress", "Reader", "Recipe", "Sayer", "log_progress", "pretrained_models"]

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


class Reader(nn.Module):
    """The encoder's output as the language model's prefix, as in the chain, by a projection that is dropped later.

    What a language model that repeats marked tokens expects, and what an encoder that finds them gives, are not quite the
    same: they have to meet once. The loss is the cross entropy of the answer's tokens.
    """

    def __init__(self, finder: Finder, sayer: Sayer) -> None:
        super().__init__()
        self.finder, self.llm = finder, sayer.model
        self.projection = nn.Linear(finder.model.config.hidden_size, sayer.model.config.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss; the batch is padded on the left."""
        embedded, labels = self.llm.get_input_embeddings(), batch["labels"]
        ids, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        hidden = self.finder.model(input_ids=ids, attention_mask=mask, position_ids=places).last_hidden_state
        start = embedded(torch.full((len(ids), 1), int(self.llm.config.bos_token_id or 0)))
        inputs = torch.cat([start, self.projection(hidden), embedded(labels.clamp_min(0))], 1)
        # The first token stands before the padding here; as all positions count from it, that makes no difference.
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask, (labels != IGNORED_LABEL).long()], 1)
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        out = self.llm.model(inputs_embeds=inputs, attention_mask=mask, position_ids=places).last_hidden_state
        said = labels != IGNORED_LABEL
        return cross_entropy(self.llm.lm_head(out[:, ids.shape[1] : -1][said]), labels[said])


def pretrained_models(
    slm: ModernBertConfig,
    llm: LlamaConfig,
    recipes: tuple[Recipe, Recipe, Recipe],
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    *,
    root: Path | None = None,
    progress: Progress = log_progress,
) -> Path:
    """Return a folder with the trained ``slm`` and ``llm``; train them first if the cache has none for the same recipes.

    Parameters
    ----------
    slm, llm
        Their architectures.
    recipes
        How the encoder, the language model, and then both together are trained.
    tokenizer
        The tokenizer of both.
    questions
        Returns the public questions; called only to train.
    root
        The cache folder, by default `cache_root`.
    progress
        Called after every step with the part's name, the step (from 1), the number of steps and the loss.
    """

    def make(folder: Path) -> None:
        asked = questions()
        finding, saying, both = recipes
        known = exercises(tokenizer, asked, finding.sequence_length)
        with _seeded(finding.seed):
            finder = Finder(slm)
            _train(
                finder, finding, finding_batches(known, tokenizer, finding.batch_size, finding.seed), "SLM", progress
            )
            sayer = Sayer(llm)
            _train(sayer, saying, saying_batches(known, tokenizer, saying.batch_size, saying.seed), "LLM", progress)
            reader = Reader(finder, sayer)
            batches = saying_batches(known, tokenizer, both.batch_size, both.seed, plain=True)
            _train(reader, both, batches, "SLM and LLM", progress)
        finder.model.save_pretrained(folder / "slm")
        sayer.model.save_pretrained(folder / "llm")

    return _kept("scct-models", (slm, llm), recipes, tokenizer, make, root)


def _kept(
    kind: str,
    configs: Sequence[LlamaConfig | ModernBertConfig],
    recipes: Sequence[Recipe],
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
        "configs": [
            {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}
            for config in configs
        ],
        "recipes": [dataclasses.asdict(recipe) for recipe in recipes],
        # What decides the questions rather than the questions: reading them would take seconds of every start.
        "data": built_in_data_version(),
        "code": code.hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
    }

    def announced(folder: Path) -> None:
        _log.info(
            "training the built-in models: %d steps, once; they are kept in the cache", sum(r.steps for r in recipes)
        )
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
