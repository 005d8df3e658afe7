"""Hugging Face data sets, through a stand-in with the part of flwr-datasets that we use."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from flwr_splitkd.data import Document, read_hub_partition, read_hub_split
from flwr_splitkd.errors import DataError

ROWS = [{"text": f"row {index}", "by": f"author {index % 3}", "n": index} for index in range(7)]


class FakeFederatedDataset:
    """Deals rows in turn; every call is recorded."""

    opened: dict[str, Any]

    def __init__(self, *, dataset: str, subset: str | None, partitioners: dict[str, Any]):
        type(self).opened = {"dataset": dataset, "subset": subset, "partitioners": partitioners}
        self.partitioners = partitioners

    def load_split(self, split: str) -> list[dict[str, Any]]:
        if split not in ("train", "test"):
            raise ValueError(f"The given split: '{split}' is not present")
        return ROWS

    def load_partition(self, partition_id: int, split: str) -> list[dict[str, Any]]:
        return self.load_split(split)[partition_id :: self.partitioners[split]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeFederatedDataset]:
    module = types.ModuleType("flwr_datasets")
    module.FederatedDataset = FakeFederatedDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)
    return FakeFederatedDataset


def test_split_is_read_whole(hub: type[FakeFederatedDataset]) -> None:
    documents = read_hub_split("org/books", split="test", subset="en", module_field="by")
    assert documents == tuple(Document(module=row["by"], text=row["text"]) for row in ROWS)
    assert hub.opened == {"dataset": "org/books", "subset": "en", "partitioners": {}}


def test_partitions_are_disjoint_and_complete(hub: type[FakeFederatedDataset]) -> None:
    texts = [document.text for index in range(3) for document in read_hub_partition("books", index, 3, split="train")]
    assert sorted(texts) == [row["text"] for row in ROWS]
    assert hub.opened["partitioners"] == {"train": 3}


def test_partitioner_of_the_user_is_passed_on(hub: type[FakeFederatedDataset]) -> None:
    with pytest.raises(TypeError):
        # The stand-in only slices by numbers; what matters is what it was given.
        read_hub_partition("books", 0, 3, split="train", partitioner="dirichlet")
    assert hub.opened["partitioners"] == {"train": "dirichlet"}


@pytest.mark.usefixtures("hub")
def test_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="'hf:books' has no column 'body'; it has 'text', 'by', 'n'"):
        read_hub_split("books", split="train", text_field="body")


@pytest.mark.usefixtures("hub")
def test_column_that_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match="column 'n' of data set 'hf:books' holds a int"):
        read_hub_split("books", split="train", text_field="n")


@pytest.mark.usefixtures("hub")
def test_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match=r"'hf:books', split 'tain', cannot be read: .*not present"):
        read_hub_split("books", split="tain")
    with pytest.raises(DataError, match=r"'hf:books', split 'tain', cannot be read: .*not present"):
        read_hub_partition("books", 0, 2, split="tain")


@pytest.mark.usefixtures("hub")
def test_no_text_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeFederatedDataset, "load_split", lambda *_: [{"text": " "}])
    with pytest.raises(DataError, match="'hf:books' gave 0 documents"):
        read_hub_split("books", split="train")


def test_without_flwr_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'flwr_splitkd\[data\]'"):
        read_hub_split("books", split="train")


def test_the_real_library_reads_local_files(tmp_path: Any) -> None:
    pytest.importorskip("flwr_datasets")
    lines = "".join(f'{{"text": "row {index}", "by": "a{index % 2}"}}\n' for index in range(8))
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "test.jsonl").write_text('{"text": "held out", "by": "c"}\n')
    found = [
        document.text
        for index in range(2)
        for document in read_hub_partition(str(tmp_path), index, 2, split="train", module_field="by")
    ]
    assert sorted(found) == [f"row {index}" for index in range(8)]
    assert read_hub_split(str(tmp_path), split="test")[0].text == "held out"
    with pytest.raises(DataError, match="split 'tain', cannot be read"):
        read_hub_split(str(tmp_path), split="tain")
    with pytest.raises(DataError, match="cannot be read"):
        read_hub_split(str(tmp_path / "none"), split="train")
