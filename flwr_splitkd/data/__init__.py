"""Text for devices: the built-in corpus, the user's files and Hugging Face data sets, divided and tokenized.

::

    documents.py   Document: a text and its module
    stdlib.py      the built-in corpus, from the standard library's own documentation
    files.py       text and JSONL files
    hub.py         Hugging Face data sets through flwr-datasets
    partition.py   non-IID partitions by module
    tokenizer.py   byte-level and trained tokenizers, without a download
    blocks.py      documents to blocks to batches
    load.py        DataConfig and load_partition, which join all of them
    questions/     question answering, built in and the user's own

Reading and dividing text needs neither torch nor transformers, so what does is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flwr_splitkd.data.documents import Document, documents_digest
from flwr_splitkd.data.files import read_files
from flwr_splitkd.data.hub import read_hub_partition, read_hub_split
from flwr_splitkd.data.partition import ModuleSplit, Partition, partition_by_module
from flwr_splitkd.data.stdlib import STDLIB_HELDOUT_MODULES, STDLIB_TEACHER_MODULES, stdlib_documents

if TYPE_CHECKING:
    from flwr_splitkd.data.blocks import IGNORED_LABEL, BlockDataset, make_loader, text_blocks
    from flwr_splitkd.data.load import DataConfig, load_heldout, load_partition, split_documents
    from flwr_splitkd.data.tokenizer import byte_tokenizer, train_tokenizer

__all__ = [
    "IGNORED_LABEL",
    "STDLIB_HELDOUT_MODULES",
    "STDLIB_TEACHER_MODULES",
    "BlockDataset",
    "DataConfig",
    "Document",
    "ModuleSplit",
    "Partition",
    "byte_tokenizer",
    "documents_digest",
    "load_heldout",
    "load_partition",
    "make_loader",
    "partition_by_module",
    "read_files",
    "read_hub_partition",
    "read_hub_split",
    "split_documents",
    "stdlib_documents",
    "text_blocks",
    "train_tokenizer",
]

_IMPORTED_ON_USE = {
    "IGNORED_LABEL": "blocks",
    "BlockDataset": "blocks",
    "make_loader": "blocks",
    "text_blocks": "blocks",
    "DataConfig": "load",
    "load_heldout": "load",
    "load_partition": "load",
    "split_documents": "load",
    "byte_tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_IMPORTED_ON_USE[name]}"), name)
