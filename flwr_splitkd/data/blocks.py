"""From documents to batches of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from transformers import PreTrainedTokenizerBase

from flwr_splitkd.data.documents import Document
from flwr_splitkd.errors import DataError

__all__ = ["IGNORED_LABEL", "BlockDataset", "make_loader", "text_blocks"]

IGNORED_LABEL = -100


class BlockDataset(Dataset[dict[str, Tensor]]):
    """Token blocks of one length; item ``i`` is a dict of ``input_ids``, ``attention_mask`` and ``labels``.

    Parameters
    ----------
    input_ids
        Token ids.
    attention_mask
        1 for a token, 0 for padding.
    """

    def __init__(self, input_ids: Int[Tensor, "blocks sequence"], attention_mask: Int[Tensor, "blocks sequence"]):
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        # Labels follow the mask, not the pad id: many tokenizers pad with their end token, which must stay a
        # label.
        self.labels = input_ids.masked_fill(attention_mask == 0, IGNORED_LABEL)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.input_ids[index],
            "attention_mask": self.attention_mask[index],
            "labels": self.labels[index],
        }

    def spread(self, max_blocks: int) -> BlockDataset:
        """Return at most ``max_blocks`` blocks, evenly spaced over the data set."""
        if len(self) <= max_blocks:
            return self
        index = torch.arange(max_blocks) * len(self) // max_blocks
        return BlockDataset(self.input_ids[index], self.attention_mask[index])


def text_blocks(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    *,
    packed: bool = True,
) -> BlockDataset:
    """Tokenize documents into blocks of one length.

    Every document ends with the tokenizer's end token, if it has one. Packed blocks run across documents, and
    only the last one may be padded; otherwise a block holds tokens of one document, and its last block is
    padded. A rest of a single token is dropped, because it predicts nothing.

    Parameters
    ----------
    documents
        The text, in the order in which it is packed.
    tokenizer
        Any Hugging Face tokenizer with a pad or an end token.
    sequence_length
        Tokens per block, at least 2.
    packed
        Whether a block may hold several documents.

    Raises
    ------
    DataError
        If the length is below 2, the tokenizer has no token to pad with, or the text gives no block.
    """
    if sequence_length < 2:
        raise DataError(
            f"`sequence_length` is {sequence_length}; expected at least 2, because a block's first token "
            "is not predicted. Raise it."
        )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if not isinstance(pad_id, int):
        raise DataError("the tokenizer has neither a pad nor an end token; expected one. Set `tokenizer.pad_token`.")
    streams = _token_streams([document.text for document in documents], tokenizer)
    if packed:
        streams = iter([[token for stream in streams for token in stream]])
    blocks = [
        stream[start : start + sequence_length]
        for stream in streams
        for start in range(0, len(stream), sequence_length)
        if len(stream) - start >= 2
    ]
    if not blocks:
        raise DataError("the documents give 0 blocks; expected at least 2 tokens of text. Check the partition.")
    input_ids = torch.full((len(blocks), sequence_length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, block in enumerate(blocks):
        input_ids[row, : len(block)] = torch.tensor(block)
        attention_mask[row, : len(block)] = 1
    return BlockDataset(input_ids, attention_mask)


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    max_batches: int | None = None,
    collate: Callable[[list[Any]], dict[str, Tensor]] | None = None,
) -> DataLoader[dict[str, Tensor]]:
    """Return a loader of dict batches in an order that only ``seed`` decides.

    Parameters
    ----------
    dataset
        A data set with a length, such as a `BlockDataset`.
    batch_size
        Blocks per batch, at least 1. The last batch may be smaller.
    shuffle
        Whether each pass over the loader draws a new order.
    seed
        Seed of the first pass; later passes continue its generator.
    max_batches
        Most batches per pass, at least 1. With ``shuffle`` each pass draws other blocks, else it takes the
        first.
    collate
        Makes a batch of items; by default they are stacked.

    Raises
    ------
    DataError
        If the data set is empty, or a number is out of range.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise DataError("the data set has 0 blocks; expected at least 1. Check the partition.")
    for name, value in (("batch_size", batch_size), ("max_batches", max_batches)):
        if value is not None and value < 1:
            raise DataError(f"`{name}` is {value}; expected at least 1. Raise it.")
    if max_batches is not None:
        size = min(size, max_batches * batch_size)
    sampler: Sampler[int] | Sequence[int] = range(size)
    generator = torch.Generator().manual_seed(seed)
    if shuffle:
        sampler = RandomSampler(dataset, num_samples=size, generator=generator)  # type: ignore[arg-type]
    # The loader draws a base seed for workers even without any; its own generator keeps that out of the
    # global one.
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, generator=torch.Generator(), collate_fn=collate)


def _token_streams(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    if not texts:
        return
    end: list[int] = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    # verbose=False: a document longer than the model's window is expected here, and cut into blocks below.
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for ids in encoded["input_ids"]:
        yield list(ids) + end
