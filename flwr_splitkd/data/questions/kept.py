"""The built-in questions on disk: making them parses the whole standard library, reading them does not."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr_splitkd.data.questions.question import Question

__all__ = ["built_in_data_version", "kept_questions"]

_FILE = "questions.json"
_FIELDS = tuple(field.name for field in dataclasses.fields(Question))


@functools.lru_cache(maxsize=1)
def built_in_data_version() -> dict[str, str]:
    """Return what decides the built-in documents and questions, without reading them: the Python, and our own code."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return {"python": sys.version, "library": sysconfig.get_paths()["stdlib"], "code": digest.hexdigest()}


def kept_questions(salt: int, make: Callable[[], Sequence[Question]]) -> tuple[Question, ...]:
    """Return the questions of this salt from the cache on disk; make them first if it has none.

    Parameters
    ----------
    salt
        As for `stdlib_questions`.
    make
        Makes them.
    """
    # Here, because the store loads torch, which the data has no other use for.
    from flwr_splitkd.store.made_once import made_once

    made: list[Sequence[Question]] = []

    def write(folder: Path) -> None:
        made.append(make())
        rows = [dataclasses.astuple(question) for question in made[0]]
        (folder / _FILE).write_text(json.dumps(rows), encoding="utf-8")

    try:
        folder = made_once("questions", {"salt": salt, **built_in_data_version()}, write)
        if not made:
            rows = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            made.append([_question(row) for row in rows])
    except OSError:
        # A home that cannot be written costs seconds at every start, and nothing else.
        if not made:
            made.append(make())
    return tuple(made[0])


def _question(row: Sequence[Any]) -> Question:
    fields = dict(zip(_FIELDS, row, strict=True))
    return Question(**{**fields, "others": tuple(fields["others"])})  # JSON knows lists alone
