"""The built-in corpus: the Python standard library's own documentation, read from the user's machine.

Docstrings come from the source files through :mod:`ast`, so nothing is imported and nothing is executed; the
language reference comes from ``pydoc_data/topics.py`` the same way. The corpus holds about 2 MB on Python
3.10 to 3.13.
"""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from flwr_splitkd.data.documents import Document
from flwr_splitkd.errors import DataError

__all__ = [
    "STDLIB_HELDOUT_MODULES",
    "STDLIB_TEACHER_MODULES",
    "definitions",
    "stdlib_documents",
    "stdlib_trees",
    "topics",
]

# Named rather than drawn by size, so that a module has the same role on every Python version: what one device
# holds out, no other device trains on.
STDLIB_HELDOUT_MODULES = ("argparse", "json", "logging", "pathlib", "statistics", "tarfile", "threading")
STDLIB_TEACHER_MODULES = (
    "configparser",
    "ctypes",
    "difflib",
    "doctest",
    "importlib",
    "inspect",
    "multiprocessing",
    "optparse",
    "pydoc",
    "pydoc_data",
    "tkinter",
    "turtle",
    "typing",
    "unittest",
)

# Third-party code, tests, tools with bundled copies of other text, and files that a build generates.
_SKIPPED_DIRECTORIES = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def stdlib_documents(root: Path | None = None) -> tuple[Document, ...]:
    """Return the standard library's documentation, one document per source file or language topic.

    Parameters
    ----------
    root
        Directory of the library's Python sources; by default that of the running interpreter.

    Returns
    -------
    documents
        Sorted by path, the same on every call on one machine. A package and its submodules share the module
        name of the package; a pure-Python twin such as ``_pydecimal`` has the name of the module that it
        implements.

    Raises
    ------
    DataError
        If ``root`` has no readable sources, as in an interpreter that ships byte code only.
    """
    return _read_library(Path(sysconfig.get_paths()["stdlib"]) if root is None else root)


@functools.lru_cache(maxsize=8)
def _read_library(root: Path) -> tuple[Document, ...]:
    # Cached because parsing takes more than a second, and a process asks for its partition, the held-out text
    # and the teacher's text one after another.
    documents = [document for source in stdlib_trees(root) for document in _document(*source)]
    if not documents:
        raise DataError(
            f"the standard library in '{root}' has no Python sources with documentation; expected about 200. "
            "Use an interpreter that ships its sources, or set `source` to your own text files."
        )
    return tuple(documents)


def _sources(root: Path) -> list[Path]:
    """List the source files to read, sorted by their path relative to ``root``."""

    def wanted(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return _SKIPPED_DIRECTORIES.isdisjoint(parts) and not parts[0].startswith(_SKIPPED_PREFIXES)

    return sorted(filter(wanted, root.rglob("*.py")), key=lambda path: path.relative_to(root).as_posix())


def stdlib_trees(root: Path | None = None) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield (module, dotted name, syntax tree) of every source file of the built-in corpus, in its order.

    Parameters
    ----------
    root
        As for `stdlib_documents`.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            # A distribution may ship templates or broken links among its sources; the rest is corpus enough.
            continue
        yield _public_name(parts[0]), ".".join(parts[:-1] if parts[-1] == "__init__" else parts), tree


def _document(module: str, name: str, tree: ast.Module) -> Iterator[Document]:
    if name == "pydoc_data.topics":
        yield from (Document(module=module, text=f"{topic}\n\n{text}") for topic, text in topics(tree))
        return
    sections = [f"{qualified_name}\n\n{docstring}" for qualified_name, docstring in _docstrings(tree, name)]
    if sections:
        yield Document(module=module, text="\n\n".join(sections) + "\n")


def _public_name(name: str) -> str:
    """Map a private implementation to its public module: ``_pydecimal`` to ``decimal``."""
    if name.startswith("__"):
        return name
    return name.removeprefix("_py").lstrip("_") if name.startswith("_") else name


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of ``node`` and of everything defined in it, in source order."""
    docstring = ast.get_docstring(node)
    if docstring and docstring.strip():
        yield name, _utf8(docstring).strip()
    for child in definitions(node.body):
        yield from _docstrings(child, f"{name}.{child.name}")


def definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the classes and functions of ``body``, also those defined under ``if``, ``try`` or ``with``."""
    for statement in body:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement
            continue
        for block in ("body", "handlers", "orelse", "finalbody"):
            for inner in getattr(statement, block, ()):
                yield from definitions(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the language reference's topics, sorted by name."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == "topics" for target in targets):
            topics: dict[str, str] = ast.literal_eval(value)
            yield from ((name, _utf8(text)) for name, text in sorted(topics.items()) if text.strip())


def _utf8(text: str) -> str:
    """Replace lone surrogates, which a docstring may hold as an escape and a tokenizer refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")
