"""Questions about the sentences of docstrings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from flwr_splitkd.data.questions.facts import ClassFacts, FunctionFacts, SourceFacts
from flwr_splitkd.data.questions.kinds import Draw, ask, surrounded
from flwr_splitkd.data.questions.question import Question

__all__ = ["sentence_questions", "summary_questions"]

_DOES = (
    "Which function does this: {summary}",
    "{summary} What is it called?",
    "What is the name of what is described as: {summary}",
)
_DONE = (
    "What does {name} do?",
    "What is {name} for?",
    "How is {name} described?",
)
_RETURNED = (
    "What does {name} return?",
    "What comes back from {name}?",
    "What is the result of {name}?",
)
_RAISED_WHEN = (
    "Which exception is raised {when}?",
    "What is raised {when}?",
    "{when}, which error follows?",
)
_MISSING = (
    "Which word is missing: {sentence}",
    "Fill the gap: {sentence}",
    "{sentence} What belongs in the gap?",
)
_NUMBER = (
    "Which number is missing: {sentence}",
    "{sentence} What is the number?",
    "Give the number: {sentence}",
)

_GAP = "___"
_MAX_SUMMARY = 80
_WHEN = re.compile(r"\b([A-Z]\w*(?:Error|Exception|Warning|Interrupt))\b.*?\b((?:if|when|unless) .{8,70})[.]$")
_RETURN = re.compile(
    r"Returns? ((?:a|an|the|all|True|False|whether) [^.,;:(]{3,50}?)(?:[.,;:]| (?:for|if|in|that|which|with) .*[.])$"
)
_NUMERAL = re.compile(r"(?<![\w.-])\d[\d.]*(?![\w-])(?<![.])")
_WORD = re.compile(r"[A-Za-z_]{4,}")


def summary_questions(source: SourceFacts, salt: int) -> Iterator[Question]:
    """Ask which function or class a docstring's first sentence is about, what one does, and what it returns."""
    summaries: dict[str, str] = {}
    for found in _described(source):
        if found.sentences and not found.name.startswith("__") and len(found.sentences[0]) <= _MAX_SUMMARY:
            summaries.setdefault(found.name, found.sentences[0])
    for name, summary in summaries.items():
        draw = Draw(source.name, name, salt, "summary")
        lines = [f"{other}: {text}" for other, text in summaries.items() if name not in other and summary != text]
        context = surrounded(draw, f"{name}: {summary}", lines)
        yield from ask(draw, "named", source.module, context, _DOES, name, summary=summary)
        context = surrounded(draw, f"{name}: {summary}", lines)
        if match := _RETURN.fullmatch(summary):
            yield from ask(draw, "returns", source.module, context, _RETURNED, match[1], name=name)
        else:
            yield from ask(draw, "does", source.module, context, _DONE, summary.rstrip("."), name=name)


def sentence_questions(source: SourceFacts, salt: int) -> Iterator[Question]:
    """Ask for what is left out of a sentence: an exception, a number, or its rarest word."""
    sentences = dict.fromkeys(sentence for found in _described(source) for sentence in found.sentences)
    sentences.update(dict.fromkeys(source.sentences))
    counts = Counter(word for sentence in sentences for word in set(_WORD.findall(sentence)))
    for sentence in sentences:
        draw = Draw(source.name, sentence, salt, "sentence")
        context = surrounded(draw, sentence, sentences)
        if match := _WHEN.search(sentence):
            yield from ask(draw, "raised when", source.module, context, _RAISED_WHEN, match[1], when=match[2])
        gaps = [m for m in _NUMERAL.finditer(sentence)]
        if gaps:
            yield from _gap(draw, "number", source.module, context, _NUMBER, sentence, draw.choice(gaps))
        words = [m for m in _WORD.finditer(sentence) if len(_WORD.findall(sentence)) > 3]
        if words:
            rarest = min(words, key=lambda m: (counts[m[0]], -len(m[0]), m.start()))
            yield from _gap(draw, "word", source.module, context, _MISSING, sentence, rarest)


def _described(source: SourceFacts) -> tuple[FunctionFacts | ClassFacts, ...]:
    return (*source.functions, *source.classes)


def _gap(
    draw: Draw,
    kind: str,
    module: str,
    context: str | None,
    phrasings: tuple[str, ...],
    sentence: str,
    match: re.Match[str],
) -> Iterator[Question]:
    # Some words on either side, not the whole sentence: enough to find the place, and short enough for a small window.
    before = sentence[: match.start()].split(" ")[-5:]
    after = sentence[match.end() :].split(" ")[:4]
    return ask(draw, kind, module, context, phrasings, match[0], sentence=f"{' '.join(before)}{_GAP}{' '.join(after)}")
