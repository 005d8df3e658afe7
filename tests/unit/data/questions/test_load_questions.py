"""Who gets which questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.data import STDLIB_HELDOUT_MODULES, STDLIB_TEACHER_MODULES
from flwr_splitkd.data.questions import (
    QuestionConfig,
    heldout_questions,
    load,
    partition_questions,
    split_questions,
)
from flwr_splitkd.errors import ConfigError, DataError

TITLES = ("ann", "bob", "cid", "dan")


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    lines = [
        {"title": title, "context": f"{title} is {number}.", "question": "Who?", "answer": title}
        for number in range(3)
        for title in TITLES
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_built_in_questions_keep_modules_together() -> None:
    split = split_questions(QuestionConfig(), 3)
    parts = [*split.devices, split.heldout, split.public]
    modules = [{question.module for question in part} for part in parts]
    assert all(a.isdisjoint(b) for number, a in enumerate(modules) for b in modules[:number])
    assert modules[3] == set(STDLIB_HELDOUT_MODULES)
    assert modules[4] <= set(STDLIB_TEACHER_MODULES)
    sizes = [len(part) for part in split.devices]
    assert min(sizes) > 0.8 * max(sizes)
    assert heldout_questions(QuestionConfig()) == split.heldout
    assert partition_questions(QuestionConfig(), 2, 3) == split.devices[2]
    other = split_questions(QuestionConfig(), 3, salt=1)
    assert {question.module for question in other.heldout} == modules[3]
    assert set(other.public).isdisjoint(split.heldout)


def test_own_heldout_modules_are_not_public() -> None:
    split = split_questions(QuestionConfig(heldout=("typing",)), 2)
    assert {question.module for question in split.heldout} == {"typing"}
    assert "typing" not in {question.module for question in split.public}


def test_files_by_module_and_by_question(letters: Path) -> None:
    split = split_questions(QuestionConfig(source=letters, heldout=("dan",)), 3)
    assert sorted({q.module for q in part}.pop() for part in split.devices) == ["ann", "bob", "cid"]
    assert {q.module for q in split.heldout} == {"dan"} and split.public == ()
    split = split_questions(QuestionConfig(source=(letters,), split_by="question", heldout=("dan",)), 5)
    assert sorted(len(part) for part in split.devices) == [1, 2, 2, 2, 2]
    assert len(split.heldout) == 3


def test_nothing_held_out(letters: Path) -> None:
    with pytest.raises(DataError, match=r"`heldout` is 0\.0, so nothing is held out"):
        heldout_questions(QuestionConfig(source=letters, heldout=0.0))


@pytest.mark.parametrize(("partition_id", "num_partitions"), [(3, 3), (-1, 3), (0, 0)])
def test_partition_id_is_checked(partition_id: int, num_partitions: int) -> None:
    with pytest.raises(DataError, match=rf"`partition_id` is {partition_id}; expected 0\.\.{num_partitions - 1}"):
        partition_questions(QuestionConfig(), partition_id, num_partitions)


def test_too_many_devices(letters: Path) -> None:
    with pytest.raises(DataError, match=r"`num_partitions` is 9; expected 1\.\."):
        split_questions(QuestionConfig(source=letters), 9)


def test_a_data_set_on_the_hub_is_divided_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(load, "read_hub_questions", lambda name, **settings: asked.append((name, settings)))
    config = QuestionConfig(source="hf:rajpurkar/squad", hub_subset="plain_text")
    partition_questions(config, 1, 2, partitioner="mine")
    heldout_questions(config)
    assert [name for name, _ in asked] == ["rajpurkar/squad"] * 2
    assert (asked[0][1]["split"], asked[0][1]["partition_id"], asked[0][1]["partitioner"]) == ("train", 1, "mine")
    assert (asked[1][1]["split"], asked[1][1]["subset"]) == ("validation", "plain_text")
    with pytest.raises(DataError, match="is divided by flwr-datasets"):
        split_questions(config, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "hf:"}, "`source` is 'hf:'"),
        ({"split_by": "document"}, "`split_by` is 'document'; expected 'module' or 'question'"),
        ({"source": "hf:squad", "heldout": 0.2}, r"`heldout` is 0\.2; expected none .*`hub_heldout_split`"),
        ({"source": "hf:squad", "split_by": "module"}, "`split_by` is 'module'; expected none .*`partitioner`"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuestionConfig(**settings)
