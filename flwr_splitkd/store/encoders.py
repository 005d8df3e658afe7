"""Where a device keeps its encoders, if the app names no folder: one for each run."""

from __future__ import annotations

import re
from pathlib import Path

from flwr_splitkd.store.cache import cache_root

__all__ = ["encoder_folder", "encoders_of_run"]

_DIGITS = 16


def encoder_folder(node: int | str, digest: str, run: str) -> Path:
    """Folder of a node's encoder in a run; `digest` is that of the encoder's fingerprint."""
    # The run's name comes from outside.
    return cache_root() / "encoders" / str(node) / digest[:_DIGITS] / re.sub(r"[^\w-]", "_", run or "run")


def encoders_of_run(digest: str, run: str) -> dict[str, Path]:
    """The folders on this machine that hold this encoder as of a run, by the node's id."""
    nodes = (path.name for path in (cache_root() / "encoders").glob("*"))
    folders = {node: encoder_folder(node, digest, run) for node in sorted(nodes)}
    return {node: folder for node, folder in folders.items() if folder.is_dir()}
