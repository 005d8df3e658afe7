"""Questions of the user's own."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.data.questions import Question, read_hub_questions, read_question_files
from flwr_splitkd.errors import DataError

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rhine",
            "paragraphs": [
                {
                    "context": "The Rhine is 1230 km long.",
                    "qas": [
                        {"id": "1", "question": "How long?", "answers": [{"text": "1230 km", "answer_start": 13}]},
                        {"id": "2", "question": "How deep?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}
RHINE = Question(context="The Rhine is 1230 km long.", question="How long?", answer="1230 km", module="Rhine")
LINE = {"context": "It is red.", "question": "Which colour?", "answer": "red"}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_squad_json_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    assert read_question_files([write(tmp_path / "dev.json", SQUAD)]) == (RHINE,)


@pytest.mark.parametrize(
    "answer",
    [
        {"answer": "red"},
        {"answers": [{"text": "red"}, {"text": "is red"}]},
        {"answers": {"text": ["red", "is red"], "answer_start": [6, 3]}},
        {"answers": ["red", "red", "is red"]},
    ],
)
def test_lines_with_every_form_of_answer(tmp_path: Path, answer: dict[str, Any]) -> None:
    path = write(
        tmp_path / "a.jsonl", {"context": "It is red.", "question": "Which colour?", "site": "s", **answer}, ""
    )
    (read,) = read_question_files([tmp_path], module_field="site")
    assert (read.answer, read.module) == ("red", "s")
    assert read.answers == (("red", "is red") if "answers" in answer else ("red",))
    assert read_question_files([path])[0].module == str(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: not JSON"),
        ([1], r"a\.jsonl:2: the line holds a list"),
        ({**LINE, "answer": "blue"}, r"a\.jsonl:2: `answer` is 'blue'; expected a span"),
        ({**LINE, "answer": 3}, r"a\.jsonl:2: the answer is 3; expected `answer`"),
        ({**LINE, "answer": ["red", 3]}, r"a\.jsonl:2: the answer is 3; expected `answer`"),
        ({**LINE, "answer": ["red", " "]}, r"a\.jsonl:2: `others` is ' ' in module"),
        ({**LINE, "context": None}, r"a\.jsonl:2: `context` is None; expected a text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_question_files([write(tmp_path / "a.jsonl", LINE, line)])


def test_files_without_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file and has none of"):
        read_question_files([tmp_path / "none"])
    with pytest.raises(DataError, match="0 questions with an answer"):
        read_question_files([write(tmp_path / "a.jsonl", {**LINE, "answer": None, "answers": []} | {"answer": []})])
    with pytest.raises(DataError, match=r"not of SQuAD's form \(KeyError: 'data'\)"):
        read_question_files([write(tmp_path / "a.json", {"rows": []})])
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"b\.json: cannot be read"):
        read_question_files([tmp_path / "b.json"])


class FakeFederatedDataset:
    def __init__(self, *, dataset: str, subset: str | None, partitioners: dict[str, Any]):
        self.partitioners = partitioners

    def load_split(self, split: str) -> list[dict[str, Any]]:
        if split == "empty":
            return []
        answers = {"text": ["red"], "answer_start": [6]}
        return [
            {"title": f"t{number}", "context": f"It is red {number}.", "question": "Colour?", "answers": answers}
            for number in range(5)
        ]

    def load_partition(self, partition_id: int, split: str) -> list[dict[str, Any]]:
        return self.load_split(split)[partition_id :: self.partitioners[split]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("flwr_datasets")
    module.FederatedDataset = FakeFederatedDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)


@pytest.mark.usefixtures("hub")
def test_a_data_set_on_the_hub() -> None:
    whole = read_hub_questions("squad", split="validation")
    assert [question.module for question in whole] == ["t0", "t1", "t2", "t3", "t4"]
    parts = [read_hub_questions("squad", split="train", partition_id=i, num_partitions=2) for i in range(2)]
    assert sorted(q.module for part in parts for q in part) == [q.module for q in whole]
    with pytest.raises(DataError, match="'hf:squad', split 'empty', gave 0 questions"):
        read_hub_questions("squad", split="empty")
