"""From questions to batches: tokens for the encoder, answers for the language model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from flwr_splitkd.data.blocks import IGNORED_LABEL
from flwr_splitkd.data.questions.question import Question
from flwr_splitkd.errors import ConfigError, DataError

__all__ = ["EncodingConfig", "QuestionDataset", "encode_questions", "encode_unanswered", "reading_prompt"]

Row = dict[str, list[int]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingConfig:
    """How questions become tokens.

    Parameters
    ----------
    max_positions
        Most tokens of context and question for the encoder, at least 2.
    max_answer_tokens
        Most tokens of an answer with its end token, at least 2.
    on_long
        ``"refuse"`` raises if a question or an answer is longer, ``"skip"`` leaves it out. Nothing is ever cut: what
        is cut off may be the answer. What is left out is logged.
    reference
        Whether to add the language model's own tokens of context and question. Their number decides nothing: the questions
        are the same with them and without.
    padding_side
        ``"left"`` puts every prefix right before its answer, also for a language model that counts positions without
        looking at the mask. An encoder with absolute positions that does not derive them from the mask (BERT, unlike
        RoBERTa) wants ``"right"``.

    Raises
    ------
    ConfigError
        If a field is out of range.
    """

    max_positions: int = 192
    max_answer_tokens: int = 48
    on_long: Literal["refuse", "skip"] = "refuse"
    reference: bool = False
    padding_side: Literal["left", "right"] = "left"

    def __post_init__(self) -> None:
        for name in ("max_positions", "max_answer_tokens"):
            if getattr(self, name) < 2:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least 2. Raise it.")
        for name, known in (("on_long", ("refuse", "skip")), ("padding_side", ("left", "right"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; expected '{known[0]}' or '{known[1]}'.")


class QuestionDataset(Dataset[Row]):
    """Encoded questions; item ``i`` is a dict of token id lists, which `collate` makes into a batch.

    Parameters
    ----------
    questions
        What was encoded; the answers are the references of an evaluation.
    rows
        Their token ids: ``input_ids``, ``labels``, and ``reference_input_ids`` where asked for.
    pad_ids
        The id to pad each of them with.
    padding_side
        Where prefixes are padded.
    """

    def __init__(
        self, questions: Sequence[Question], rows: Sequence[Row], pad_ids: dict[str, int], padding_side: str
    ) -> None:
        self.questions = tuple(questions)
        self._rows = tuple(rows)
        self._pad_ids = pad_ids
        self._padding_side = padding_side

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    @property
    def references(self) -> list[str]:
        """The answers that train, in order; all that are right are `Question.answers`."""
        return [question.answer for question in self.questions]

    def spread(self, max_questions: int) -> QuestionDataset:
        """Return at most ``max_questions`` questions, evenly spaced over the data set."""
        if len(self) <= max_questions:
            return self
        index = [place * len(self) // max_questions for place in range(max_questions)]
        return QuestionDataset(
            [self.questions[i] for i in index], [self._rows[i] for i in index], self._pad_ids, self._padding_side
        )

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pad rows to a batch.

        Returns
        -------
        batch
            ``input_ids`` and ``attention_mask`` [batch, positions] of context and question; ``labels`` [batch, answer]
            of the answer and its end token, padded on the right with -100; and ``reference_input_ids`` and
            ``reference_attention_mask`` where the rows have them.
        """
        batch: dict[str, Tensor] = {}
        for name, pad_id in self._pad_ids.items():
            side = "right" if name == "labels" else self._padding_side
            ids, mask = _padded([row[name] for row in rows], pad_id, side)
            batch[name] = ids
            if name != "labels":
                batch[name.replace("input_ids", "attention_mask")] = mask
        return batch


def reading_prompt(question: Question) -> str:
    """Return what is read before the answer: the context, then the question.

    The question stands last, where a causal model still has it at hand when it answers.
    """
    return _prompt(question.context, question.question)


def encode_unanswered(
    context: str, question: str, tokenizer: PreTrainedTokenizerBase, max_positions: int = 192
) -> dict[str, Tensor]:
    """Tokenize one question whose answer nobody knows, as `encode_questions` does one of many.

    Returns
    -------
    batch
        Of one sample; its ``labels`` are one ignored label.

    Raises
    ------
    DataError
        If there is no question, or it is longer than `max_positions` with its context.
    """
    if not question.strip():
        raise DataError(f"the question is {question!r}; expected text.")
    ids = _ids(tokenizer, [_prompt(context, question)])[0]
    if len(ids) > max_positions:
        raise DataError(
            f"context and question are {len(ids)} tokens; expected at most {max_positions}. Shorten the context, or raise "
            "`max_positions` if the encoder takes more."
        )
    tokens = torch.tensor([ids])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.full((1, 1), IGNORED_LABEL),
    }


def _prompt(context: str, question: str) -> str:
    return f"{context}\n{question}\n"


def encode_questions(
    questions: Sequence[Question],
    slm_tokenizer: PreTrainedTokenizerBase,
    llm_tokenizer: PreTrainedTokenizerBase,
    config: EncodingConfig | None = None,
) -> QuestionDataset:
    """Tokenize questions for an encoder whose output a language model continues with the answer.

    Parameters
    ----------
    questions
        At least one.
    slm_tokenizer
        The encoder's tokenizer, for context and question.
    llm_tokenizer
        The language model's tokenizer, for the answer; it must have an end token.
    config
        Lengths and padding.

    Raises
    ------
    DataError
        If there is no question, one is too long, all are skipped, or a tokenizer lacks a token.
    """
    config = config or EncodingConfig()
    if not questions:
        raise DataError("there are 0 questions to encode; expected at least 1. Check the partition.")
    end = llm_tokenizer.eos_token_id
    if not isinstance(end, int):
        raise DataError("the language model's tokenizer has no end token; expected one. Set `tokenizer.eos_token`.")
    prompts = [reading_prompt(question) for question in questions]
    columns = {
        "input_ids": _ids(slm_tokenizer, prompts),
        "labels": [[*ids, end] for ids in _ids(llm_tokenizer, [q.answer for q in questions], special=False)],
    }
    pad_ids = {"input_ids": _pad_id(slm_tokenizer), "labels": IGNORED_LABEL}
    if config.reference:
        columns["reference_input_ids"] = _ids(llm_tokenizer, prompts)
        pad_ids["reference_input_ids"] = _pad_id(llm_tokenizer)
    kept, rows = [], []
    left_out: Counter[str] = Counter()
    for number, question in enumerate(questions):
        row = {name: column[number] for name, column in columns.items()}
        exceeded = _exceeded(row, config, number, question)
        if exceeded is None:
            kept.append(question)
            rows.append(row)
        else:
            left_out[exceeded] += 1
    if not rows:
        raise DataError(
            f"all {len(questions)} questions are longer than `max_positions` = {config.max_positions} or "
            f"`max_answer_tokens` = {config.max_answer_tokens}; expected at least 1 that fits. Raise them."
        )
    _log_kept(len(questions), left_out, config)
    return QuestionDataset(kept, rows, pad_ids, config.padding_side)


def _exceeded(row: Row, config: EncodingConfig, number: int, question: Question) -> str | None:
    """Return the setting that the question is too long for; none if it fits."""
    for name, setting in (("input_ids", "max_positions"), ("labels", "max_answer_tokens")):
        limit = getattr(config, setting)
        if len(row[name]) > limit:
            if config.on_long == "skip":
                return setting
            raise DataError(
                f"question {number} of module '{question.module}' has {len(row[name])} tokens in `{name}`; expected at most "
                f"{limit}. Raise `{setting}`, or set `on_long` to 'skip'."
            )
    return None


def _log_kept(total: int, left_out: Counter[str], config: EncodingConfig) -> None:
    number = left_out.total()
    if not number:
        _log.info("%d questions kept, none left out", total)
        return
    reasons = [
        f"{count} are longer than `{name}` = {getattr(config, name)}" for name, count in sorted(left_out.items())
    ]
    _log.warning(
        "%d of %d questions kept, %d left out: %s. Raise it to keep them",
        total - number,
        total,
        number,
        ", ".join(reasons),
    )


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool = True) -> list[list[int]]:
    # verbose=False: what is longer than the model's window is refused above, in our own words.
    encoded: Any = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if not isinstance(pad_id, int):
        raise DataError("the tokenizer has neither a pad nor an end token; expected one. Set `tokenizer.pad_token`.")
    return pad_id


def _padded(rows: Sequence[list[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids, mask
