"""Partitions by module."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from flwr_splitkd.data import Document, ModuleSplit, partition_by_module, stdlib_documents
from flwr_splitkd.errors import DataError


def corpus(num_modules: int = 20) -> list[Document]:
    return [
        Document(module=f"m{index:02d}", text=f"{index:02d}" * (index + 1))
        for index in range(num_modules)
        for _ in range(2)
    ]


def parts(split: ModuleSplit) -> list[set[str]]:
    return [{name for name, _ in part.modules} for part in (*split.devices, split.heldout, split.teacher)]


@pytest.mark.parametrize("num_partitions", [1, 2, 7])
@pytest.mark.parametrize(
    ("heldout", "teacher"),
    [(0.0, ()), (0.1, 0.3), (0.25, ()), (("m03", "m19"), 0.3), (("m03", "m19"), ("m00", "m18"))],
)
def test_every_document_has_exactly_one_owner(num_partitions: int, heldout: object, teacher: object) -> None:
    documents = corpus()
    split = partition_by_module(documents, num_partitions, heldout=heldout, teacher=teacher)
    for one, other in itertools.combinations(parts(split), 2):
        assert not one & other
    owned = [d for part in (*split.devices, split.heldout, split.teacher) for d in part.documents]
    assert sorted(owned, key=lambda d: d.module) == documents
    assert all(part.documents for part in split.devices)


def test_devices_are_balanced_and_differ() -> None:
    split = partition_by_module(corpus(60), 10)
    sizes = [part.num_bytes for part in split.devices]
    assert max(sizes) - min(sizes) <= 0.1 * max(sizes)
    assert len({part.modules[0][0] for part in split.devices}) == 10


def test_the_built_in_corpus_gives_ten_balanced_devices() -> None:
    split = partition_by_module(stdlib_documents(), 10)
    sizes = [part.num_bytes for part in split.devices]
    first = [part.modules[0][0] for part in split.devices]
    # The language reference is larger than a tenth of the corpus, so one device may hold more.
    assert max(sorted(sizes)[:-1]) <= 1.05 * min(sizes)
    assert len(set(first)) == 10


def test_order_of_modules_does_not_matter() -> None:
    documents = corpus()
    shuffled = list(documents)
    random.Random(0).shuffle(shuffled)
    kwargs = {"num_partitions": 4, "heldout": 0.2, "teacher": 0.2}
    assert parts(partition_by_module(documents, **kwargs)) == parts(partition_by_module(shuffled, **kwargs))


def test_heldout_and_teacher_do_not_depend_on_the_number_of_devices() -> None:
    one = partition_by_module(corpus(), 1, heldout=0.2, teacher=0.3)
    many = partition_by_module(corpus(), 9, heldout=0.2, teacher=0.3)
    assert (one.heldout, one.teacher) == (many.heldout, many.teacher)


def test_shares_are_kept_and_never_empty() -> None:
    documents = corpus()
    total = sum(document.num_bytes for document in documents)
    split = partition_by_module(documents, 2, heldout=0.2, teacher=0.3)
    assert 0.1 * total < split.heldout.num_bytes <= 0.2 * total
    assert 0.2 * total < split.teacher.num_bytes <= 0.3 * total
    # A share smaller than every module takes the smallest one.
    assert partition_by_module(documents, 2, heldout=1e-6).heldout.modules == (("m00", 4),)


def test_describe_names_modules_and_bytes() -> None:
    text = partition_by_module(corpus(), 2, heldout=("m00",)).describe(max_modules=1)
    lines = text.splitlines()
    assert [line[:8].strip() for line in lines] == ["device 0", "device 1", "held out", "teacher"]
    assert re.search(r"m19 0 kB and \d more", text)
    assert lines[2].endswith("m00 0 kB")


@pytest.mark.parametrize("num_partitions", [0, -1, 19, 1000])
def test_number_of_partitions_is_checked(num_partitions: int) -> None:
    expected = rf"`num_partitions` is {num_partitions}; expected 1\.\.18 .*\(2 held out"
    with pytest.raises(DataError, match=expected):
        partition_by_module(corpus(), num_partitions, heldout=("m00", "m01"))


@pytest.mark.parametrize("role", ["heldout", "teacher"])
@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_are_checked(role: str, share: float) -> None:
    with pytest.raises(DataError, match=rf"`{role}` is {share}"):
        partition_by_module(corpus(), 1, **{role: share})


def test_unknown_module_is_named() -> None:
    with pytest.raises(DataError, match="names module 'asynchio'; expected one of 'm00'"):
        partition_by_module(corpus(), 1, heldout=("asynchio",))


def test_a_module_has_one_role() -> None:
    with pytest.raises(DataError, match="'m05' is both held out and the teacher's"):
        partition_by_module(corpus(), 1, heldout=("m04", "m05"), teacher=("m05",))


def test_no_documents() -> None:
    with pytest.raises(DataError, match="0 documents"):
        partition_by_module([], 1)
