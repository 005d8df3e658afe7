"""Tokenizers that need no download, in the form of Hugging Face fast tokenizers."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flwr_splitkd.data.documents import Document
from flwr_splitkd.errors import DataError

__all__ = ["byte_tokenizer", "train_tokenizer"]

_PAD, _BOS, _EOS = "<|pad|>", "<|bos|>", "<|eos|>"
_SPECIAL_TOKENS = (_PAD, _BOS, _EOS)
_MIN_VOCAB_SIZE = 256 + len(_SPECIAL_TOKENS)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per UTF-8 byte: the same everywhere, nothing to train or store.

    Ids 0, 1 and 2 are the pad, begin and end tokens, 3 to 258 the bytes.
    """
    # Byte-level BPE without merges is a byte tokenizer, and saves and loads like any other.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL_TOKENS, *alphabet])}
    return _wrap(Tokenizer(models.BPE(vocab=vocabulary, merges=[])), _pre_tokenizer(False))


def train_tokenizer(
    documents: Iterable[Document], vocab_size: int = 1024, *, words_apart: bool = False
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer; the same documents give the same tokenizer.

    Parameters
    ----------
    documents
        The text to learn merges from.
    vocab_size
        Number of tokens with the 3 special and 256 byte tokens, at least 259. Little text may yield fewer.
    words_apart
        Whether a word is the same tokens after a space, after a bracket and at the start of a line. Otherwise a space
        is part of the word that follows, which is shorter, but a word that is copied elsewhere is other tokens there.

    Raises
    ------
    DataError
        If ``vocab_size`` is too small or there is no text.
    """
    if vocab_size < _MIN_VOCAB_SIZE:
        raise DataError(
            f"`vocab_size` is {vocab_size}; expected at least {_MIN_VOCAB_SIZE} (256 bytes and "
            f"{len(_SPECIAL_TOKENS)} special tokens). Raise it, or use `byte_tokenizer()`."
        )
    texts = [document.text for document in documents]
    if not texts:
        raise DataError("there are 0 documents to train a tokenizer on; expected at least 1. Check the data set.")
    tokenizer = Tokenizer(models.BPE())
    before = _pre_tokenizer(words_apart)
    tokenizer.pre_tokenizer = before
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS),
        # Sorted: the alphabet comes as a set, and its order would otherwise become the order of the ids.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, before)


def _pre_tokenizer(words_apart: bool) -> pre_tokenizers.PreTokenizer:
    if not words_apart:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = pre_tokenizers.Split(Regex(r"\s|\w+|[^\w\s]"), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _wrap(tokenizer: Tokenizer, before: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerBase:
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        # Decoding gives back the very bytes; the default would drop spaces before punctuation.
        clean_up_tokenization_spaces=False,
    )
