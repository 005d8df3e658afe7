"""The front door: from one description of a data set to the blocks of a device or of the evaluation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from flwr_splitkd.data.blocks import BlockDataset, text_blocks
from flwr_splitkd.data.documents import Document
from flwr_splitkd.data.files import read_files
from flwr_splitkd.data.hub import read_hub_partition, read_hub_split
from flwr_splitkd.data.partition import ModuleSplit, partition_by_module
from flwr_splitkd.data.stdlib import STDLIB_HELDOUT_MODULES, STDLIB_TEACHER_MODULES, stdlib_documents
from flwr_splitkd.errors import ConfigError, DataError

__all__ = ["DataConfig", "load_heldout", "load_partition", "split_documents"]

_HUB_PREFIX = "hf:"
_FILE_HELDOUT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it is divided.

    Parameters
    ----------
    source
        ``"stdlib"`` for the built-in corpus, ``"hf:<name>"`` for a Hugging Face data set, else the path of a
        text or JSONL file, of a directory of them, or several paths.
    sequence_length
        Tokens per block, at least 2.
    packed
        Whether a block may hold several documents; otherwise every document ends in a padded block.
    split_by
        ``"module"`` gives whole modules to a device, ``"document"`` deals single documents. By default
        ``"module"``; not for Hugging Face data sets, which a partitioner of flwr-datasets divides.
    heldout
        Share of the bytes in [0, 1) that is held out, or names of modules. By default a fixed list for the
        built-in corpus and 0.1 for files; not for Hugging Face data sets, which have a split for it.
    text_field, module_field
        Fields of a JSONL line or columns of a data set that hold the text and, optionally, its module.
    encoding
        Text encoding of files.
    hub_subset, hub_split, hub_heldout_split
        Names within a Hugging Face data set: its subset, and what to train and evaluate on.

    Raises
    ------
    ConfigError
        If a field is out of range or does not apply to the source.
    """

    source: str | Path | tuple[str | Path, ...] = "stdlib"
    sequence_length: int = 128
    packed: bool = True
    split_by: Literal["module", "document"] | None = None
    heldout: float | tuple[str, ...] | None = None
    text_field: str = "text"
    module_field: str | None = None
    encoding: str = "utf-8"
    hub_subset: str | None = None
    hub_split: str = "train"
    hub_heldout_split: str = "test"

    def __post_init__(self) -> None:
        if not self.source or self.source == _HUB_PREFIX:
            raise ConfigError(f"`source` is {self.source!r}; expected 'stdlib', 'hf:<name>' or paths. Set it.")
        if self.sequence_length < 2:
            raise ConfigError(f"`sequence_length` is {self.sequence_length}; expected at least 2. Raise it.")
        if self.split_by not in (None, "module", "document"):
            raise ConfigError(f"`split_by` is '{self.split_by}'; expected 'module' or 'document'. Correct it.")
        if self.hub_name is not None:
            for name, value, instead in (
                ("split_by", self.split_by, "pass a `partitioner` of flwr-datasets to `load_partition`"),
                ("heldout", self.heldout, "set `hub_heldout_split`"),
            ):
                if value is not None:
                    raise ConfigError(f"`{name}` is {value!r}; expected none for source {self.source!r}: {instead}.")

    @property
    def hub_name(self) -> str | None:
        """Name of the Hugging Face data set, if the source is one."""
        if isinstance(self.source, str) and self.source.startswith(_HUB_PREFIX):
            return self.source.removeprefix(_HUB_PREFIX)
        return None


def split_documents(config: DataConfig, num_partitions: int) -> ModuleSplit:
    """Divide the built-in corpus or the user's files among devices, evaluation and teacher.

    Parameters
    ----------
    config
        Any source but a Hugging Face data set. Only the built-in corpus has text for a teacher.
    num_partitions
        Number of devices, at least 1.

    Raises
    ------
    DataError
        If the source cannot be read or divided, or is a Hugging Face data set.
    """
    if config.hub_name is not None:
        raise DataError(
            f"source {config.source!r} is divided by flwr-datasets; expected 'stdlib' or paths. "
            "Use `load_partition` and `load_heldout`."
        )
    if config.source == "stdlib":
        documents = stdlib_documents()
        # Distributions leave modules out (Debian ships tkinter apart), and versions differ.
        present = {document.module for document in documents}
        heldout: float | tuple[str, ...] = tuple(name for name in STDLIB_HELDOUT_MODULES if name in present)
        teacher = tuple(name for name in STDLIB_TEACHER_MODULES if name in present)
    else:
        paths = config.source if isinstance(config.source, tuple) else (config.source,)
        documents = read_files(
            paths, text_field=config.text_field, module_field=config.module_field, encoding=config.encoding
        )
        heldout, teacher = _FILE_HELDOUT_SHARE, ()
    if config.heldout is not None:
        heldout = config.heldout
        if isinstance(config.heldout, tuple):
            # Names that the user holds out are no longer the teacher's.
            teacher = tuple(name for name in teacher if name not in config.heldout)
    if config.split_by == "document":
        return _split_by_document(documents, num_partitions, heldout, teacher)
    return partition_by_module(documents, num_partitions, heldout=heldout, teacher=teacher)


def load_partition(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    partition_id: int,
    num_partitions: int,
    partitioner: object | None = None,
) -> BlockDataset:
    """Return the token blocks of one device.

    Parameters
    ----------
    config
        The data set.
    tokenizer
        The student's tokenizer.
    partition_id
        From 0 to ``num_partitions`` - 1. A device that reads its own file is partition 0 of 1.
    num_partitions
        Number of devices, at least 1.
    partitioner
        For Hugging Face data sets: how flwr-datasets divides the split, by default IID.

    Raises
    ------
    DataError
        If the partition does not exist, or the data cannot be read or divided.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"`partition_id` is {partition_id}; expected 0..{num_partitions - 1} for `num_partitions` = "
            f"{num_partitions}. "
            "Check the node's `partition-id` and `num-partitions`."
        )
    if config.hub_name is None:
        documents = split_documents(config, num_partitions).devices[partition_id].documents
    else:
        documents = read_hub_partition(
            config.hub_name,
            partition_id,
            num_partitions,
            split=config.hub_split,
            subset=config.hub_subset,
            text_field=config.text_field,
            module_field=config.module_field,
            partitioner=partitioner,
        )
    return text_blocks(documents, tokenizer, config.sequence_length, packed=config.packed)


def load_heldout(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> BlockDataset:
    """Return the token blocks that no device trains on, whatever the number of devices.

    Parameters
    ----------
    config
        The data set.
    tokenizer
        The student's tokenizer.

    Raises
    ------
    DataError
        If nothing is held out, or the data cannot be read or divided.
    """
    if config.hub_name is None:
        documents = split_documents(config, 1).heldout.documents
    else:
        documents = read_hub_split(
            config.hub_name,
            split=config.hub_heldout_split,
            subset=config.hub_subset,
            text_field=config.text_field,
            module_field=config.module_field,
        )
    if not documents:
        raise DataError(f"`heldout` is {config.heldout!r}, so nothing is held out; expected a share above 0. Raise it.")
    return text_blocks(documents, tokenizer, config.sequence_length, packed=config.packed)


def _split_by_document(
    documents: Iterable[Document],
    num_partitions: int,
    heldout: float | tuple[str, ...],
    teacher: tuple[str, ...],
) -> ModuleSplit:
    """Divide by document: number the documents within their module, and divide the numbered ones."""
    seen: Counter[str] = Counter()
    numbered: list[Document] = []
    members: dict[str, list[str]] = {}
    for document in documents:
        seen[document.module] += 1
        name = f"{document.module}#{seen[document.module]}"
        members.setdefault(document.module, []).append(name)
        numbered.append(dataclasses.replace(document, module=name))

    def of(modules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for module in modules for name in members.get(module, [module]))

    return partition_by_module(
        numbered,
        num_partitions,
        heldout=heldout if isinstance(heldout, (int, float)) else of(heldout),
        teacher=of(teacher),
    )
