"""The built-in corpus."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flwr_splitkd.data import (
    STDLIB_HELDOUT_MODULES,
    STDLIB_TEACHER_MODULES,
    documents_digest,
    stdlib_documents,
)
from flwr_splitkd.errors import DataError

SOURCES = {
    "alpha.py": '"""About alpha."""\nraise SystemExit("imported")\n',
    "_pybeta.py": 'def f():\n    """About beta."""\n',
    "_gamma.py": 'class C:\n    """About C."""\n    def m(self):\n        """About m."""\n',
    "__delta__.py": '"""About delta."""\n',
    "pack/__init__.py": '"""About pack."""\n',
    "pack/inner.py": (
        'try:\n    import x\nexcept ImportError:\n    def f():\n        """In a handler."""\nelse:\n'
        '    if x:\n        async def g():\n            """In a branch."""\n'
    ),
    "silent.py": "x = 1\n",
    "surrogate.py": '"""A lone \\ud800 surrogate."""\n',
    "broken.py": "def f(:\n",
    "binary.py": "x = '\x00'\n",
    "pydoc_data/topics.py": "topics = {'with': 'About with.', 'assert': 'About assert.', 'empty': ' '}\n",
    "test/test_alpha.py": '"""A test."""\n',
    "pack/tests/test_inner.py": '"""A test."""\n',
    "site-packages/other.py": '"""Not ours."""\n',
    "_sysconfigdata__linux.py": '"""Generated."""\n',
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name, source in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return tmp_path


def test_docstrings_of_a_library_are_read_without_importing_it(library: Path) -> None:
    found = [(document.module, document.text) for document in stdlib_documents(library)]
    assert found == [
        ("__delta__", "__delta__\n\nAbout delta.\n"),
        ("gamma", "_gamma.C\n\nAbout C.\n\n_gamma.C.m\n\nAbout m.\n"),
        ("beta", "_pybeta.f\n\nAbout beta.\n"),
        ("alpha", "alpha\n\nAbout alpha.\n"),
        ("pack", "pack\n\nAbout pack.\n"),
        ("pack", "pack.inner.f\n\nIn a handler.\n\npack.inner.g\n\nIn a branch.\n"),
        ("pydoc_data", "assert\n\nAbout assert."),
        ("pydoc_data", "with\n\nAbout with."),
        ("surrogate", "surrogate\n\nA lone ? surrogate.\n"),
    ]


def test_annotated_topics_are_found(tmp_path: Path) -> None:
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics: dict[str, str] = {'with': 'About with.'}\n")
    assert [document.text for document in stdlib_documents(tmp_path)] == ["with\n\nAbout with."]


def test_a_library_without_sources_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        stdlib_documents(tmp_path)


def test_the_real_library_is_large_and_has_the_modules_that_we_name() -> None:
    documents = stdlib_documents()
    modules = {document.module for document in documents}
    assert sum(document.num_bytes for document in documents) > 1_500_000
    assert {"asyncio", "email", "pydoc_data"} <= modules
    assert set(STDLIB_HELDOUT_MODULES) <= modules
    # tkinter is a package of its own on Debian.
    assert set(STDLIB_TEACHER_MODULES) - modules <= {"tkinter"}
    assert not set(STDLIB_HELDOUT_MODULES) & set(STDLIB_TEACHER_MODULES)
    assert all(document.text.strip() for document in documents)
    assert not modules & {"test", "site-packages", "dist-packages", "lib2to3", "idlelib"}


def test_another_process_reads_the_same_corpus() -> None:
    code = (
        "from flwr_splitkd.data import documents_digest, stdlib_documents; print(documents_digest(stdlib_documents()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert done.stdout.strip() == documents_digest(stdlib_documents())
