"""The built-in models: trained once on the public part of the built-in data, then read from a cache on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
)

from flwr_splitkd.data import IGNORED_LABEL, Document, documents_digest
from flwr_splitkd.data.questions import Question, reading_prompt
from flwr_splitkd.store.made_once import made_once

Progress = Callable[[str, int, int, float], None]
Batch = dict[str, Tensor]

_log = logging.getLogger("flwr")
_SHARE_OF_TEXT = 0.3
_QUESTIONS_PER_EXERCISE = 4


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
    batch_size: int = 16
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


def pretrained_llm(
    config: LlamaConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
    *,
    prepare: Callable[[LlamaForCausalLM], None] | None = None,
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
    documents, questions
        The public text: it reads the documents, and learns to answer the questions in token space.
    prepare
        Called with the untrained model, to set its first weights.
    root
        The cache folder, by default `cache_root`.
    progress
        Called after every step with the model's name, the step (from 1), the number of steps and the loss.
    """

    def make(folder: Path) -> None:
        with _seeded(recipe.seed):
            model = LlamaForCausalLM(config)
            if prepare is not None:
                prepare(model)
        batches = reading_batches(recipe, tokenizer, documents, questions)
        _train(model, recipe, batches, answer_loss, "LLM", progress)
        model.save_pretrained(folder)

    return _kept("scct-llm", config, recipe, tokenizer, documents, questions, make, root)


def pretrained_slm(
    config: RobertaConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
    *,
    root: Path | None = None,
    progress: Progress = log_progress,
) -> Path:
    """Return the folder of the encoder, trained by masked language modelling; parameters as for `pretrained_llm`."""

    def make(folder: Path) -> None:
        with _seeded(recipe.seed):
            model = RobertaForMaskedLM(config)
            # Within the seed, as dropout draws too.
            batches = masked_batches(recipe, tokenizer, documents, questions)
            _train(model, recipe, batches, masked_loss, "SLM", progress)
        model.roberta.save_pretrained(folder)

    return _kept("scct-slm", config, recipe, tokenizer, documents, questions, make, root)


def _kept(
    kind: str,
    config: LlamaConfig | RobertaConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
    make: Callable[[Path], None],
    root: Path | None,
) -> Path:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    asked = json.dumps([dataclasses.astuple(question) for question in questions])
    description = {
        # Without what transformers writes about itself: another version reads the same weights.
        "config": {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"},
        "recipe": dataclasses.asdict(recipe),
        "documents": documents_digest(documents),
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
    }

    def announced(folder: Path) -> None:
        _log.info("training the built-in %s: %d steps, once; it is kept in the cache", kind, recipe.steps)
        make(folder)

    return made_once(kind, description, announced, root=root, warn=_log.warning)


def _train(
    model: PreTrainedModel,
    recipe: Recipe,
    batches: Iterator[Batch],
    loss_of: Callable[[nn.Module, Batch], Tensor],
    name: str,
    progress: Progress,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    with _threads(min(recipe.num_threads, os.cpu_count() or 1)):
        for step, batch in zip(range(recipe.steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress(name, step + 1, recipe.steps, loss.item())
    model.train(False)


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of the answers' tokens, and a share of that of all others."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels, answers = batch["labels"][:, 1:].flatten(), batch["answers"][:, 1:].flatten()
    losses = cross_entropy(logits.flatten(0, 1).float(), labels, reduction="none")
    others = (labels != IGNORED_LABEL) & ~answers
    return losses[answers].mean() + _SHARE_OF_TEXT * losses[others].mean()


def masked_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of the masked tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())


def reading_batches(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
) -> Iterator[Batch]:
    """Yield batches of reading exercises, with two repetitions in each.

    An exercise is a context and some questions about it, each followed by its answer. A repetition is a piece of a
    document, or of arbitrary tokens, and the same again as the answer: what keeps the model looking things up while
    it has not yet learned what to look up.
    """
    rng = random.Random(recipe.seed)
    exercises = _exercises(tokenizer, questions, recipe.sequence_length)
    text = _stream(tokenizer, documents)
    while True:
        rows = [exercises[rng.randrange(len(exercises))] for _ in range(recipe.batch_size - 2)]
        length = rng.randrange(8, min(48, recipe.sequence_length // 2))
        start = rng.randrange(len(text) - length + 1)
        for piece in (text[start : start + length], [rng.randrange(len(tokenizer)) for _ in range(length)]):
            rows.append(([*piece, *piece, tokenizer.eos_token_id], [False] * length + [True] * (length + 1)))
        yield _batch(rows, tokenizer)


def masked_batches(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
) -> Iterator[Batch]:
    """Yield batches of contexts and questions with some tokens hidden, exchanged or left, all to be named."""
    rng = random.Random(recipe.seed)
    prompts = [
        ids for ids in _ids(tokenizer, [reading_prompt(q) for q in questions]) if len(ids) <= recipe.sequence_length
    ]
    text = _stream(tokenizer, documents)
    length = min(recipe.sequence_length // 2, len(text))
    hidden = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.bos_token_id
    while True:
        rows = [prompts[rng.randrange(len(prompts))] for _ in range(recipe.batch_size - 1)]
        start = rng.randrange(len(text) - length + 1)
        batch = _batch([(ids, [False] * len(ids)) for ids in [*rows, text[start : start + length]]], tokenizer)
        for row in range(recipe.batch_size):
            for place in range(int(batch["attention_mask"][row].sum())):
                fate = rng.random()
                if fate < 0.09:
                    batch["input_ids"][row, place] = hidden
                elif fate < 0.11:
                    batch["input_ids"][row, place] = rng.randrange(len(tokenizer))
                elif fate >= 0.15:
                    batch["labels"][row, place] = IGNORED_LABEL
        yield batch


def _exercises(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], longest: int
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of contexts with up to four questions and answers, and which tokens are answers."""
    by_context: dict[str, list[Question]] = {}
    for question in questions:
        by_context.setdefault(question.context, []).append(question)
    exercises = []
    for context, asked in by_context.items():
        for first in range(0, len(asked), _QUESTIONS_PER_EXERCISE):
            ids, answers = _ids(tokenizer, [context + "\n"])[0], []
            answers += [False] * len(ids)
            for question in asked[first : first + _QUESTIONS_PER_EXERCISE]:
                prompt, answer = _ids(tokenizer, [question.question + "\n", question.answer])
                ids = [*ids, *prompt, *answer, tokenizer.eos_token_id]
                answers += [False] * len(prompt) + [True] * (len(answer) + 1)
            if len(ids) <= longest:
                exercises.append((ids, answers))
    return exercises


def _stream(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[int]:
    end = tokenizer.eos_token_id
    return [token for ids in _ids(tokenizer, [d.text for d in documents]) for token in (*ids, end)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _batch(rows: Sequence[tuple[list[int], list[bool]]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED_LABEL)
    answers = torch.zeros(ids.shape, dtype=torch.bool)
    for number, (tokens, answer) in enumerate(rows):
        ids[number, : len(tokens)] = labels[number, : len(tokens)] = torch.tensor(tokens)
        mask[number, : len(tokens)] = 1
        answers[number, : len(tokens)] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "answers": answers}


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
