"""Hugging Face data sets through flwr-datasets, an optional dependency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr_splitkd.data.documents import Document
from flwr_splitkd.errors import DataError

__all__ = ["hub_rows", "read_hub_partition", "read_hub_split"]


def read_hub_split(
    name: str,
    *,
    split: str,
    subset: str | None = None,
    text_field: str = "text",
    module_field: str | None = None,
) -> tuple[Document, ...]:
    """Read a whole split of a data set.

    Parameters
    ----------
    name
        Name on the Hugging Face Hub, or path of a directory of data files.
    split, subset
        As in ``datasets.load_dataset``, which calls the subset ``name``.
    text_field
        The column that holds the text.
    module_field
        The column that holds the document's module; by default all documents belong to one module, the data
        set.

    Raises
    ------
    DataError
        If flwr-datasets is not installed, the data set cannot be loaded, a column is missing, or there is no
        text.
    """
    return _documents(hub_rows(name, split=split, subset=subset), name, text_field, module_field)


def read_hub_partition(
    name: str,
    partition_id: int,
    num_partitions: int,
    *,
    split: str,
    subset: str | None = None,
    text_field: str = "text",
    module_field: str | None = None,
    partitioner: object | None = None,
) -> tuple[Document, ...]:
    """Read one partition of a split.

    Parameters
    ----------
    name, split, subset, text_field, module_field
        As in `read_hub_split`.
    partition_id
        From 0 to ``num_partitions`` - 1.
    num_partitions
        Number of partitions, at least 1.
    partitioner
        Any partitioner of flwr-datasets, for example a ``DirichletPartitioner``; by default an
        ``IidPartitioner``.

    Raises
    ------
    DataError
        As in `read_hub_split`.
    """
    rows = hub_rows(
        name,
        split=split,
        subset=subset,
        partition_id=partition_id,
        num_partitions=num_partitions,
        partitioner=partitioner,
    )
    return _documents(rows, name, text_field, module_field)


def hub_rows(
    name: str,
    *,
    split: str,
    subset: str | None = None,
    partition_id: int | None = None,
    num_partitions: int = 1,
    partitioner: object | None = None,
) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a split, or of one partition of it, as mappings from column to value.

    Parameters
    ----------
    name, split, subset, partition_id, num_partitions, partitioner
        As in `read_hub_partition`; without ``partition_id`` the whole split.

    Raises
    ------
    DataError
        If flwr-datasets is not installed or the data set cannot be loaded.
    """
    whole = partition_id is None
    federated = _open(name, subset, {} if whole else {split: num_partitions if partitioner is None else partitioner})
    try:
        rows: Iterable[Mapping[str, Any]] = (
            federated.load_split(split) if whole else federated.load_partition(partition_id, split)
        )
    except (OSError, ValueError) as error:
        raise _unreadable(name, split, error) from error
    return rows


def _open(name: str, subset: str | None, partitioners: dict[str, Any]) -> Any:
    try:
        from flwr_datasets import FederatedDataset
    except ImportError as error:
        raise DataError(
            f"data set 'hf:{name}' needs flwr-datasets, which is not installed. Run `pip install 'flwr_splitkd[data]'`."
        ) from error
    return FederatedDataset(dataset=name, subset=subset, partitioners=partitioners)


def _documents(
    rows: Iterable[Mapping[str, Any]], name: str, text_field: str, module_field: str | None
) -> tuple[Document, ...]:
    documents: list[Document] = []
    for row in rows:
        for setting, field in (("text_field", text_field), ("module_field", module_field)):
            if field is not None and field not in row:
                present = ", ".join(f"'{column}'" for column in row)
                raise DataError(
                    f"data set 'hf:{name}' has no column '{field}'; it has {present}. Set `{setting}` to one of them."
                )
        text = row[text_field]
        if not isinstance(text, str):
            raise DataError(
                f"column '{text_field}' of data set 'hf:{name}' holds a {type(text).__name__}; expected a "
                "string. Set `text_field` to another column."
            )
        if text.strip():
            documents.append(Document(module=name if module_field is None else str(row[module_field]), text=text))
    if not documents:
        raise DataError(f"data set 'hf:{name}' gave 0 documents with text; expected some. Check the split.")
    return tuple(documents)


def _unreadable(name: str, split: str, error: Exception) -> DataError:
    return DataError(
        f"data set 'hf:{name}', split '{split}', cannot be read: {error}. "
        "Check the name, the split, the number of partitions and the network."
    )
