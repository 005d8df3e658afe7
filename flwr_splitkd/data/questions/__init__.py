"""Question answering: a context, a question about it, and an answer that is a span of the context.

::

    question.py    Question, and how SQuAD compares answers
    facts.py       what a source file says about itself
    kinds.py       choices without a random generator; contexts with distractors
    from_code.py   questions about signatures, classes and constants
    from_text.py   questions about the sentences of docstrings
    kept.py        the built-in questions on disk
    stdlib.py      the built-in questions, over Python's standard library
    squad.py       the user's own: SQuAD's JSON, JSONL, the Hugging Face hub
    load.py        QuestionConfig, and who gets which questions
    baselines.py   answers without a model
    score.py       F1 and exact match
    encode.py      questions to tokens to batches

Only ``encode.py`` needs torch and transformers, and is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flwr_splitkd.data.questions.baselines import copied_questions, majority_answers, neighbour_answers
from flwr_splitkd.data.questions.load import (
    QuestionConfig,
    QuestionSplit,
    heldout_questions,
    partition_questions,
    split_questions,
)
from flwr_splitkd.data.questions.question import Question, normalized
from flwr_splitkd.data.questions.squad import read_hub_questions, read_question_files
from flwr_splitkd.data.questions.stdlib import stdlib_questions

if TYPE_CHECKING:
    from flwr_splitkd.data.questions.encode import (
        EncodingConfig,
        QuestionDataset,
        encode_questions,
        encode_unanswered,
        reading_prompt,
    )

__all__ = [
    "EncodingConfig",
    "Question",
    "QuestionConfig",
    "QuestionDataset",
    "QuestionSplit",
    "copied_questions",
    "encode_questions",
    "encode_unanswered",
    "heldout_questions",
    "majority_answers",
    "neighbour_answers",
    "normalized",
    "partition_questions",
    "read_hub_questions",
    "read_question_files",
    "reading_prompt",
    "split_questions",
    "stdlib_questions",
]

_IMPORTED_ON_USE = ("EncodingConfig", "QuestionDataset", "encode_questions", "encode_unanswered", "reading_prompt")


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.encode"), name)
