"""Questions about signatures, classes and constants."""

from __future__ import annotations

from collections.abc import Iterator

from flwr_splitkd.data.questions.facts import FunctionFacts, SourceFacts
from flwr_splitkd.data.questions.kinds import Draw, ask, surrounded
from flwr_splitkd.data.questions.question import Question

__all__ = ["class_questions", "constant_questions", "raises_questions", "signature_questions"]

_DEFAULT = (
    "What is the default of {parameter} in {function}?",
    "If {function} is called without {parameter}, which value is taken?",
    "Which value does {function} give to {parameter} by default?",
)
_DEFAULTED = (
    "Which parameter of {function} is {value} by default?",
    "{value} is the default of which parameter of {function}?",
    "In {function}, what defaults to {value}?",
)
_FIRST = (
    "What is the first parameter of {function}?",
    "Which argument does {function} take first?",
    "What comes first in a call of {function}?",
)
_LAST = (
    "What is the last parameter of {function}?",
    "Which argument comes last in a call of {function}?",
    "With which parameter does the signature of {function} end?",
)
_AFTER = (
    "Which parameter follows {parameter} in {function}?",
    "What does {function} take after {parameter}?",
    "In the signature of {function}, what comes after {parameter}?",
)
_TAKES = (
    "Which function takes {parameter}?",
    "What has a parameter named {parameter}?",
    "{parameter} is an argument of which function?",
)
_BASE = (
    "Which class does {name} extend?",
    "What is the base class of {name}?",
    "From what is {name} derived?",
)
_DERIVED = (
    "Which class extends {base}?",
    "What is derived from {base}?",
    "{base} is the base of which class?",
)
_OWNER = (
    "Which class has the method {method}?",
    "To which class does {method} belong?",
    "{method} is a method of what?",
)
_VALUE = (
    "What is the value of {name}?",
    "To what is {name} set?",
    "Which value does {name} have?",
)
_NAMED = (
    "Which constant is {value}?",
    "What is set to {value}?",
    "{value} is the value of what?",
)
_RAISES = (
    "What does {function} raise?",
    "Which exception can come from {function}?",
    "Which error is raised by {function}?",
)
_RAISED_BY = (
    "Which function raises {error}?",
    "What can raise {error}?",
    "{error} comes from which function?",
)
_DECORATOR = (
    "Which decorator does {function} have?",
    "With what is {function} decorated?",
    "What stands before {function}?",
)


def signature_questions(source: SourceFacts, salt: int) -> Iterator[Question]:
    """Ask about the parameters of a function among other functions of the same file."""
    functions = _unique(source.functions)
    for function in functions:
        parameters = function.parameters
        if not parameters:
            continue
        draw = Draw(source.name, function.owner, function.name, salt)
        others = [f for f in functions if f is not function and f.parameters]
        context = surrounded(draw, function.signature, [f.signature for f in others])

        def about(
            kind: str,
            phrasings: tuple[str, ...],
            answer: str,
            *,
            name: str = function.name,
            draw: Draw = draw,
            context: str | None = context,
            **names: str,
        ) -> Iterator[Question]:
            return ask(draw, kind, source.module, context, phrasings, answer, function=name, **names)

        defaults = [p for p in parameters if p.default not in (None, "...")]
        if defaults:
            # None answers half of all such questions; ask for something else where there is anything else.
            parameter = draw.choice([p for p in defaults if p.default != "None"] or defaults)
            yield from about("default", _DEFAULT, parameter.default or "", parameter=parameter.name)
            only = [p for p in defaults if sum(q.default == p.default for q in parameters) == 1]
            if only:
                parameter = draw.choice(only)
                yield from about("defaulted", _DEFAULTED, parameter.name, value=parameter.default or "")
        if len(parameters) > 1:
            yield from about("first", _FIRST, parameters[0].name)
            yield from about("last", _LAST, parameters[-1].name)
            place = draw.below(len(parameters) - 1)
            yield from about("after", _AFTER, parameters[place + 1].name, parameter=parameters[place].name)
        parameter = draw.choice(parameters)
        without = [f.signature for f in others if parameter.name not in f.signature]
        if parameter.name != function.name and parameter.name not in function.name:
            yield from about(
                "takes",
                _TAKES,
                function.name,
                context=surrounded(draw, function.signature, without),
                parameter=parameter.name,
            )


def class_questions(source: SourceFacts, salt: int) -> Iterator[Question]:
    """Ask what a class is derived from and what its methods are."""
    classes = {c.name: c for c in source.classes}.values()
    for found in classes:
        draw = Draw(source.name, found.name, salt, "class")
        others = [c for c in classes if c is not found]
        if len(found.bases) == 1:
            line = f"class {found.name}({found.bases[0]})"
            lines = [f"class {c.name}({c.bases[0]})" for c in others if len(c.bases) == 1]
            yield from ask(
                draw, "base", source.module, surrounded(draw, line, lines), _BASE, found.bases[0], name=found.name
            )
            lines = [text for text in lines if found.bases[0] not in text]
            yield from ask(
                draw, "derived", source.module, surrounded(draw, line, lines), _DERIVED, found.name, base=found.bases[0]
            )
        if found.methods:
            method = draw.choice(found.methods)
            shown = [*draw.shuffled(m for m in found.methods if m != method)[:3], method]
            line = f"{found.name} has {', '.join(draw.shuffled(shown))}."
            lines = [
                f"{c.name} has {', '.join(draw.shuffled(c.methods)[:4])}."
                for c in others
                if c.methods and method not in c.methods
            ]
            yield from ask(
                draw, "owner", source.module, surrounded(draw, line, lines), _OWNER, found.name, method=method
            )


def constant_questions(source: SourceFacts, salt: int) -> Iterator[Question]:
    """Ask for the value of a constant, and which constant has a value."""
    constants = dict(source.constants)
    for name, value in constants.items():
        draw = Draw(source.name, name, salt, "constant")
        line = f"{name} = {value}"
        lines = [f"{other} = {v}" for other, v in constants.items() if other != name]
        yield from ask(draw, "value", source.module, surrounded(draw, line, lines), _VALUE, value, name=name)
        lines = [text for text in lines if not text.endswith(f" = {value}")]
        yield from ask(draw, "constant", source.module, surrounded(draw, line, lines), _NAMED, name, value=value)


def raises_questions(source: SourceFacts, salt: int) -> Iterator[Question]:
    """Ask what a function raises and how it is decorated."""
    functions = _unique(source.functions)
    raising = [f for f in functions if len(f.raises) == 1]
    for function in raising:
        draw = Draw(source.name, function.owner, function.name, salt, "raises")
        line = f"{function.name} raises {function.raises[0]}."
        lines = [f"{f.name} raises {f.raises[0]}." for f in raising if f is not function]
        yield from ask(
            draw,
            "raises",
            source.module,
            surrounded(draw, line, lines),
            _RAISES,
            function.raises[0],
            function=function.name,
        )
        lines = [text for text in lines if function.raises[0] not in text]
        yield from ask(
            draw,
            "raised by",
            source.module,
            surrounded(draw, line, lines),
            _RAISED_BY,
            function.name,
            error=function.raises[0],
        )
    decorated = [f for f in functions if len(f.decorators) == 1]
    for function in decorated:
        draw = Draw(source.name, function.owner, function.name, salt, "decorator")
        line = f"@{function.decorators[0]} {function.name}"
        lines = [f"@{f.decorators[0]} {f.name}" for f in decorated if f is not function]
        yield from ask(
            draw,
            "decorator",
            source.module,
            surrounded(draw, line, lines),
            _DECORATOR,
            function.decorators[0],
            function=function.name,
        )


def _unique(functions: tuple[FunctionFacts, ...]) -> list[FunctionFacts]:
    """The functions by name: a question names no class, so every name must mean one thing."""
    return list({f.name: f for f in functions if not f.name.startswith("__")}.values())
