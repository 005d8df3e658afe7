"""F1 and exact match of answers."""

from __future__ import annotations

import sys

import pytest

from flwr_splitkd.data import make_loader
from flwr_splitkd.data.questions import EncodingConfig, Question, encode_questions
from flwr_splitkd.data.questions.score import baselines, score, scorer
from flwr_splitkd.errors import ConfigError, DataError
from flwr_splitkd.small_chain.models import load_tokenizer
from little_data import few_questions

QUESTIONS = few_questions()


def test_score() -> None:
    pytest.importorskip("torchmetrics")
    scores = score(["the Path", "q b", "x"], ["path.", "b c", "y"])
    assert scores == {"f1": pytest.approx(50.0), "exact_match": pytest.approx(100 / 3)}
    several = score(["the Path", "q b", "x"], [["way", "path."], "b c", ("y", "x")])
    assert several == {"f1": pytest.approx(250 / 3), "exact_match": pytest.approx(200 / 3)}
    table = baselines(QUESTIONS, QUESTIONS)
    assert table["majority answer"] == {"f1": 50.0, "exact_match": 50.0}
    assert table["copy the question"]["exact_match"] == 0.0


def test_score_refuses_what_it_cannot_score(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(DataError, match=f"{len(given)} predictions for {len(wanted)} references"):
            score(given, wanted)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text", None)
    with pytest.raises(ConfigError, match=r"pip install 'flwr_splitkd\[metrics\]'"):
        score(["a"], ["a"])


def test_answers_are_rated_by_every_right_one() -> None:
    """A batch holds the first answer alone; what a question's others are, its loader knows."""
    pytest.importorskip("torchmetrics")
    tokenizer = load_tokenizer()
    questions = [
        Question(
            context=f"It is {word} and late.",
            question="What is it?",
            answer=word,
            others=(f"{word} and late",),
            module="m",
        )
        for word in ("red", "a long word", "blue")
    ]
    dataset = encode_questions(questions, tokenizer, tokenizer, EncodingConfig())
    loader = make_loader(dataset, 2, collate=dataset.collate)
    rate = scorer(tokenizer, dataset)

    def rated(*said: str, batch: int) -> float:
        return float(
            rate([tokenizer(text, add_special_tokens=False)["input_ids"] for text in said], list(loader)[batch])["f1"]
        )

    assert rated("red", "a long word and late", batch=0) == 100.0 and rated("blue and late", batch=1) == 100.0
    assert rated("red", "red and late", batch=0) < 100.0
