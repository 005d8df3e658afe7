"""What a process leaves to the next one about the clock that it sets.

A clock that is set outlives its process, also one that was killed and could not put it back. So before it is touched a file
says so, in a folder for each GPU that every later process of the same user finds::

    ~/.local/state/flwr_splitkd/clocks/<GPU>/clock.json     who set it, and what was set before
                                             .lock          held by who sets it now, until it ends in whatever way

A file whose process is gone tells of a clock that is still set, unless the machine was booted since.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import ClockError, StoreError
from flwr_splitkd.store import FolderLock
from flwr_splitkd.store.tensor_file import write_atomically
from flwr_splitkd.tiers.edge.clock.setter import ClockSetter

__all__ = ["ClockJournal", "Entry", "clocks_folder", "restore_left"]

_STATE, _START_TIME = 0, 19
"""Fields of ``/proc/<pid>/stat`` behind the name, from 0: the state, and clock ticks from boot to the start of the process; see
proc(5)."""
_DEAD = "ZXx"
"""States of a process that has ended, and that its parent has not asked about: a container's first process may never ask."""


def clocks_folder() -> Path:
    """Where journals lie: below ``$FLWR_SPLITKD_STATE``, or ``~/.local/state/flwr_splitkd``.

    Raises
    ------
    ClockError
        If the user has no home, and names no folder.
    """
    root = os.environ.get("FLWR_SPLITKD_STATE")
    try:
        return (Path(root) if root else Path.home() / ".local" / "state" / "flwr_splitkd") / "clocks"
    except RuntimeError as error:
        raise ClockError(
            f"There is no place to remember that a clock is set: {error} Name a folder by FLWR_SPLITKD_STATE."
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Who sets a clock.

    Parameters
    ----------
    gpu
        For people.
    process_id, started_ticks
        The process; when it was started tells it from a later one of the same number. None where the system does not tell.
    boot_id
        Since which boot; empty where the system does not tell.
    limits
        What the GPU had before, see `ClockSetter.limits`.
    """

    gpu: str
    process_id: int
    started_ticks: int | None
    boot_id: str
    limits: Mapping[str, int]

    @classmethod
    def of_this_process(cls, setter: ClockSetter, limits: Mapping[str, int]) -> Entry:
        """What to write before a clock is touched."""
        pid = os.getpid()
        return cls(
            gpu=setter.gpu, process_id=pid, started_ticks=_started_ticks(pid), boot_id=_boot_id(), limits=dict(limits)
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Read what ``asdict`` gave."""
        ticks = data["started_ticks"]
        return cls(
            gpu=str(data["gpu"]),
            process_id=int(data["process_id"]),
            started_ticks=None if ticks is None else int(ticks),
            boot_id=str(data["boot_id"]),
            limits={str(name): int(value) for name, value in data["limits"].items()},
        )

    @property
    def outdated(self) -> bool:
        """Whether the machine was booted since, by which every clock is the GPU's own again."""
        now = _boot_id()
        return bool(self.boot_id and now) and self.boot_id != now

    @property
    def at_work(self) -> bool:
        """Whether its process is alive, and another one than this."""
        if self.process_id == os.getpid() or self.started_ticks is None:
            return False
        return _started_ticks(self.process_id) == self.started_ticks


class ClockJournal:
    """The journal of one GPU, held until `close`.

    Parameters
    ----------
    key
        Of the GPU, see `ClockSetter.key`.
    folder
        `clocks_folder` when not given.

    Raises
    ------
    ClockError
        If somebody else sets this clock, or the journal cannot be kept: without one a clock might stay set for good.
    """

    FILE = "clock.json"

    def __init__(self, key: str, folder: Path | None = None) -> None:
        own = (folder or clocks_folder()) / key
        self._path = own / self.FILE
        try:
            own.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(own)
        except StoreError as error:
            raise ClockError(f"Another run sets the clock of {key}, and a GPU has only one: {error}") from error
        except OSError as error:
            raise _unkept(own, error) from error
        try:
            left = self.left()
            if left is not None and left.at_work:  # where files cannot be locked, as on some network file systems
                raise ClockError(
                    f"Process {left.process_id} sets the clock of {left.gpu or key}, and a GPU has only one. Wait for it to "
                    "end, or stop it."
                )
            if left is not None and left.outdated:
                self.remove()
        except BaseException:
            self.close()
            raise

    def left(self) -> Entry | None:
        """What another process has left; None if it left nothing."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unkept(self._path, error) from error
        try:
            return Entry.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: that there is one says enough
            return Entry(gpu="", process_id=0, started_ticks=None, boot_id="", limits={})

    def write(self, entry: Entry) -> None:
        """Say that this process sets the clock; on the disk when it returns.

        Raises
        ------
        ClockError
            If it cannot be written.
        """
        try:
            write_atomically(self._path, json.dumps(asdict(entry), indent=1) + "\n")
        except StoreError as error:
            raise _unkept(self._path, error) from error

    def remove(self) -> None:
        """Say that the clock is the GPU's own."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise _unkept(self._path, error) from error

    def close(self) -> None:
        """Let others set the clock."""
        self._lock.release()


def restore_left(setter_of: Callable[[str], ClockSetter], folder: Path | None = None) -> tuple[list[str], list[str]]:
    """Put back the clocks that dead processes have left set.

    Parameters
    ----------
    setter_of
        Finds who sets the clock of a GPU, by its key.
    folder
        `clocks_folder` when not given.

    Returns
    -------
    tuple
        What was put back, and what could not be and why: a line for each GPU.
    """
    done, failed = [], []
    for path in sorted((folder or clocks_folder()).glob(f"*/{ClockJournal.FILE}")):
        key = path.parent.name
        try:
            journal = ClockJournal(key, folder)
            try:
                done.append(_restored(journal, key, setter_of))
            finally:
                journal.close()
        except ClockError as error:
            failed.append(str(error))
    return done, failed


def _restored(journal: ClockJournal, key: str, setter_of: Callable[[str], ClockSetter]) -> str:
    left = journal.left()
    if left is None:
        return f"{key}: nothing to put back; the machine was booted since its clock was set, or its run has just ended."
    setter = setter_of(key)
    try:
        setter.reset(left.limits)
    finally:
        setter.close()
    journal.remove()
    return f"{setter.gpu}: its clock, which process {left.process_id} had left set, is put back."


def _unkept(path: Path, error: OSError) -> ClockError:
    return ClockError(
        f"{path} cannot be used to remember that a clock is set: {error}. Without that it might stay set after a crash, so it "
        "is not set. Free some disk space, or name another folder by FLWR_SPLITKD_STATE."
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started_ticks(process_id: int) -> int | None:
    """When a process was started; None if there is none, it has ended, or the system does not tell."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # the name, in parentheses, may hold anything
        return None if fields[_STATE] in _DEAD else int(fields[_START_TIME])
    except (OSError, ValueError, IndexError):
        return None
