"""Room on the disks, and whether it may be written to."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from flwr_splitkd.cli.doctor.finding import Finding, gib, ok, warning, wrong

__all__ = ["check_folder"]

_LITTLE_BYTES = float(1 << 30)
"""Less than this is a warning, whatever the models: logs, apps and caches take some."""


def check_folder(what: str, folder: Path, *, needed_bytes: float, needed_for: str, remedy: str) -> Finding:
    """Whether a folder can be written, and its disk has enough room.

    Parameters
    ----------
    what
        The folder is for.
    folder
        It need not exist: then the nearest one above it counts, where it would be created.
    needed_bytes, needed_for
        What will be kept there, in bytes and in words; 0 where nobody knows.
    remedy
        How to have it elsewhere.
    """
    name = f"{what} {folder}"
    nearest = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    expected = f"{gib(needed_bytes)} for {needed_for}" if needed_bytes else f"at least {gib(_LITTLE_BYTES)}"
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"\0")
            file.flush()
        free = float(shutil.disk_usage(nearest).free)
    except OSError as error:
        return wrong(
            name,
            f"{nearest} cannot be written: {error.strerror or error}",
            expected="a folder that this user may write",
            remedy=f"Let this user write there (chown, or mount it for writing), or: {remedy}",
        )
    seen = f"{gib(free)} free" + ("" if nearest == folder else f" in {nearest}, where it would be made")
    if free < needed_bytes:
        return wrong(name, seen, expected=expected, remedy=f"Free {gib(needed_bytes - free)} more, or: {remedy}")
    if free < _LITTLE_BYTES:
        return warning(name, seen, expected=f"at least {gib(_LITTLE_BYTES)}", remedy=f"Free some, or: {remedy}")
    return ok(name, seen, expected)
