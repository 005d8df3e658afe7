"""A user's text and JSONL files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flwr_splitkd.data import Document, read_files
from flwr_splitkd.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "notes.log", "\ufeffone\n\ntwo\n")
    assert read_files([path]) == (Document(module=str(path), text="one\n\ntwo\n"),)


def test_jsonl_lines_are_documents(tmp_path: Path) -> None:
    # U+2028 is a line separator to str.splitlines but an ordinary character inside a JSON string.
    lines = '{"text": "one"}\r\n\n{"text": "t\u2028wo"}\n{"text": ""}\n{"text": "\\ud800"}'
    path = write(tmp_path / "a.jsonl", lines)
    texts = [document.text for document in read_files([str(path)])]
    assert texts == ["one", "t\u2028wo", "?"]


def test_fields_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"body": "one", "by": "ann"}\n{"body": "two", "by": 7}\n')
    documents = read_files([path], text_field="body", module_field="by")
    assert documents == (Document(module="ann", text="one"), Document(module="7", text="two"))


def test_directory_is_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "z.md", "z")
    write(tmp_path / "c.jsonl", '{"text": "c"}')
    write(tmp_path / "picture.png", b"\x89PNG")
    assert [document.text for document in read_files([tmp_path])] == ["z", "b", "c"]


def test_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "h\u00e9".encode("latin-1"))
    assert read_files([path], encoding="latin-1")[0].text == "h\u00e9"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": \n', ":2: '{\"text\":' is not JSON"),
        ("a.jsonl", '{"text": "one"}\n["two"]\n', ":2: '[\"two\"]' is a list; expected a JSON object"),
        ("a.jsonl", '\n\n{"body": "one", "n": 1}\n', ":3: field 'text' is missing; the line has 'body', 'n'"),
        ("a.jsonl", '{"text": 5}\n', ":1: field 'text' is a int; expected a string"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n', ":2: byte 0xff is not utf-8"),
        ("a.txt", b"one\ntwo\nthr\xe9e\n", ":3: byte 0xe9 is not utf-8"),
        ("a.txt", "", ": the file has no text"),
        ("a.txt", " \n\n", ": the file has no text"),
        ("a.jsonl", "\n\n", ": the file has no text"),
        ("a.jsonl", '{"text": " "}\n', ": the file has no text"),
    ],
)
def test_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        read_files([path])


def test_missing_module_field_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n')
    with pytest.raises(DataError, match=r":1: field 'by' is missing.*`module_field`"):
        read_files([path], module_field="by")


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"'{tmp_path / 'none.txt'}' does not exist")):
        read_files([tmp_path / "none.txt"])


def test_directory_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no data files"):
        read_files([tmp_path])


def test_unknown_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`encoding` is 'utf-88'"):
        read_files([write(tmp_path / "a.txt", "a")], encoding="utf-88")
