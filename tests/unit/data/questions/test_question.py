"""One question, and how answers are compared."""

from __future__ import annotations

import pytest

from flwr_splitkd.data.questions import Question, normalized
from flwr_splitkd.errors import DataError


def test_an_answer_is_a_span_of_the_context() -> None:
    with pytest.raises(DataError, match=r"`answer` is 'four'; expected a span of the context 'two and two'"):
        Question(context="two and two", question="How many?", answer="four", module="m")


@pytest.mark.parametrize("changes", [{"question": " "}, {"answer": ""}])
def test_nothing_is_empty(changes: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"expected text\. Remove"):
        Question(**{"context": "c", "question": "q", "answer": "c", "module": "m", **changes})


def test_comparison_is_that_of_squad() -> None:
    assert normalized("The  `Path`, of an object!") == "path of object"
    assert normalized("a") == normalized("()") == ""
