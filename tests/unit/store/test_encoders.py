from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flwr_splitkd.store import FolderLock, encoder_folder, encoders_of_run, forget_old_runs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path))
    return tmp_path


def made(run: str, *, hours: float, device: str = "0") -> Path:
    """A device's folder in a run that was last used so long ago."""
    folder = encoder_folder(device, "d" * 32, run)
    folder.mkdir(parents=True)
    when = time.time() - 3600 * hours
    for path in (folder, folder.parent, folder.parent.parent):
        os.utime(path, (when, when))
    return folder


def test_devices_of_a_run_by_their_names(cache: Path) -> None:
    folders = {name: made("run", hours=1, device=name) for name in ("0", "kitchen")}
    made("another", hours=1)
    assert encoders_of_run("d" * 32, "run") == folders
    assert encoders_of_run("e" * 32, "run") == {}
    # Names come from outside.
    assert encoder_folder("../x/y", "d" * 32, "../run").relative_to(cache / "encoders").parts == (
        "___run",
        "d" * 16,
        "___x_y",
    )


def test_the_newest_runs_stay() -> None:
    """The same device has another folder in each: none of them is pruned by itself."""
    runs = {name: made(name, hours=hours) for name, hours in (("a", 50), ("b", 40), ("c", 30), ("d", 20), ("now", 90))}
    forget_old_runs("now", 2)
    assert {name for name, folder in runs.items() if folder.exists()} == {"c", "d", "now"}


def test_what_may_be_in_use_stays() -> None:
    recent, held, old = made("recent", hours=0.5), made("held", hours=5), made("old", hours=5)
    lock = FolderLock(held)
    when = time.time() - 5 * 3600
    os.utime(held, (when, when))
    forget_old_runs("now", 0)
    assert recent.exists() and held.exists() and not old.exists()
    lock.release()
    forget_old_runs("now", 0)
    assert recent.exists() and not held.exists()
