"""What the integration tests share: both kinds of federation behind one door, and proof that they leave
nothing.

The federations themselves are those of `scripts/flower_run.py`, which `make demo` and the benchmarks use as
well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from flower_run import Federation, deployment, simulation

INTEGRATION = Path(__file__).resolve().parent
ECHO_APP = INTEGRATION / "echo_app"


@contextmanager
def federation(
    mode: str,
    logs: Path,
    supernodes: int,
    client_cpus: int = 1,
    tls: Path | None = None,
    cpus: int | None = None,
) -> Iterator[Federation]:
    """Yield a federation of either kind, and fail if one of its processes outlives it.

    Parameters
    ----------
    mode
        ``simulation`` or ``deployment``.
    logs
        Folder for the logs, usually ``tmp_path``.
    supernodes
        Number of devices.
    client_cpus
        Simulation only: CPUs per busy device.
    tls
        Deployment only: folder of certificates and SuperNode keys.
    cpus
        Simulation only: CPUs that Flower reckons with.
    """
    if mode == "simulation":
        opened = simulation(logs, supernodes=supernodes, client_cpus=client_cpus, cpus=cpus)
    elif mode == "deployment":
        opened = deployment(logs, supernodes=supernodes, tls=tls)
    else:
        raise ValueError(f"`mode` is {mode!r}; expected 'simulation' or 'deployment'")
    with opened as running:
        home = str(running.home)
        yield running
    assert traces_of(home) == []
    assert not Path(home).exists()


def newest(paths: Iterable[Path]) -> Path:
    """The file that was written last: a run that had to be submitted again has left one before."""
    return max(paths, key=lambda path: path.stat().st_mtime_ns)


def traces_of(home: str) -> list[str]:
    """Return the command lines of processes that have this `FLWR_HOME`, or name its folder in any argument.

    Looks at other things than `Federation.close` does: Ray's processes all carry the session folder in an
    argument.
    """
    root = str(Path(home).parent)
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and (
                root in command or process.environ().get("FLWR_HOME") == home
            ):
                found.append(f"{process.pid} {command}")
        except psutil.Error:
            continue
    return found
