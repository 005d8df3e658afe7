"""Points in the life of a process at which a test does something to it.

A process that reaches the point leaves a file with its id and waits for another one; meanwhile the test kills it, stops it
or cuts its network, and then, if there is anybody left, tells it to go on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Phases", "patched"]

_POLL_S = 0.005
_WAIT_S = 60.0


class Phases:
    """Of one process.

    Parameters
    ----------
    folder
        Where the files lie.
    who
        This process: ``"edge"`` or a device's name.
    wanted
        ``{"who": ..., "phase": ..., "nth": ...}``: the point, and how often it is passed before, counted in one process.
    """

    def __init__(self, folder: Path, who: str, wanted: dict[str, Any] | None) -> None:
        self._folder = folder
        self._phase = wanted["phase"] if wanted and wanted["who"] == who else None
        self._left = int(wanted["nth"]) if wanted else 0

    def reach(self, phase: str) -> None:
        """Stop here if the test wants it; the first process that comes here, and no other."""
        if phase != self._phase:
            return
        self._left -= 1
        if self._left >= 0:
            return
        self._phase = None
        try:
            handle = os.open(self._folder / "reached.part", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        with os.fdopen(handle, "w") as file:
            json.dump({"pid": os.getpid(), "time_s": time.time()}, file)
        os.replace(self._folder / "reached.part", self._folder / "reached")
        (self._folder / "reached.part").touch()  # nobody else stops here
        deadline_s = time.monotonic() + _WAIT_S
        while not (self._folder / "go").exists() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)


def patched(owner: Any, name: str, before: Callable[..., None]) -> None:
    """Call `before` with a method's arguments each time, then the method; for good, since the process is ours."""
    method = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        before(*arguments, **keywords)
        return method(*arguments, **keywords)

    setattr(owner, name, call)
