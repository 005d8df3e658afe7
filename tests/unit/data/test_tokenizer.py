"""Byte-level and trained tokenizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flwr_splitkd.data import Document, byte_tokenizer, train_tokenizer
from flwr_splitkd.errors import DataError

TEXT = "def wait_for(future, timeout):\n    Wait for the future to complete, with a timeout.\n" * 20
AWKWARD = " \n\n  h\u00e9llo , world .\t\u4e16\u754c \U0001f680 'don't'  \x00\x7f "


def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer([Document(module="m", text=TEXT)], vocab_size=300)


@pytest.fixture(params=["byte", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return byte_tokenizer() if request.param == "byte" else trained()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("text", [TEXT, AWKWARD, ""])
def test_decoding_gives_back_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode([0, *encode(tokenizer, "ab"), 2], skip_special_tokens=True) == "ab"


def test_saved_folder_loads_as_a_hugging_face_tokenizer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    for text in (TEXT, AWKWARD):
        assert encode(loaded, text) == encode(tokenizer, text)
        assert loaded.decode(encode(loaded, text)) == text


def test_one_byte_is_one_token() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 259
    for text in (TEXT, AWKWARD):
        assert len(encode(tokenizer, text)) == len(text.encode())


def test_trained_tokens_are_longer_than_bytes() -> None:
    tokenizer = trained()
    assert len(tokenizer) == 300
    assert len(encode(tokenizer, TEXT)) < 0.5 * len(TEXT)


def test_little_text_yields_a_smaller_vocabulary() -> None:
    assert len(train_tokenizer([Document(module="m", text="ab")], vocab_size=1000)) == 260


def test_training_is_the_same_in_another_process() -> None:
    code = (
        "from flwr_splitkd.data import *;"
        f"t = train_tokenizer([Document(module='m', text={TEXT!r})], vocab_size=300);"
        "print(t.backend_tokenizer.to_str())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"},
    )
    assert done.stdout.strip() == trained().backend_tokenizer.to_str()


@pytest.mark.parametrize("vocab_size", [258, 0, -1])
def test_vocab_size_is_checked(vocab_size: int) -> None:
    with pytest.raises(DataError, match=f"`vocab_size` is {vocab_size}; expected at least 259"):
        train_tokenizer([Document(module="m", text=TEXT)], vocab_size=vocab_size)


def test_training_needs_text() -> None:
    with pytest.raises(DataError, match="0 documents"):
        train_tokenizer([])


def test_a_word_is_the_same_tokens_wherever_it_stands() -> None:
    documents = [Document(module="m", text="wait(timeout, timeout=timeout)\ntimeout is the timeout\n" * 20)]
    text = "timeout(timeout, timeout=1)\n timeout"
    for words_apart in (True, False):
        tokenizer = train_tokenizer(documents, 300, words_apart=words_apart)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        alone = tokenizer.encode("timeout")
        ids = tokenizer.encode(text)
        found = sum(ids[place : place + len(alone)] == alone for place in range(len(ids)))
        assert (found == 4) is words_apart
