"""Answers without a model."""

from __future__ import annotations

import pytest

from flwr_splitkd.data.questions import Question, copied_questions, majority_answers, neighbour_answers
from flwr_splitkd.errors import DataError


def asked(answer: str, kind: str = "", question: str = "What is y?", context: str = "x = 1\ny = 2\nnone") -> Question:
    return Question(context=context, question=question, answer=answer, module="m", kind=kind)


KNOWN = [asked("2", "a"), asked("2", "a"), asked("1", "a"), asked("x", "b"), asked("x", "b")]


def test_commonest_answer_ties_by_the_alphabet() -> None:
    assert majority_answers(KNOWN, KNOWN[:2]) == ["2", "2"]
    assert majority_answers([*KNOWN, asked("x"), asked("2")], KNOWN[:1]) == ["2"]
    with pytest.raises(DataError, match="`known` has 0 questions"):
        majority_answers([], KNOWN)


def test_commonest_answer_of_a_kind() -> None:
    unknown = asked("none", "c")
    assert majority_answers(KNOWN, [*KNOWN, unknown], by_kind=True) == ["2", "2", "2", "x", "x", "2"]


def test_copying_the_question() -> None:
    assert copied_questions(KNOWN[:1]) == ["What is y?"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [("What is y?", "2"), ("What is x?", "1"), ("What equals 2?", "y"), ("Which?", "x")],
)
def test_the_word_beside_the_rarest_word_of_the_question(question: str, answer: str) -> None:
    assert neighbour_answers([asked("2", question=question)]) == [answer]
