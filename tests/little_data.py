"""A user's own data, little of it: every process of a run reads it at once, where the built-in data takes seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from flwr_splitkd.data.questions import Question

_WORDS = "the edge waits for a device and returns what it sent before a round ends".split()


def little_text(folder: Path) -> str:
    """A folder of 16 files, which are 40 batches of 4 blocks of 32 tokens for each of two devices."""
    folder.mkdir()
    draw = random.Random(0)
    for number in range(16):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(_WORDS) for _ in range(1500)))
    return str(folder)


def little_questions(folder: Path) -> str:
    """A file of 72 questions in six groups, no two alike, one of which is held out."""
    rows = [
        {
            "context": f"f(a={number}, b=2)",
            "question": "What is the default of a?",
            "answer": str(number),
            "title": "abcdef"[number // 12],
        }
        for number in range(72)
    ]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def few_questions() -> list[Question]:
    """Eight questions on four contexts, without a file."""
    return [
        Question(
            context=f"wait(fs, timeout={number})\nrun(step, limit=9)",
            question=f"What is the default of {name}?",
            answer=answer,
            module="m",
        )
        for number in range(4)
        for name, answer in (("timeout", str(number)), ("limit", "9"))
    ]
