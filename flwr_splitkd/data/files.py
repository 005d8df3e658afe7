"""A user's own text and JSONL files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr_splitkd.data.documents import Document
from flwr_splitkd.errors import DataError

__all__ = ["read_files"]

_JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_TEXT_SUFFIXES = frozenset({".md", ".rst", ".txt"})


def read_files(
    paths: Sequence[str | Path],
    *,
    text_field: str = "text",
    module_field: str | None = None,
    encoding: str = "utf-8",
) -> tuple[Document, ...]:
    """Read text files as one document each, and JSONL files as one document per line.

    Parameters
    ----------
    paths
        Files or directories. A directory stands for the ``.txt``, ``.md``, ``.rst``, ``.jsonl`` and
        ``.ndjson`` files in and below it, sorted. Any file named by itself is read, as JSONL if its suffix
        says so, else as text.
    text_field
        The field of a JSONL line that holds the text.
    module_field
        The field that holds the document's module (an author, a site, a patient); by default the module is
        the file.
    encoding
        Text encoding of every file, as Python names it. A byte order mark is skipped.

    Raises
    ------
    DataError
        If a file is missing, empty or not in ``encoding``, or a line is not JSON or lacks a field. The
        message names the file and the line.
    """
    documents: list[Document] = []
    for file in _expand(paths):
        text = _read(file, encoding)
        if file.suffix.lower() in _JSONL_SUFFIXES:
            found = list(_jsonl_documents(file, text, text_field, module_field))
        else:
            found = [Document(module=str(file), text=text)] if text.strip() else []
        if not found:
            raise DataError(f"{file}: the file has no text; expected at least one document. Remove or fill the file.")
        documents += found
    return tuple(documents)


def _expand(paths: Sequence[str | Path]) -> Iterator[Path]:
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            yield path
        elif path.is_dir():
            suffixes = _TEXT_SUFFIXES | _JSONL_SUFFIXES
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
            if not inside:
                raise DataError(
                    f"directory '{path}' has no data files; expected one of {', '.join(sorted(suffixes))}. "
                    "Name the files themselves if they end differently."
                )
            yield from inside
        else:
            raise DataError(f"'{path}' does not exist; expected a file or a directory. Check `source`.")


def _read(file: Path, encoding: str) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Check the file's permissions.") from error
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}:{line}: byte 0x{data[error.start]:02x} is not {encoding}; expected that encoding. "
            "Convert the file, or set `encoding`."
        ) from error
    except LookupError as error:
        raise DataError(f"`encoding` is '{encoding}'; expected a text encoding such as 'utf-8'.") from error


def _jsonl_documents(file: Path, text: str, text_field: str, module_field: str | None) -> Iterator[Document]:
    # Not str.splitlines, which also breaks at separators that JSON strings may hold unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{file}:{number}: {_excerpt(line)} is not JSON ({error}); expected one object per line. "
                "Correct the line."
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{file}:{number}: {_excerpt(line)} is a {type(record).__name__}; expected a JSON object. "
                "Correct the line."
            )
        content = _field(file, number, record, text_field, "text_field")
        if not isinstance(content, str):
            raise DataError(
                f"{file}:{number}: field '{text_field}' is a {type(content).__name__}; expected a string. "
                "Correct the line, or set `text_field`."
            )
        module = str(file) if module_field is None else str(_field(file, number, record, module_field, "module_field"))
        if content.strip():
            # JSON can name a lone surrogate, which is no text in any encoding.
            yield Document(module=module, text=content.encode("utf-8", "replace").decode("utf-8"))


def _field(file: Path, number: int, record: dict[str, object], field: str, setting: str) -> object:
    if field not in record:
        present = ", ".join(f"'{name}'" for name in record) or "none"
        raise DataError(
            f"{file}:{number}: field '{field}' is missing; the line has {present}. "
            f"Add the field, or set `{setting}` to one that exists."
        )
    return record[field]


def _excerpt(line: str, limit: int = 40) -> str:
    line = line.strip()
    return repr(line if len(line) <= limit else line[: limit - 3] + "...")
