"""How good answers are: F1 and exact match as SQuAD defines them, of a model and of ways to answer without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flwr_splitkd.data.questions.baselines import copied_questions, majority_answers, neighbour_answers
from flwr_splitkd.data.questions.question import Question
from flwr_splitkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from flwr_splitkd.data.questions.encode import QuestionDataset

__all__ = ["baselines", "score", "scorer"]

_Asked = tuple[tuple[int, ...], tuple[int, ...]]


def score(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Return ``f1`` and ``exact_match`` as SQuAD defines them, from 0 to 100: of several right answers the nearest counts.

    Parameters
    ----------
    predictions
        Answers that were given.
    references
        The right ones, in the same order; a text, or all texts that are right.

    Raises
    ------
    DataError
        If there are none, or not as many of the ones as of the others.
    ConfigError
        If torchmetrics is not installed.
    """
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"there are {len(predictions)} predictions for {len(references)} references; expected one for each of at "
            "least 1. Pass both in the order of the loader."
        )
    try:
        from torchmetrics.functional.text import squad
    except ImportError as error:
        raise ConfigError(
            "the score needs torchmetrics, which is not installed. Run `pip install 'flwr_splitkd[metrics]'`."
        ) from error
    given: list[Any] = [{"id": str(number), "prediction_text": text} for number, text in enumerate(predictions)]
    wanted: list[Any] = [
        {"id": str(number), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for number, texts in enumerate([one] if isinstance(one, str) else list(one) for one in references)
    ]
    return {name: float(value) for name, value in squad(given, wanted).items()}


def baselines(known: Sequence[Question], asked: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Return the score of each way to answer without a model, by name.

    Parameters
    ----------
    known
        What the devices train on.
    asked
        What is evaluated.
    """
    answers = {
        "majority answer": majority_answers(known, asked),
        "majority answer per kind": majority_answers(known, asked, by_kind=True),
        "copy the question": copied_questions(asked),
        "word beside the rarest word of the question": neighbour_answers(asked),
    }
    references = [question.answers for question in asked]
    return {name: score(given, references) for name, given in answers.items()}


def scorer(
    tokenizer: PreTrainedTokenizerBase, data: QuestionDataset
) -> Callable[[list[list[int]], Mapping[str, Any]], dict[str, float]]:
    """Return what rates a batch's generated answers on the device, which alone knows the right ones.

    Parameters
    ----------
    tokenizer
        The language model's.
    data
        Where the batches come from: its questions know all their right answers, a batch only the first.
    """
    right: dict[_Asked, tuple[str, ...]] = {}
    for row, question in zip((data[number] for number in range(len(data))), data.questions, strict=True):
        asked = tuple(row["input_ids"]), tuple(row["labels"])
        right[asked] = right.get(asked, ()) + question.answers

    def rate(answers: list[list[int]], batch: Mapping[str, Tensor]) -> dict[str, float]:
        said = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return score([text.strip() for text in said], [right[asked] for asked in _asked(batch)])

    return rate


def _asked(batch: Mapping[str, Tensor]) -> Iterator[_Asked]:
    """Yield each question of a batch as its tokens, without padding."""
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        yield tuple(ids[mask > 0].tolist()), tuple(labels[labels >= 0].tolist())
