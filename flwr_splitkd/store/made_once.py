"""Folders that take long to make and are the same for the same description: made once, then read."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr_splitkd.store.cache import cache_root

__all__ = ["made_once"]

_RECORD_FILE = "recipe.json"


def made_once(
    kind: str,
    description: Mapping[str, Any],
    make: Callable[[Path], None],
    *,
    root: Path | None = None,
    warn: Callable[[str], object] = lambda text: None,
) -> Path:
    """Return the folder for a description; make it first if there is none, or a damaged one.

    Parameters
    ----------
    kind
        What the folder's name begins with.
    description
        Everything that decides the content, as JSON can hold it. Another description is another folder.
    make
        Fills the empty folder that it is given with files, in folders of their own if need be. The folder takes its
        place only when it is complete, so that no reader ever sees half of it.
    root
        The cache folder, by default `cache_root`.
    warn
        Called with a sentence if what is there is damaged.
    """
    text = json.dumps(description, sort_keys=True)
    folder = (root or cache_root()) / f"{kind}-{_sha256(text.encode())[:16]}"
    if folder.exists():
        if _is_intact(folder, text):
            return folder
        warn(f"the cached {kind} in {folder} is damaged; it is made again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        written = Path(scratch) / "made"
        written.mkdir()
        make(written)
        paths = sorted(path for path in written.rglob("*") if path.is_file())
        files = {path.relative_to(written).as_posix(): _sha256(path.read_bytes()) for path in paths}
        record = {"description": json.loads(text), "files": files}
        (written / _RECORD_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
        try:
            written.rename(folder)
        except OSError:
            # A damaged folder is in the way, or an equal one that another process has just finished.
            if not _is_intact(folder, text):
                folder.rename(Path(scratch) / "damaged")
                written.rename(folder)
    return folder


def _is_intact(folder: Path, description: str) -> bool:
    try:
        record = json.loads((folder / _RECORD_FILE).read_text(encoding="utf-8"))
        if record["description"] != json.loads(description):
            return False
        files: dict[str, str] = record["files"]
        return bool(files) and all(_sha256((folder / name).read_bytes()) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
