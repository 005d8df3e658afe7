"""Questions to batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flwr_splitkd.data import IGNORED_LABEL, byte_tokenizer, make_loader
from flwr_splitkd.data.questions import EncodingConfig, Question, encode_questions, encode_unanswered, reading_prompt
from flwr_splitkd.errors import ConfigError, DataError

QUESTIONS = [
    Question(context=f"{letter * length} is here.", question="What?", answer=letter * length, module="m")
    for letter, length in zip("abcde", (3, 9, 1, 5, 7), strict=True)
]
TOKENIZER = byte_tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def encoded(**settings: Any) -> Any:
    return encode_questions(QUESTIONS, TOKENIZER, TOKENIZER, EncodingConfig(**settings))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_holds_prompts_and_answers(side: str) -> None:
    data = encoded(padding_side=side, reference=True)
    batch = data.collate([data[0], data[1]])
    longest = len(reading_prompt(QUESTIONS[1]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, longest)
    assert batch["labels"].shape == (2, 10)
    for row, question in enumerate(QUESTIONS[:2]):
        kept = batch["attention_mask"][row] == 1
        assert TOKENIZER.decode(batch["input_ids"][row][kept]) == reading_prompt(question)
        assert kept[-1 if side == "left" else 0]
        assert (batch["input_ids"][row][~kept] == PAD).all()
        labels = batch["labels"][row]
        assert TOKENIZER.decode(labels[labels != IGNORED_LABEL][:-1]) == question.answer
        assert labels[len(question.answer)] == EOS
        assert (labels[len(question.answer) + 1 :] == IGNORED_LABEL).all()
    assert torch.equal(batch["reference_input_ids"], batch["input_ids"])
    assert torch.equal(batch["reference_attention_mask"], batch["attention_mask"])


def test_no_reference_unless_asked() -> None:
    assert set(encoded().collate([encoded()[0]])) == {"input_ids", "attention_mask", "labels"}


def test_the_order_is_the_seeds_alone() -> None:
    def order(seed: int) -> list[Any]:
        data = encoded()
        state = torch.get_rng_state()
        loader = make_loader(data, 2, shuffle=True, seed=seed, max_batches=2, collate=data.collate)
        batches = [batch["labels"].tolist() for batch in loader]
        assert torch.equal(torch.get_rng_state(), state)
        return batches

    assert order(1) == order(1) != order(2)
    assert len(order(1)) == 2


def test_spread_keeps_questions_and_rows_together() -> None:
    part = encoded().spread(2)
    assert part.references == ["aaa", "c"]
    assert [TOKENIZER.decode(part[row]["labels"][:-1]) for row in range(2)] == part.references
    assert len(encoded().spread(9)) == 5


def test_long_questions_are_refused_or_left_out() -> None:
    length = len(reading_prompt(QUESTIONS[3]))
    with pytest.raises(
        DataError, match=rf"question 1 of module 'm' has \d+ tokens in `input_ids`; .* {length}\. Raise"
    ):
        encoded(max_positions=length)
    with pytest.raises(
        DataError, match=r"question 1 .* 10 tokens in `labels`; expected at most 6\. Raise `max_answer_t"
    ):
        encoded(max_answer_tokens=6)
    assert encoded(max_positions=length, on_long="skip").references == ["aaa", "c", "ddddd"]
    with pytest.raises(DataError, match="all 5 questions are longer than `max_positions` = 2"):
        encoded(max_positions=2, on_long="skip")


def test_what_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    length = len(reading_prompt(QUESTIONS[3]))
    with caplog.at_level("INFO", logger="flwr_splitkd"):
        encoded()
        encoded(max_positions=length, max_answer_tokens=4, on_long="skip")
    whole, part = caplog.records
    assert (whole.levelname, whole.getMessage()) == ("INFO", "5 questions kept, none left out")
    assert part.levelname == "WARNING"
    assert part.getMessage() == (
        "2 of 5 questions kept, 3 left out: 1 are longer than `max_answer_tokens` = 4, 2 are longer than "
        f"`max_positions` = {length}. Raise it to keep them"
    )


def test_the_reference_decides_nothing() -> None:
    """A language model's tokenizer may make many more tokens of a prompt than the encoder's."""

    class Longer:
        eos_token_id, pad_token_id = EOS, PAD

        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[t for t in row for _ in range(2)] for row in TOKENIZER(texts)["input_ids"]]}

    longer: Any = Longer()
    length = len(reading_prompt(QUESTIONS[1]))
    with_it, without = (
        encode_questions(
            QUESTIONS, TOKENIZER, longer, EncodingConfig(max_positions=length, max_answer_tokens=20, reference=asked)
        )
        for asked in (True, False)
    )
    assert with_it.questions == without.questions == tuple(QUESTIONS)
    assert len(with_it[1]["reference_input_ids"]) == 2 * length


def test_no_questions_and_no_tokens() -> None:
    with pytest.raises(DataError, match="0 questions to encode"):
        encode_questions([], TOKENIZER, TOKENIZER)
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        encode_questions(QUESTIONS, TOKENIZER, endless)
    padless = byte_tokenizer()
    padless.pad_token = padless.eos_token = None
    with pytest.raises(DataError, match="neither a pad nor an end token"):
        encode_questions(QUESTIONS, padless, TOKENIZER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_positions": 1}, "`max_positions` is 1; expected at least 2"),
        ({"on_long": "cut"}, "`on_long` is 'cut'; expected 'refuse' or 'skip'"),
        ({"padding_side": "both"}, "`padding_side` is 'both'; expected 'left' or 'right'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncodingConfig(**settings)


def test_a_question_without_an_answer_reads_as_one_with_it() -> None:
    tokenizer = byte_tokenizer()
    question = Question(context="a = 1", question="What is a?", answer="1", module="m")
    dataset = encode_questions([question], tokenizer, tokenizer)
    answered = dataset.collate([dataset[0]])
    batch = encode_unanswered("a = 1", "What is a?", tokenizer)
    assert all(torch.equal(batch[name], answered[name]) for name in ("input_ids", "attention_mask"))
    assert batch["labels"].tolist() == [[IGNORED_LABEL]]
    length = batch["input_ids"].shape[1]
    assert encode_unanswered("a = 1", "What is a?", tokenizer, length).keys() == batch.keys()
    with pytest.raises(DataError, match=f"are {length} tokens; expected at most {length - 1}"):
        encode_unanswered("a = 1", "What is a?", tokenizer, length - 1)
