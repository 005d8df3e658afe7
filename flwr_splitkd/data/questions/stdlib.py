"""The built-in questions: made from the documentation and the signatures of Python's standard library."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from pathlib import Path

from flwr_splitkd.data.questions.facts import SourceFacts, source_facts
from flwr_splitkd.data.questions.from_code import (
    class_questions,
    constant_questions,
    raises_questions,
    signature_questions,
)
from flwr_splitkd.data.questions.from_text import sentence_questions, summary_questions
from flwr_splitkd.data.questions.kept import kept_questions
from flwr_splitkd.data.questions.kinds import Draw
from flwr_splitkd.data.questions.question import Question
from flwr_splitkd.data.stdlib import stdlib_trees
from flwr_splitkd.errors import DataError

__all__ = ["stdlib_questions"]

_MAKERS = (
    signature_questions,
    class_questions,
    constant_questions,
    raises_questions,
    summary_questions,
    sentence_questions,
)
# Per source file: a file of a hundred constants would otherwise be nothing but constants.
_MAX_PER_KIND = 10
# The store, which keeps them, needs it.
_HAS_TORCH = importlib.util.find_spec("torch") is not None


def stdlib_questions(root: Path | None = None, *, salt: int = 0) -> tuple[Question, ...]:
    """Return the built-in questions, the same on every call on one machine.

    Parameters
    ----------
    root
        As for `stdlib_documents`.
    salt
        Another number asks about the same facts in other words, among other distractors.

    Raises
    ------
    DataError
        If ``root`` has no readable sources.
    """
    return _stdlib(salt) if root is None and _HAS_TORCH else _make(root, salt)


@functools.lru_cache(maxsize=8)
def _stdlib(salt: int) -> tuple[Question, ...]:
    return kept_questions(salt, lambda: _make(None, salt))


@functools.lru_cache(maxsize=2)
def _facts(root: Path | None) -> tuple[SourceFacts, ...]:
    return tuple(source_facts(*source) for source in stdlib_trees(root))


@functools.lru_cache(maxsize=8)
def _make(root: Path | None, salt: int) -> tuple[Question, ...]:
    # A dict: the standard library has files that differ in a table alone, and say the same in the same words.
    questions: dict[Question, None] = {}
    for source in _facts(root):
        found = [question for make in _MAKERS for question in make(source, salt)]
        seen: Counter[str] = Counter()
        for question in Draw(source.name, salt, "order").shuffled(found):
            seen[question.kind] += 1
            if seen[question.kind] <= _MAX_PER_KIND:
                questions[question] = None
    if not questions:
        raise DataError(
            f"the standard library in '{root}' gives 0 questions; expected some thousands. "
            "Use an interpreter that ships its sources, or set `source` to your own questions."
        )
    return tuple(questions)
