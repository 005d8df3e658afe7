"""The built-in questions, made from a small library and from the real one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from flwr_splitkd.data import STDLIB_HELDOUT_MODULES
from flwr_splitkd.data.questions import Question, normalized, stdlib_questions
from flwr_splitkd.errors import DataError

SOURCE = '''
"""Tools for lists of words.

A word list holds at most 4096 words and is never empty at all.
Every list is kept in the order in which its words were added to it.
"""

LIMIT = 4096
PORT = 80
NAME = "words"

class WordList(Container):
    """Hold the words of one single language."""

    def add(self, word, position=7):
        """Add a word to the list."""
        raise KeyError(word)

    @property
    def longest(self):
        """Return the longest word of all."""
        raise ValueError

class Reader(Stream):
    """Read words from a stream, one per line."""

    @staticmethod
    def rewind(step, whence="start"):
        """Go back to the start of the stream."""

def merge(first, second, key=len, strict=True):
    """Merge two lists into a third one.

    Raises TypeError if the two lists are in different languages.
    """
    raise TypeError

def parse(text, encoding="utf-8"):
    """Parse a text into a list of words."""
    raise UnicodeError(text)
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "words.py").write_text(SOURCE)
    return tmp_path


def found(library: Path, kind: str) -> list[Question]:
    return [question for question in stdlib_questions(library) if question.kind == kind]


@pytest.mark.parametrize(
    ("kind", "words", "answer"),
    [
        ("after", "rewind", "whence"),
        ("base", "WordList", "Container"),
        ("constant", "80", "PORT"),
        ("decorator", "rewind", "staticmethod"),
        ("default", "position", "7"),
        ("defaulted", "len", "key"),
        ("derived", "Stream", "Reader"),
        ("does", "parse", "Parse a text into a list of words"),
        ("first", "merge", "first"),
        ("last", "merge", "strict"),
        ("named", "Merge two lists into a third one.", "merge"),
        ("number", "words", "4096"),
        ("owner", "rewind", "Reader"),
        ("raised by", "KeyError", "add"),
        ("raised when", "different languages", "TypeError"),
        ("raises", "parse", "UnicodeError"),
        ("returns", "longest", "the longest word of all"),
        ("takes", "text", "parse"),
        ("value", "NAME", "'words'"),
    ],
)
def test_every_kind(library: Path, kind: str, words: str, answer: str) -> None:
    asked = [question for question in found(library, kind) if words in question.question]
    if kind == "takes":
        # Which of its parameters a function is asked for is drawn.
        asked = [question for question in found(library, kind) if question.answer == answer]
    assert asked, found(library, kind)
    assert {question.answer for question in asked} == {answer}
    assert {question.module for question in asked} == {"words"}
    assert all("\n" in question.context for question in asked), "the answer stands alone in its context"


def test_missing_words_are_answered_by_the_word_that_was_left_out(library: Path) -> None:
    questions = found(library, "word")
    assert questions
    for question in questions:
        gap = next(word for word in question.question.split() if "___" in word)
        assert gap.replace("___", question.answer) in question.context
        assert question.answer not in question.question


def test_a_salt_asks_otherwise_about_the_same(library: Path) -> None:
    first, second = stdlib_questions(library), stdlib_questions(library, salt=1)
    assert first == stdlib_questions(library) != second
    assert {q.kind for q in first} == {q.kind for q in second}
    assert {q.answer for q in first if q.kind == "base"} == {q.answer for q in second if q.kind == "base"}


def test_a_library_without_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives 0 questions"):
        stdlib_questions(tmp_path)


def test_the_real_library() -> None:
    questions = stdlib_questions()
    assert len(questions) > 10_000
    assert len(set(questions)) == len(questions)
    assert len({question.kind for question in questions}) == 20
    assert all(question.answer in question.context and normalized(question.answer) for question in questions)
    assert max(len(question.context) for question in questions) <= 160
    heldout = Counter(question.module for question in questions)
    assert all(heldout[module] >= 10 for module in STDLIB_HELDOUT_MODULES)


def test_no_answer_is_worth_guessing() -> None:
    answers = Counter(question.answer for question in stdlib_questions())
    assert answers.most_common(1)[0][1] < 0.05 * answers.total()
