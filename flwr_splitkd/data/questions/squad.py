"""Questions of the user's own: SQuAD's JSON, JSONL, and data sets on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr_splitkd.data.hub import hub_rows
from flwr_splitkd.data.questions.question import Question
from flwr_splitkd.errors import DataError

__all__ = ["read_hub_questions", "read_question_files"]

_LINES = frozenset({".jsonl", ".ndjson"})
_SUFFIXES = frozenset({".json", *_LINES})


def read_question_files(paths: Sequence[str | Path], *, module_field: str = "title") -> tuple[Question, ...]:
    """Read files of SQuAD's form, version 1 or 2, and JSONL files with one question per line.

    A line has the fields ``context`` and ``question``, and either ``answer``, a text, or ``answers`` as SQuAD has
    them: a list of objects with ``text``, or one object with a list ``text``. Of several answers the first trains, and each
    counts as right (`Question.others`).
    Questions that SQuAD 2 marks as impossible are left out, because their answer is not in the context.

    Parameters
    ----------
    paths
        Files, or directories that are searched for ``.json``, ``.jsonl`` and ``.ndjson``.
    module_field
        The field of a line that says what partitions keep together; without it the file does. In SQuAD's form it is
        always the article's title.

    Raises
    ------
    DataError
        If a file is missing, has another form or no question, or an answer is not in its context.
    """
    questions: list[Question] = []
    for file in _expand(paths):
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}: cannot be read ({error}). Check its permissions, and save it as UTF-8."
            ) from error
        rows = _lines(file, text) if file.suffix.lower() in _LINES else _squad(file, text)
        found = [question for where, row in rows for question in _question(where, row, module_field, str(file))]
        if not found:
            raise DataError(f"{file}: the file has 0 questions with an answer; expected at least 1. Remove or fill it.")
        questions += found
    return tuple(questions)


def read_hub_questions(
    name: str,
    *,
    split: str,
    subset: str | None = None,
    module_field: str = "title",
    partition_id: int | None = None,
    num_partitions: int = 1,
    partitioner: object | None = None,
) -> tuple[Question, ...]:
    """Read a split of a data set of SQuAD's form, or one partition of it.

    Parameters
    ----------
    name, split, subset
        As in `read_hub_split`.
    module_field
        The column that says what belongs together; a data set without it is one module.
    partition_id, num_partitions, partitioner
        As in `read_hub_partition`; without ``partition_id`` the whole split.

    Raises
    ------
    DataError
        If flwr-datasets is not installed, the data set cannot be loaded, or it has no such questions.
    """
    rows = hub_rows(
        name,
        split=split,
        subset=subset,
        partition_id=partition_id,
        num_partitions=num_partitions,
        partitioner=partitioner,
    )
    where = f"data set 'hf:{name}'"
    found = tuple(question for row in rows for question in _question(where, row, module_field, name))
    if not found:
        raise DataError(f"{where}, split '{split}', gave 0 questions with an answer; expected some. Check the split.")
    return found


def _expand(paths: Sequence[str | Path]) -> Iterator[Path]:
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            yield path
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not inside:
            raise DataError(
                f"'{path}' is no file and has none of {', '.join(sorted(_SUFFIXES))} below it; expected questions in JSON. "
                "Check `source`."
            )
        yield from inside


def _lines(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not str.splitlines, which also breaks at separators that JSON strings may hold unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{file}:{number}: not JSON ({error}); expected one question per line. Correct it."
                ) from error


def _squad(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        for article in json.loads(text)["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    title = article.get("title")
                    row = {**asked, "context": paragraph["context"]}
                    yield str(file), row if title is None else {**row, "title": title}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: not of SQuAD's form ({type(error).__name__}: {error}); expected data, paragraphs, context and qas. "
            "Correct it, or write one question per line into a .jsonl file."
        ) from error


def _question(where: str, row: Any, module_field: str, default: str) -> Iterable[Question]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: the line holds a {type(row).__name__}; expected an object. Correct the line.")
    answers = _answers(where, row)
    if not answers or row.get("is_impossible"):
        return ()
    fields = {name: row.get(name) for name in ("context", "question")}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: `{name}` is {value!r}; expected a text. Correct the question.")
    module = row.get(module_field, row.get("title", default))
    try:
        answer, *others = dict.fromkeys(answers)  # annotators often agree
        kind = str(row.get("kind", ""))
        return (Question(**fields, answer=answer, others=tuple(others), module=str(module), kind=kind),)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _answers(where: str, row: Mapping[str, Any]) -> list[str]:
    """Return the answers; none if their list is empty, as for a question of SQuAD 2 without one."""
    found = row.get("answer", row.get("answers"))
    if isinstance(found, Mapping):
        found = found.get("text")
    listed = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    texts: list[str] = []
    for one in listed:
        text = one.get("text") if isinstance(one, Mapping) else one
        if not isinstance(text, str):
            raise DataError(
                f"{where}: the answer is {text!r}; expected `answer`, a text, or `answers` as SQuAD has them."
            )
        texts.append(text)
    return texts
