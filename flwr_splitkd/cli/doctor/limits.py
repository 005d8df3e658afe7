"""What the system and the environment allow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from flwr_splitkd.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from flwr_splitkd.cli.doctor.hardware import Hardware

__all__ = ["check_open_files", "check_programs", "check_runtime_installation"]

_FEW_FILES = 1024
"""What most systems give, eight for each of the 128 streams that a data plane serves at once."""
_PROGRAMS = {
    "device": ("flower-superexec", "flwr-clientapp"),
    "edge": ("flower-superexec", "flwr-serverapp"),
    "cloud": (),
}
"""What SuperNode and SuperLink start by name for a run."""
_VARIABLE = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"


def check_open_files(soft: float) -> Finding:
    """Whether a process may open enough files, of which each connection is one.

    Parameters
    ----------
    soft
        The limit in force; infinite for none.
    """
    if soft >= _FEW_FILES:
        return ok("open files", f"{soft:.0f}", f"at least {_FEW_FILES}")
    return warning(
        "open files",
        f"{soft:.0f}",
        expected=f"at least {_FEW_FILES}",
        remedy=f"ulimit -n {_FEW_FILES} before the process starts; LimitNOFILE={_FEW_FILES} in a unit of systemd.",
    )


def check_runtime_installation(environment: Mapping[str, str], hardware: Hardware, *, has_flower: bool) -> Finding:
    """Whether Flower is kept from installing an app's dependencies for each run.

    Parameters
    ----------
    environment
        Of whoever starts SuperLink or SuperNode.
    hardware
        On a Jetson such an installation replaces NVIDIA's torch.
    has_flower
        Whether the role has a process of Flower's; the cloud has none.
    """
    value = environment.get(_VARIABLE)
    if not has_flower:
        return skipped(_VARIABLE, "this role has no process of Flower's")
    if value == "1":
        return ok(_VARIABLE, "1", "1, where SuperLink or SuperNode is started")
    verdict = wrong if hardware.is_jetson else warning
    torch = "NVIDIA's torch" if hardware.is_jetson else "torch"
    return verdict(
        _VARIABLE,
        "not set here" if value is None else repr(value),
        expected="1, where SuperLink or SuperNode is started",
        remedy=f"export {_VARIABLE}=1, in a unit of systemd Environment=...; and start no SuperNode with "
        "--allow-runtime-dependency-installation: newer Flowers install an app's dependencies for each run, and may replace "
        f"{torch}.",
    )


def check_programs(role: str, search: str, own: Path) -> Iterator[Finding]:
    """Whether the programs that Flower starts are found, and those of this Python's environment.

    Parameters
    ----------
    role
        ``"device"``, ``"edge"`` or ``"cloud"``.
    search
        ``PATH`` of whoever starts SuperLink or SuperNode.
    own
        Folder of this Python's programs.
    """
    for name in _PROGRAMS[role]:
        found = shutil.which(name, path=search)
        if found is not None and Path(found).parent.resolve() == own.resolve():
            yield ok(f"{name} on PATH", found)
            continue
        yield warning(
            f"{name} on PATH",
            found or "not found",
            expected=f"{own / name}, which Flower starts by its name alone",
            remedy=f"export PATH={own}:$PATH where SuperLink or SuperNode starts, in a unit of systemd Environment=PATH=...; else "
            + ("a run has another environment's packages." if found else "no run ever starts."),
        )
