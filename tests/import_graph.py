"""Who imports whom, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flwr_splitkd"


@dataclass(frozen=True)
class Imports:
    """The modules that one file names in its import statements.

    `on_import` are those executed when the file is imported, `all` adds those inside functions. `lazy` maps
    names that a package only imports for type checkers, and hands out in its `__getattr__`, to the module
    they come from.
    """

    on_import: frozenset[str]
    all: frozenset[str]
    lazy: dict[str, str] = field(default_factory=dict)


def modules() -> dict[str, Path]:
    """Return every module of the package that is not generated, by dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if "_pb2" in path.stem or "__pycache__" in path.parts:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """Return the room of a module: its first name below the package."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports_of(path: Path) -> Imports:
    """Read the import statements of a file."""
    on_import: set[str] = set()
    everything: set[str] = set()
    lazy: dict[str, str] = {}
    for node, inside_function, for_typing in _statements(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        targets = _targets(node)
        if for_typing:
            lazy.update(targets)
            continue
        everything.update(targets.values())
        if not inside_function:
            on_import.update(targets.values())
    return Imports(frozenset(on_import), frozenset(everything), lazy)


def _statements(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Yield (statement, is inside a function, is for type checkers only)."""

    def walk(node: ast.AST, inside: bool, typing: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, inside, typing
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, inside, True)
            for child in node.orelse:
                yield from walk(child, inside, typing)
            return
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, typing)

    yield from walk(tree, False, False)


def _targets(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Map each name that a statement binds to the module that is imported for it."""
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name: alias.name for alias in node.names}
    if node.level:
        raise ValueError(f"relative import in line {node.lineno}; write it with the package's name")
    base = node.module or ""
    found = {}
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        found[alias.asname or alias.name] = inner if _file(inner) else _lazy_origin(base, alias.name) or base
    return found


def _lazy_origin(package: str, name: str) -> str | None:
    path = _file(package)
    return imports_of(path).lazy.get(name) if path is not None and path.name == "__init__.py" else None


def _file(module: str) -> Path | None:
    """Return the file of a module of this repository, or None if it is not one."""
    for base in (ROOT, *(ROOT / folder for folder in ("tests", "tests/integration", "scripts"))):
        stem = base.joinpath(*module.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def statements_for_others(path: Path) -> set[str]:
    """Return the import statements that a file executes on import and that name other packages."""
    found = set()
    for node, inside_function, for_typing in _statements(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        ours = any(name.split(".")[0] == PACKAGE for name in _targets(node).values())
        if not (ours or inside_function or for_typing):
            found.add(ast.unparse(node))
    return found


def loaded_by(path: Path) -> frozenset[str]:
    """Return every module that importing this file imports, directly or not, parents included."""
    seen: set[str] = set()
    # Importing a module of a package runs the package's `__init__.py` first.
    todo = [path, *(folder / "__init__.py" for folder in path.parents if (folder / "__init__.py").is_file())]
    while todo:
        for name in imports_of(todo.pop()).on_import:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                parent = ".".join(parts[:end])
                if parent in seen:
                    continue
                seen.add(parent)
                file = _file(parent)
                if file is not None:
                    todo.append(file)
    return frozenset(seen)
