"""The unit of question answering: a context, a question about it, and the answer as a span of the context."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from flwr_splitkd.errors import DataError

__all__ = ["Question", "normalized"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that is answered by a span of its context, as in SQuAD.

    Parameters
    ----------
    context
        The text to read.
    question
        What is asked.
    answer
        A span of ``context``, letter for letter; not empty.
    module
        The group that partitions keep together, as in `Document`.
    kind
        What the question is about; empty where the source does not say.
    others
        Other answers that are as right, such as those of SQuAD's other annotators. They are for the score: what trains is
        ``answer``.

    Raises
    ------
    DataError
        If the question or an answer is empty, or ``answer`` is not in the context.
    """

    context: str
    question: str
    answer: str
    module: str
    kind: str = ""
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        others = [("others", other) for other in self.others]
        for name, value in (("question", self.question), ("answer", self.answer), *others):
            if not value.strip():
                raise DataError(f"`{name}` is {value!r} in module '{self.module}'; expected text. Remove the question.")
        if self.answer not in self.context:
            raise DataError(
                f"`answer` is {_shortened(self.answer)}; expected a span of the context {_shortened(self.context)}. "
                "Correct the answer, or leave out questions without one."
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer; the first is the one that trains."""
        return (self.answer, *self.others)


def normalized(text: str) -> str:
    """Return the text as SQuAD compares it: lower case, without punctuation, articles and doubled spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _shortened(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
