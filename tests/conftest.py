"""What every test run needs: torch-less runs, and the summary of what was covered."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from import_graph import ROOT, loaded_by

# A module that loads one of these needs torch, or is no use without it.
_NEED_TORCH = {"torch", "transformers", "peft", "accelerate", "safetensors.torch"}
_HAVE_TORCH = importlib.util.find_spec("torch") is not None

_covered = pytest.StashKey[dict[str, str]]()
_not_collected = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_covered] = {}
    config.stash[_not_collected] = []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out test modules that need torch where there is none (the Python 3.10 leg), and remember which.

    Whatever else is missing stays an error: only torch has no build for every Python that we support.
    """
    if _HAVE_TORCH or not (collection_path.name.startswith("test_") and collection_path.suffix == ".py"):
        return None
    if not loaded_by(collection_path) & _NEED_TORCH:
        return None
    config.stash[_not_collected].append(str(collection_path.relative_to(ROOT)))
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several workers (pytest-xdist) hands what it covered to the process that prints the summary."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["covered"] = session.config.stash[_covered]
        output["not_collected"] = session.config.stash[_not_collected]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash[_covered].update(output.get("covered", {}))
    node.config.stash[_not_collected][:] = output.get("not_collected", [])  # each worker collects everything


@pytest.fixture(scope="session")
def covered(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Add a line to the summary at the end: ``covered("architectures", 34)``."""

    def add(what: str, value: object) -> None:
        request.config.stash[_covered][what] = str(value)

    return add


def pytest_report_header() -> list[str]:
    return ["versions: " + _versions()]


_ran: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _ran.update([str(Path(report.nodeid.split("::")[0]).parent)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("what this run covered")
    terminalreporter.write_line("versions: " + _versions())
    for folder, count in sorted(_ran.items()):
        terminalreporter.write_line(f"{count:5d} tests in {folder}")
    for what, value in sorted(config.stash[_covered].items()):
        terminalreporter.write_line(f"{what}: {value}")
    left_out = config.stash[_not_collected]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} test modules not collected, because they need torch:")
        for name in left_out:
            terminalreporter.write_line(f"      {name}")


def _versions() -> str:
    found = [f"python {platform.python_version()}"]
    for name in ("flwr", "transformers", "torch", "peft", "grpcio", "protobuf", "numpy", "ray"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)
