"""A folder has one owner at a time."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from flwr_splitkd.errors import StoreError

__all__ = ["FolderLock", "is_locked"]

_POLL_S = 0.1


class FolderLock:
    """Keeps everyone else out of a folder until `release`, or until this process ends in whatever way.

    Parameters
    ----------
    folder
        Exists.
    patience_s
        Seconds to wait for an owner that may be about to end.

    Raises
    ------
    StoreError
        If another process, or something else in this one, has it.
    """

    NAME = ".lock"

    def __init__(self, folder: Path, patience_s: float = 0.0) -> None:
        self._file = (folder / self.NAME).open("a+", encoding="utf-8")
        try:
            self._take(folder, time.monotonic() + patience_s)
        except BaseException:
            self._file.close()
            raise

    def _take(self, folder: Path, deadline_s: float) -> None:
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < deadline_s:
                    time.sleep(_POLL_S)
                    continue
                self._file.seek(0)
                raise StoreError(
                    f"{folder} is in use by process {self._file.read().strip()}; expected one at a time. Wait for it to end, or "
                    "stop it."
                ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let others in; what has been released stays so."""
        self._file.close()


def is_locked(folder: Path) -> bool:
    """Whether somebody has a folder at this moment."""
    try:
        with (folder / FolderLock.NAME).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
