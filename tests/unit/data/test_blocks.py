"""Documents to blocks to batches."""

from __future__ import annotations

import pytest
import torch

from flwr_splitkd.data import IGNORED_LABEL, BlockDataset, Document, byte_tokenizer, make_loader, text_blocks
from flwr_splitkd.errors import DataError

PAD, EOS = 0, 2


def documents(*texts: str) -> list[Document]:
    return [Document(module="m", text=text) for text in texts]


def ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


def numbered(size: int) -> BlockDataset:
    return BlockDataset(torch.arange(size)[:, None].expand(-1, 4), torch.ones(size, 4, dtype=torch.long))


def test_packed_blocks_run_across_documents() -> None:
    blocks = text_blocks(documents("abcde", "fgh"), byte_tokenizer(), 4)
    assert blocks.input_ids.tolist() == [
        ids("abcd"),
        [*ids("e"), EOS, *ids("fg")],
        [*ids("h"), EOS, PAD, PAD],
    ]
    assert blocks.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert blocks[2]["labels"].tolist() == [*ids("h"), EOS, IGNORED_LABEL, IGNORED_LABEL]


def test_padded_blocks_hold_one_document() -> None:
    blocks = text_blocks(documents("abcde", "fgh"), byte_tokenizer(), 4, packed=False)
    assert blocks.input_ids.tolist() == [ids("abcd"), [*ids("e"), EOS, PAD, PAD], [*ids("fgh"), EOS]]
    assert blocks.labels.tolist() == [ids("abcd"), [*ids("e"), EOS, -100, -100], [*ids("fgh"), EOS]]


def test_a_rest_of_one_token_is_dropped() -> None:
    assert len(text_blocks(documents("abcd"), byte_tokenizer(), 4)) == 1
    assert len(text_blocks(documents("abcd", "abcd"), byte_tokenizer(), 4, packed=False)) == 2


def test_tokens_survive_packing() -> None:
    text = "The quick brown fox. " * 50
    blocks = text_blocks(documents(text), byte_tokenizer(), 16)
    kept = blocks.input_ids[blocks.attention_mask == 1]
    assert byte_tokenizer().decode(kept, skip_special_tokens=True) == text


def test_end_token_pads_where_there_is_no_pad_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    blocks = text_blocks(documents("ab"), tokenizer, 5)
    assert blocks.input_ids.tolist() == [[*ids("ab"), EOS, EOS, EOS]]
    # The first end token is text and stays a label; the padding behind it does not.
    assert blocks.labels.tolist() == [[*ids("ab"), EOS, -100, -100]]


def test_tokenizer_without_pad_and_end_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a pad nor an end token"):
        text_blocks(documents("ab"), tokenizer, 5)


@pytest.mark.parametrize("sequence_length", [1, 0, -3])
def test_sequence_length_is_checked(sequence_length: int) -> None:
    with pytest.raises(DataError, match=f"`sequence_length` is {sequence_length}"):
        text_blocks(documents("abc"), byte_tokenizer(), sequence_length)


@pytest.mark.parametrize("texts", [(), ("",)])
def test_no_text_is_no_block(texts: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="0 blocks"):
        text_blocks(documents(*texts), byte_tokenizer(), 4)


def test_spread_takes_blocks_from_everywhere() -> None:
    assert numbered(10).spread(4).input_ids[:, 0].tolist() == [0, 2, 5, 7]
    assert len(numbered(3).spread(4)) == 3


def order(loader: object, passes: int = 1) -> list[list[int]]:
    return [[row for batch in loader for row in batch["input_ids"][:, 0].tolist()] for _ in range(passes)]


def test_batches_are_dicts_of_tensors() -> None:
    batches = list(make_loader(numbered(5), 2))
    assert [tuple(batch["labels"].shape) for batch in batches] == [(2, 4), (2, 4), (1, 4)]
    assert all(set(batch) == {"input_ids", "attention_mask", "labels"} for batch in batches)
    assert {tensor.dtype for batch in batches for tensor in batch.values()} == {torch.int64}


def test_only_the_seed_decides_the_order() -> None:
    torch.manual_seed(0)
    first = order(make_loader(numbered(50), 8, shuffle=True, seed=3), passes=2)
    state = torch.get_rng_state()
    assert order(make_loader(numbered(50), 8, shuffle=True, seed=3), passes=2) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert order(make_loader(numbered(50), 8, shuffle=True, seed=4)) != first[:1]
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == list(range(50))
    assert order(make_loader(numbered(50), 8, seed=4)) == [list(range(50))]


def test_a_cap_draws_other_blocks_each_pass() -> None:
    first, second = order(make_loader(numbered(50), 4, shuffle=True, max_batches=3), passes=2)
    assert len(first) == len(set(first)) == 12
    assert first != second
    assert order(make_loader(numbered(50), 4, max_batches=3)) == [list(range(12))]
    assert sorted(order(make_loader(numbered(5), 4, shuffle=True, max_batches=3))[0]) == list(range(5))


@pytest.mark.parametrize("name", ["batch_size", "max_batches"])
def test_loader_sizes_are_checked(name: str) -> None:
    arguments = {"batch_size": 2, "max_batches": 2, name: 0}
    with pytest.raises(DataError, match=f"`{name}` is 0"):
        make_loader(numbered(5), **arguments)


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="0 blocks"):
        make_loader(numbered(0), 2)
