"""Documents, and the package's lazy surface."""

from __future__ import annotations

import subprocess
import sys

import pytest

import flwr_splitkd.data
from flwr_splitkd.data import Document, documents_digest


def test_digest_sees_text_module_order_and_boundaries() -> None:
    a, b = Document(module="m", text="ab"), Document(module="m", text="c")
    variants = [
        [a, b],
        [b, a],
        [Document(module="n", text="ab"), b],
        [Document(module="m", text="a"), Document(module="m", text="bc")],
        [Document(module="ma", text="b"), b],
    ]
    assert documents_digest([a, b]) == documents_digest(tuple([a, b]))
    assert len({documents_digest(documents) for documents in variants}) == len(variants)


def test_num_bytes_counts_utf8() -> None:
    assert Document(module="m", text="h\u00e9").num_bytes == 3


def test_reading_and_dividing_text_needs_no_torch() -> None:
    code = "import sys, flwr_splitkd.data; print({'torch', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_every_public_name_resolves() -> None:
    pytest.importorskip("torch")
    for name in flwr_splitkd.data.__all__:
        assert getattr(flwr_splitkd.data, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_partitoin"):
        _ = flwr_splitkd.data.load_partitoin
