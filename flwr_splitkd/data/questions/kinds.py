"""How questions are made: the draw that every kind takes its choices from, and the contexts that hold distractors."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from flwr_splitkd.data.questions.question import Question, normalized
from flwr_splitkd.errors import DataError

__all__ = ["Draw", "ask", "surrounded"]

T = TypeVar("T")
_MAX_CONTEXT = 160
_MAX_ANSWER = 60
_MAX_LINES = 4
_MIN_LINE = 12


class Draw:
    """Choices that depend on names alone: the same in every process and on every Python version.

    Parameters
    ----------
    *key
        What the choices are for; another key gives other choices.
    """

    def __init__(self, *key: object) -> None:
        self._key = "\x00".join(map(str, key))
        self._count = 0

    def below(self, bound: int) -> int:
        """Return a number in 0..bound - 1; the next call returns another."""
        self._count += 1
        return zlib.crc32(f"{self._key}\x00{self._count}".encode("utf-8", "replace")) // 7 % bound

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """Return the items in another order."""
        return list(self.drawn(items))

    def drawn(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items in another order; who stops early pays for no more than he took."""
        rest = list(items)
        while rest:
            yield rest.pop(self.below(len(rest)))


def surrounded(draw: Draw, wanted: str, others: Iterable[str], *, at_least: int = 1) -> str | None:
    """Return a context: ``wanted`` among as many other lines as there is room for, in any order.

    None if there are fewer than ``at_least`` other lines that fit.
    """
    lines, room = [wanted], _MAX_CONTEXT - len(wanted)
    for other in draw.drawn(others):
        if other not in lines and len(other) + 1 <= room:
            lines.append(other)
            room -= len(other) + 1
        # No fifth line, and no long search for one that is short enough.
        if len(lines) == _MAX_LINES or room < _MIN_LINE:
            break
    if len(lines) <= at_least or room < 0:
        return None
    return "\n".join(draw.shuffled(lines))


def ask(
    draw: Draw, kind: str, module: str, context: str | None, phrasings: Sequence[str], answer: str, **names: str
) -> Iterator[Question]:
    """Yield one question in one of the phrasings, or none where there is no context or the answer is unfit.

    An answer is unfit if SQuAD's comparison sees nothing of it, or it is too long.
    """
    if context is None or not normalized(answer) or len(answer) > _MAX_ANSWER:
        return
    try:
        yield Question(
            context=context, question=draw.choice(phrasings).format(**names), answer=answer, module=module, kind=kind
        )
    except DataError:
        return
