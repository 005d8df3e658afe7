"""What the built-in models learn from: questions whose answers are known by their place.

The encoder learns to find the answer, the language model to say what was found. Neither knows of the other: the encoder
gives two positions, and the language model is told by a mark on the embeddings; both are dropped after the training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flwr_splitkd.data import IGNORED_LABEL
from flwr_splitkd.data.questions import Question, reading_prompt

Batch = dict[str, Tensor]

_LISTS, _RENAMED, _REST = 0.15, 0.3, 0.1
_PIECES, _BARE = 0.6, 0.6
# A batch is drawn from so many neighbours in the order of length: little of it is padding.
_NEIGHBOURS = 8


class Exercise(NamedTuple):
    """Tokens of a context and a question, the first and last place of the answer wherever it stands, and the answer."""

    ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def answer(self) -> list[int]:
        """Tokens of the answer."""
        first, last = self.spans[0]
        return self.ids[first : last + 1]


def exercises(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], longest: int) -> list[Exercise]:
    """Return the questions as exercises, in the order of their length; without those over ``longest`` tokens."""
    encoded: Any = tokenizer(
        [reading_prompt(question) for question in questions], return_offsets_mapping=True, verbose=False
    )
    found = []
    for question, ids, offsets in zip(questions, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spans = []
        start = question.context.find(question.answer)
        while start >= 0:
            end = start + len(question.answer)
            places = [place for place, (a, b) in enumerate(offsets) if a < end and b > start and a < b]
            spans.append((places[0], places[-1]))
            start = question.context.find(question.answer, start + 1)
        if len(ids) <= longest:
            found.append(Exercise(list(ids), spans))
    return sorted(found, key=lambda exercise: len(exercise.ids))


def finding_batches(
    known: Sequence[Exercise], tokenizer: PreTrainedTokenizerBase, batch_size: int, seed: int
) -> Iterator[Batch]:
    """Yield what the encoder learns from: ``first`` and ``last`` mark where answers begin and end.

    Questions as they are, questions in which every word is exchanged for another throughout, and lists of arbitrary names
    and values with one name asked for: what a model that knows no word must look up. ``labels`` has the answers' tokens, and
    padding at some of the other places: what is no answer is to say nothing.
    """
    rng = random.Random(seed)
    while True:
        if rng.random() < _LISTS:
            rows = [_named_values(rng, len(tokenizer)) for _ in range(batch_size)]
        else:
            rows = [
                _renamed(row, rng, len(tokenizer)) if rng.random() < _RENAMED else row
                for row in _alike(known, batch_size, rng)
            ]
        ids, mask = _padded([row.ids for row in rows], tokenizer, left=False)
        first, last = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
        labels = torch.full_like(ids, IGNORED_LABEL)
        for number, row in enumerate(rows):
            for place in range(len(row.ids)):
                if rng.random() < _REST:
                    labels[number, place] = tokenizer.pad_token_id
            for a, b in row.spans:
                first[number, a] = last[number, b] = True
                labels[number, a : b + 1] = ids[number, a : b + 1]
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels, "first": first, "last": last}


def saying_batches(
    known: Sequence[Exercise],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    seed: int,
    *,
    plain: bool = False,
) -> Iterator[Batch]:
    """Yield what the language model learns from: ``marks`` says where the answer begins, ends and goes on.

    Questions with their answers, and pieces of text, half of them shuffled, with an arbitrary part marked: what can be
    said by nothing but the mark. In some rows nothing but the marked is there, as the encoder would have it.
    With ``plain`` all are questions as they are.
    """
    rng = random.Random(seed)
    while True:
        rows = _alike(known, batch_size, rng)
        if not plain and rng.random() < _PIECES:
            rows = [_piece(row, rng) for row in (*rows, *rows)]
        ids, mask = _padded([[tokenizer.bos_token_id, *row.ids] for row in rows], tokenizer, left=True)
        answers = [[*row.answer, tokenizer.eos_token_id] for row in rows]
        labels = torch.full((len(rows), max(map(len, answers))), IGNORED_LABEL)
        marks = torch.zeros(*ids.shape, 3)
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            labels[number, : len(answer)] = torch.tensor(answer)
            first, last = (ids.shape[1] - len(row.ids) + place for place in row.spans[0])
            strength = 0.5 + rng.random()
            marks[number, first, 0] = marks[number, last, 1] = strength
            marks[number, first : last + 1, 2] = strength
            if not plain and rng.random() < _BARE:
                ids[number, ids.shape[1] - len(row.ids) : first] = tokenizer.pad_token_id
                ids[number, last + 1 :] = tokenizer.pad_token_id
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels, "marks": marks}


def _alike(known: Sequence[Exercise], size: int, rng: random.Random) -> list[Exercise]:
    window = min(len(known), size * _NEIGHBOURS)
    start = rng.randrange(len(known) - window + 1)
    return [known[start + rng.randrange(window)] for _ in range(size)]


def _named_values(rng: random.Random, vocabulary: int) -> Exercise:
    def words(least: int, most: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(rng.randrange(least, most))]

    equals, comma, end = (words(1, 2) for _ in range(3))
    pairs = [(words(1, 4), words(1, 4)) for _ in range(rng.randrange(3, 9))]
    asked = rng.randrange(len(pairs))
    ids: list[int] = []
    for number, (name, value) in enumerate(pairs):
        ids += [*name, *equals]
        if number == asked:
            span = (len(ids), len(ids) + len(value) - 1)
        ids += [*value, *comma]
    return Exercise([*ids, *end, *words(0, 3), *pairs[asked][0], *end], [span])


def _renamed(row: Exercise, rng: random.Random, vocabulary: int) -> Exercise:
    """Exchange the tokens that are words, which those behind the letters and signs are, alike everywhere."""
    letters = min(300, vocabulary // 2)
    names: dict[int, int] = {}
    return Exercise(
        [names.setdefault(i, rng.randrange(letters, vocabulary)) if i >= letters else i for i in row.ids], row.spans
    )


def _piece(row: Exercise, rng: random.Random) -> Exercise:
    size = min(len(row.ids), rng.randrange(12, 25))
    start = rng.randrange(len(row.ids) - size + 1)
    ids = row.ids[start : start + size]
    if rng.random() < 0.5:
        rng.shuffle(ids)
    first = rng.randrange(size)
    return Exercise(ids, [(first, min(size - 1, first + rng.randrange(9)))])


def _padded(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids, mask
