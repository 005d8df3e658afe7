"""What a Python source file says about itself: signatures, classes, constants and the sentences of its docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from flwr_splitkd.data.stdlib import definitions, topics

__all__ = ["ClassFacts", "FunctionFacts", "Parameter", "SourceFacts", "sentences_of", "source_facts"]

_MAX_LITERAL = 28
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)'\"][.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Za-z][\w ,;:.()'\"/=*+-]*[.]")
_SELF = frozenset({"cls", "self"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter and its default as source text, None for none."""

    name: str
    default: str | None


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """A function or method."""

    name: str
    owner: str
    parameters: tuple[Parameter, ...]
    decorators: tuple[str, ...]
    raises: tuple[str, ...]
    sentences: tuple[str, ...]

    @property
    def signature(self) -> str:
        """The call as documentation shows it."""
        shown = (p.name if p.default is None else f"{p.name}={p.default}" for p in self.parameters)
        return f"{self.name}({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """A class."""

    name: str
    bases: tuple[str, ...]
    methods: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One source file."""

    module: str
    name: str
    functions: tuple[FunctionFacts, ...]
    classes: tuple[ClassFacts, ...]
    constants: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]


def source_facts(module: str, name: str, tree: ast.Module) -> SourceFacts:
    """Return what is known about one parsed file.

    Parameters
    ----------
    module
        The group that the file belongs to.
    name
        Its dotted name.
    tree
        What `ast.parse` returned.
    """
    functions: list[FunctionFacts] = []
    classes: list[ClassFacts] = []
    for node in definitions(tree.body):
        if isinstance(node, ast.ClassDef):
            methods = [m for m in definitions(node.body) if not isinstance(m, ast.ClassDef)]
            functions += [_function(method, node.name) for method in methods]
            classes.append(
                ClassFacts(
                    name=node.name,
                    bases=tuple(ast.unparse(base) for base in node.bases if isinstance(base, ast.Name | ast.Attribute)),
                    methods=tuple(dict.fromkeys(m.name for m in methods if not m.name.startswith("_"))),
                    sentences=_sentences(node),
                )
            )
        else:
            functions.append(_function(node, ""))
    text = _sentences(tree)
    if name == "pydoc_data.topics":
        text = tuple(sentence for _, topic in topics(tree) for sentence in sentences_of(topic))
    return SourceFacts(module, name, tuple(functions), tuple(classes), tuple(_constants(tree)), text)


def sentences_of(text: str) -> tuple[str, ...]:
    """Return the plain sentences of a text, without examples, tables and headings."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or "::" in paragraph:
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if 24 <= len(sentence) <= 150 and _PLAIN.fullmatch(sentence) and sentence.count(" ") >= 4:
                found.append(sentence)
    return tuple(dict.fromkeys(found))


def _sentences(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    return sentences_of(ast.get_docstring(node) or "")


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> FunctionFacts:
    return FunctionFacts(
        name=node.name,
        owner=owner,
        parameters=tuple(_parameters(node.args)),
        decorators=tuple(ast.unparse(d) for d in node.decorator_list if isinstance(d, ast.Name | ast.Attribute)),
        raises=tuple(dict.fromkeys(_raised(node))),
        sentences=_sentences(node),
    )


def _parameters(arguments: ast.arguments) -> Iterator[Parameter]:
    plain = [*arguments.posonlyargs, *arguments.args]
    missing = len(plain) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*([None] * missing), *arguments.defaults, *arguments.kw_defaults]
    for argument, default in zip([*plain, *arguments.kwonlyargs], defaults, strict=True):
        if argument.arg not in _SELF:
            text = None if default is None else ast.unparse(default)
            yield Parameter(argument.arg, text if text is None or len(text) <= _MAX_LITERAL else "...")


def _raised(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            target = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            if isinstance(target, ast.Name) and target.id[0].isupper():
                yield target.id


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
            if isinstance(target, ast.Name) and target.id.isupper() and isinstance(value, ast.Constant):
                text = ast.unparse(value)
                if len(text) <= _MAX_LITERAL and "\\" not in text:
                    yield target.id, text
