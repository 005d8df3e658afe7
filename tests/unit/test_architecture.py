"""The house rules that a program can check: who may import what, and that importing does nothing else."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from import_graph import PACKAGE, ROOT, imports_of, loaded_by, modules, room, statements_for_others

MODULES = modules()
HAVE_TORCH = importlib.util.find_spec("torch") is not None
# What an environment may lack: the torch-less one, and one without the extras `report` and `prometheus`.
_MISSING = {
    name
    for name in ("torch", "transformers", "peft", "matplotlib", "prometheus_client")
    if importlib.util.find_spec(name) is None
}
IMPORTABLE = {name for name, path in MODULES.items() if not loaded_by(path) & _MISSING}

_CLOCKS_AND_LOGS = {"datetime", "logging", "random", "secrets", "time"}
_ABOVE_THE_MATH = {
    f"{PACKAGE}.{name}"
    for name in (
        "case_studies",
        "cli",
        "clients",
        "report",
        "store",
        "strategies",
        "telemetry",
        "testing",
        "tiers",
        "wire",
    )
}
_FLOWER_AND_GRPC = {"flwr", "grpc"}

# What the modules of a room must not import: their own statements, and (for third parties and rooms) what
# these load.
FORBIDDEN: dict[str, set[str]] = {
    "case_studies": {*_FLOWER_AND_GRPC, *_CLOCKS_AND_LOGS, *_ABOVE_THE_MATH, "torch", "transformers"}
    - {f"{PACKAGE}.case_studies"},
    "costs": {*_FLOWER_AND_GRPC, *_CLOCKS_AND_LOGS, *_ABOVE_THE_MATH, "torch", "transformers"},
    "schedulers": {*_FLOWER_AND_GRPC, *_CLOCKS_AND_LOGS, *_ABOVE_THE_MATH, "torch", "transformers"},
    "split": {*_FLOWER_AND_GRPC, *_CLOCKS_AND_LOGS, *_ABOVE_THE_MATH, "transformers"},
    "distill": {*_FLOWER_AND_GRPC, *_CLOCKS_AND_LOGS, *_ABOVE_THE_MATH, "transformers"},
    "small_chain": {"flwr", f"{PACKAGE}.clients", f"{PACKAGE}.strategies"},
    "tiers": {"flwr", f"{PACKAGE}.clients", f"{PACKAGE}.strategies"},
    "wire": {"flwr", "transformers", f"{PACKAGE}.clients", f"{PACKAGE}.strategies", f"{PACKAGE}.tiers"},
    "strategies": {f"{PACKAGE}.clients"},
    "clients": {f"{PACKAGE}.strategies"},
}
# The only modules of the wire that may know what a torch tensor is.
TORCH_ON_THE_WIRE = {f"{PACKAGE}.wire.codec", f"{PACKAGE}.wire.feedback"}
# The only modules of the studies that may draw.
FIGURES_OF_STUDIES = {f"{PACKAGE}.case_studies.{study}.figures" for study in ("scct", "split_kd")}
NEVER = {
    "apps",
    "benchmarks",
    "chain_fleets",
    "flower_harness",
    "flower_run",
    "import_graph",
    "pytest",
    "scripts",
    "small_shape",
    "tests",
    "tiny_llms",
}


def _within(name: str, forbidden: set[str]) -> set[str]:
    return {bad for bad in forbidden if name == bad or name.startswith(bad + ".")}


def _violations(module: str) -> list[str]:
    forbidden = NEVER | FORBIDDEN.get(room(module), set())
    if room(module) == "wire" and module not in TORCH_ON_THE_WIRE:
        forbidden = forbidden | {"torch"}
    if room(module) == "case_studies" and module not in FIGURES_OF_STUDIES:
        forbidden = forbidden | {"matplotlib"}
    return sorted(f"{module} imports {name}" for name in imports_of(MODULES[module]).all if _within(name, forbidden))


def test_the_package_is_found(covered: Callable[[str, object], None]) -> None:
    covered("package modules under the architecture rules", len(MODULES))
    assert PACKAGE in MODULES
    assert f"{PACKAGE}.errors" in MODULES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_what_its_room_may(module: str) -> None:
    assert _violations(module) == []


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) in FORBIDDEN))
def test_loads_no_forbidden_room_or_library_through_others(module: str) -> None:
    """Clocks and logs are left out: every library has them. torch's own users on the wire are, too."""
    forbidden = FORBIDDEN[room(module)] - _CLOCKS_AND_LOGS
    assert sorted(name for name in loaded_by(MODULES[module]) if _within(name, forbidden)) == []


def test_no_import_cycles() -> None:
    graph = {
        name: sorted(target for target in imports_of(path).on_import if target in MODULES and target != name)
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            pytest.fail("import cycle: " + " -> ".join([*trail[trail.index(name) :], name]))
        if name in done:
            return
        for target in graph[name]:
            visit(target, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_starts_with_a_docstring_and_lazy_annotations(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{MODULES[module]} has no docstring"
    statements = [node for node in tree.body if not isinstance(node, ast.Expr)]
    if statements:
        first = statements[0]
        assert isinstance(first, ast.ImportFrom) and first.module == "__future__", module


def _python_files() -> list[Path]:
    folders = (PACKAGE, "apps", "benchmarks", "deploy", "scripts", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_every_file_is_python_3_10() -> None:
    files = _python_files()
    assert files
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def _exported(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def _constants_classes_functions(name: str) -> tuple[int, str]:
    """Sort like ruff's RUF022, so that there is one order and ``ruff check --fix`` makes it."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


EXPORTING = {name: names for name, path in MODULES.items() if (names := _exported(path)) is not None}


@pytest.mark.parametrize("module", sorted(EXPORTING))
def test_all_is_sorted_and_has_no_doubles(module: str) -> None:
    names = EXPORTING[module]
    assert names == sorted(names, key=_constants_classes_functions)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", sorted(name for name in EXPORTING if name in IMPORTABLE))
def test_all_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in EXPORTING[module]:
        try:
            getattr(loaded, name)
        except ImportError as error:
            # A name that is only imported when asked for.
            assert not HAVE_TORCH, f"{module}.{name}: {error}"


# Imports everything the package names of others first, then the package, and says what the second part
# changed.
_PROBE = """
import importlib, json, logging, os, signal, sys, threading, warnings
others, ours = json.loads(sys.argv[1])
for statement in others:
    try:
        exec(statement)
    except ImportError:
        pass
torch = sys.modules.get("torch")

def state():
    known = logging.Logger.manager.loggerDict.values()
    loggers = [logging.getLogger(), *(logger for logger in known if hasattr(logger, "handlers"))]
    return {
        "log handlers": sorted(f"{l.name}: {h}" for l in loggers for h in l.handlers),
        "log levels": sorted(f"{l.name}: {l.level}" for l in loggers if l.level),
        "threads": sorted(t.name for t in threading.enumerate()),
        "environment": [f"{key}={value}" for key, value in os.environ.items()],
        "path": list(sys.path),
        "warning filters": [str(f) for f in warnings.filters],
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [str(sys.excepthook), str(threading.excepthook)],
        "working directory": os.getcwd(),
        "files": sorted(os.listdir(".")),
        "torch": torch and [torch.get_num_threads(), str(torch.get_default_dtype()), torch.initial_seed()],
    }

before = state()
for name in ours:
    importlib.import_module(name)
after = state()
changed = {}
for key in before:
    if isinstance(before[key], list):
        new = [item for item in after[key] if item not in before[key]]
        changed[key] = {"new": new, "gone": [item for item in before[key] if item not in after[key]]}
    else:
        changed[key] = {"was": before[key], "is": after[key]}
print(json.dumps({key: changed[key] for key in before if before[key] != after[key]}))
"""


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    ours = sorted(IMPORTABLE)
    others = sorted(
        {statement for name in ours for statement in statements_for_others(MODULES[name])},
        key=lambda statement: ("__future__" not in statement, statement),
    )
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps([others, ours])],
        cwd=tmp_path,
        env=dict(os.environ, HOME=str(tmp_path), PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
    assert done.stdout.count("\n") == 1, f"importing prints: {done.stdout}"


# The rooms in the order in which they may load more; what each must not have loaded, all earlier ones
# included.
_LOADS = [
    (["", "errors", "costs", "schedulers"], ["torch", "transformers", "peft", "flwr", "grpc"]),
    (["split", "distill"], ["transformers", "peft", "flwr", "grpc"]),
    (["models", "store", "wire", "tiers"], ["flwr"]),
]


@pytest.mark.skipif(not HAVE_TORCH, reason="needs torch")
def test_the_lower_rooms_load_nothing_of_the_upper_ones(tmp_path: Path) -> None:
    program = ["import sys"]
    for rooms, absent in _LOADS:
        for name in sorted(name for name in MODULES if room(name) in rooms):
            program.append(f"import {name}")
        program.append(f"loaded = sorted(set({absent!r}) & set(sys.modules))")
        program.append(f'if loaded: sys.exit(f"importing the rooms {rooms} loads {{loaded}}")')
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
