"""Where a device keeps its encoders, if the app names no folder: one for each run."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from flwr_splitkd.store.cache import cache_root
from flwr_splitkd.store.lock import is_locked

__all__ = ["encoder_folder", "encoders_of_run", "forget_old_runs"]

_DIGITS = 16
_IN_USE_S = 3600.0


def encoder_folder(device: str, digest: str, run: str) -> Path:
    """Folder of a device's encoder in a run.

    Parameters
    ----------
    device
        The device's name. (Flower's node id is another one whenever a SuperNode without keys, or a simulation, starts again.)
    digest
        Of the encoder's fingerprint.
    run
        Its name.
    """
    # Both names come from outside.
    return cache_root() / "encoders" / _plain(run or "run") / digest[:_DIGITS] / _plain(device)


def encoders_of_run(digest: str, run: str) -> dict[str, Path]:
    """The folders on this machine that hold this encoder as of a run, by the device's name."""
    folder = encoder_folder("any", digest, run).parent
    return {path.name: path for path in sorted(folder.glob("*")) if path.is_dir()}


def forget_old_runs(run: str, others: int) -> None:
    """Delete the encoders of all but this run and the newest others: each is as large as the model with its moments, twice.

    What was used within the last hour stays, and what is in use now: it may be another run's on this machine.
    """
    kept = _plain(run or "run")
    found = [path for path in (cache_root() / "encoders").glob("*") if path.is_dir() and path.name != kept]
    for path in sorted(found, key=_last_use_s, reverse=True)[others:]:
        if time.time() - _last_use_s(path) > _IN_USE_S and not any(map(is_locked, path.glob("*/*"))):
            shutil.rmtree(path, ignore_errors=True)


def _last_use_s(path: Path) -> float:
    # A folder's own time does not change with what is written deep within it.
    times = [place.stat().st_mtime for place in (path, *path.glob("*/*")) if place.exists()]
    return max(times, default=0.0)


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)
