"""The built-in questions on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from flwr_splitkd.data.questions import Question
from flwr_splitkd.data.questions.kept import built_in_data_version, kept_questions

pytest.importorskip("torch", reason="the store needs it")
QUESTIONS = (
    Question(
        context="a = 1\nb = 2", question="What is b?", answer="2", module="m", kind="value", others=("= 2", "b = 2")
    ),
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> tuple[Question, ...]:
    raise AssertionError("made again")


def test_made_once_for_each_salt(cache: Path) -> None:
    assert kept_questions(0, lambda: QUESTIONS) == QUESTIONS
    assert kept_questions(0, never) == QUESTIONS
    with pytest.raises(AssertionError, match="made again"):
        kept_questions(1, never)
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_file_is_made_again(cache: Path) -> None:
    kept_questions(0, lambda: QUESTIONS)
    (file,) = cache.glob("questions-*/questions.json")
    file.write_text("[]")
    assert kept_questions(0, lambda: QUESTIONS) == kept_questions(0, never) == QUESTIONS


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.write_text("in the way")
    assert kept_questions(0, lambda: QUESTIONS) == QUESTIONS


def test_the_version_names_what_decides_the_data() -> None:
    version = built_in_data_version()
    assert set(version) == {"python", "library", "code"}
    assert len(version["code"]) == 64
