"""Answers that need no model: what a trained one must beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from flwr_splitkd.data.questions.question import Question
from flwr_splitkd.errors import DataError

__all__ = ["copied_questions", "majority_answers", "neighbour_answers"]

_WORD = re.compile(r"[\w.]*\w")


def majority_answers(known: Sequence[Question], asked: Sequence[Question], *, by_kind: bool = False) -> list[str]:
    """Answer everything with the commonest answer to the known questions.

    Parameters
    ----------
    known
        Questions with known answers, such as all that the devices train on.
    asked
        Questions to answer.
    by_kind
        Whether the commonest answer is that of the question's own kind.

    Raises
    ------
    DataError
        If no question is known.
    """
    if not known:
        raise DataError("`known` has 0 questions; expected at least 1. Pass what the devices train on.")
    overall = _commonest([question.answer for question in known])
    if not by_kind:
        return [overall] * len(asked)
    kinds = {question.kind for question in known}
    answers = {kind: _commonest([q.answer for q in known if q.kind == kind]) for kind in kinds}
    return [answers.get(question.kind, overall) for question in asked]


def copied_questions(asked: Sequence[Question]) -> list[str]:
    """Answer every question with its own words."""
    return [question.question for question in asked]


def neighbour_answers(asked: Sequence[Question]) -> list[str]:
    """Answer with the word that follows the question's rarest word in the context.

    A reader without learning: it looks up the word of the question that the context has least often (of equals the
    longest), takes what comes next, and at the end of a line what came before.
    """
    return [_neighbour(question) for question in asked]


def _neighbour(question: Question) -> str:
    lines: list[list[str]] = [_WORD.findall(line) for line in question.context.splitlines()]
    counts = Counter(word for line in lines for word in line)
    known = [word for word in _WORD.findall(question.question) if counts[word]]
    if not known:
        return lines[0][0] if lines and lines[0] else ""
    wanted = min(known, key=lambda word: (counts[word], -len(word), word))
    line = next(line for line in lines if wanted in line)
    place = line.index(wanted)
    return line[place + 1] if place + 1 < len(line) else line[max(place - 1, 0)]


def _commonest(answers: Sequence[str]) -> str:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))
