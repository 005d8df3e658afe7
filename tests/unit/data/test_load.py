"""The front door."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.data import (
    STDLIB_HELDOUT_MODULES,
    DataConfig,
    byte_tokenizer,
    load_heldout,
    load_partition,
    split_documents,
)
from flwr_splitkd.errors import ConfigError, DataError

AUTHORS = ("ann", "bob", "cid", "dan", "eve")


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    lines = [f'{{"text": "{author} {number} writes", "by": "{author}"}}' for number in range(4) for author in AUTHORS]
    path.write_text("\n".join(lines))
    return path


def decoded(blocks: Any) -> str:
    text: str = byte_tokenizer().decode(blocks.input_ids[blocks.attention_mask == 1])
    return text


def test_every_device_reads_its_own_modules(letters: Path) -> None:
    config = DataConfig(source=letters, module_field="by", sequence_length=8, heldout=("eve",))
    texts = [
        decoded(load_partition(config, byte_tokenizer(), partition_id=index, num_partitions=4)) for index in range(4)
    ]
    texts.append(decoded(load_heldout(config, byte_tokenizer())))
    assert [{author for author in AUTHORS if author in text} for text in texts] == [{name} for name in AUTHORS]


def test_documents_are_dealt_where_modules_are_too_few(letters: Path) -> None:
    with pytest.raises(
        DataError, match=r"`num_partitions` is 6; expected 1\.\.0 for .*to something smaller than modules"
    ):
        split_documents(DataConfig(source=letters), 6)
    split = split_documents(DataConfig(source=(letters,), split_by="document"), 6)
    documents = [d.text for part in (*split.devices, split.heldout) for d in part.documents]
    assert len(documents) == len(set(documents)) == 20
    assert len(split.heldout.documents) == 2
    assert {len(part.documents) for part in split.devices} == {3}


def test_a_module_is_held_out_by_name_also_document_by_document(letters: Path) -> None:
    config = DataConfig(source=letters, module_field="by", split_by="document", heldout=("bob",))
    split = split_documents(config, 8)
    assert [d.text for d in split.heldout.documents] == [f"bob {number} writes" for number in range(4)]
    with pytest.raises(DataError, match="'zoe'"):
        split_documents(DataConfig(source=letters, split_by="document", heldout=("zoe",)), 8)


def test_a_device_with_its_own_file_is_partition_0_of_1(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("My own text.")
    config = DataConfig(source=str(path), heldout=0.0, sequence_length=4)
    blocks = load_partition(config, byte_tokenizer(), partition_id=0, num_partitions=1)
    assert decoded(blocks).startswith("My own text.")
    with pytest.raises(DataError, match=r"`heldout` is 0\.0, so nothing is held out"):
        load_heldout(config, byte_tokenizer())


def test_padded_blocks_on_request(letters: Path) -> None:
    config = DataConfig(source=letters, module_field="by", packed=False, sequence_length=64)
    blocks = load_partition(config, byte_tokenizer(), partition_id=0, num_partitions=2)
    assert (blocks.attention_mask == 0).any(dim=1).all()


def test_built_in_corpus() -> None:
    split = split_documents(DataConfig(), 10)
    assert {name for name, _ in split.heldout.modules} == set(STDLIB_HELDOUT_MODULES)
    first = {part.modules[0][0] for part in split.devices}
    assert len(first) == 10
    assert {"asyncio", "email"} <= first
    sizes = [part.num_bytes for part in split.devices]
    assert max(sizes) <= 1.05 * min(sizes)
    assert split.teacher.num_bytes > 2 * max(sizes)
    own = split_documents(DataConfig(heldout=("typing",)), 10)
    assert [name for name, _ in own.heldout.modules] == ["typing"]
    assert "typing" not in {name for name, _ in own.teacher.modules}


class FakeFederatedDataset:
    def __init__(self, *, dataset: str, subset: str | None, partitioners: dict[str, Any]):
        assert (dataset, subset) == ("org/books", "en")
        self.partitioners = partitioners

    def load_split(self, split: str) -> list[dict[str, str]]:
        return [{"body": f"{split} whole"}]

    def load_partition(self, partition_id: int, split: str) -> list[dict[str, str]]:
        return [{"body": f"{split} {partition_id} of {self.partitioners[split]}"}]


def test_hugging_face_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("flwr_datasets")
    module.FederatedDataset = FakeFederatedDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", module)
    config = DataConfig(
        source="hf:org/books",
        hub_subset="en",
        hub_heldout_split="validation",
        text_field="body",
        sequence_length=32,
    )
    where = {"partition_id": 1, "num_partitions": 3}
    assert "train 1 of 3" in decoded(load_partition(config, byte_tokenizer(), **where))
    assert "train 1 of mine" in decoded(load_partition(config, byte_tokenizer(), **where, partitioner="mine"))
    assert "validation whole" in decoded(load_heldout(config, byte_tokenizer()))
    with pytest.raises(DataError, match="'hf:org/books' is divided by flwr-datasets"):
        split_documents(config, 3)


@pytest.mark.parametrize("source", ["stdlib", "hf:org/books", "a.txt"])
@pytest.mark.parametrize(("partition_id", "num_partitions"), [(3, 3), (-1, 3), (0, 0)])
def test_partition_id_is_checked(source: str, partition_id: int, num_partitions: int) -> None:
    expected = rf"`partition_id` is {partition_id}; expected 0\.\.{num_partitions - 1}"
    with pytest.raises(DataError, match=expected):
        load_partition(
            DataConfig(source=source),
            byte_tokenizer(),
            partition_id=partition_id,
            num_partitions=num_partitions,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": ""}, "`source` is ''"),
        ({"source": ()}, r"`source` is \(\)"),
        ({"source": "hf:"}, "`source` is 'hf:'"),
        ({"sequence_length": 1}, "`sequence_length` is 1; expected at least 2"),
        ({"split_by": "line"}, "`split_by` is 'line'; expected 'module' or 'document'"),
        ({"source": "hf:x", "split_by": "module"}, "`split_by` is 'module'; .*`partitioner`"),
        ({"source": "hf:x", "heldout": 0.1}, r"`heldout` is 0\.1; .*`hub_heldout_split`"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)
