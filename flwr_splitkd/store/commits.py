"""The edge's commit log: a turn counts once one manifest that names every unit is on the disk.

::

    commits/
        manifest-000007.json            names a file for each unit of the student, old or new
        units/blocks.0-<digest>.safetensors    weights and optimiser moments of one unit

A manifest is written after the files that it names, and replaces nothing; so a crash at any point leaves the
previous manifest valid, and what it names is kept until two newer manifests exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store.tensor_file import (
    digest,
    is_whole,
    read_tensors,
    remove_leftovers,
    write_atomically,
    write_tensors,
)

__all__ = ["CommitLog", "Manifest"]

_FORMAT = 1
_KEPT = 2
"""Manifests kept: the newest, and the one to fall back to should its files be damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One commit: which file holds each unit.

    Parameters
    ----------
    number
        Counts the commits of a log from 0.
    units
        File digest of every unit, by unit name.
    info
        What the committer wants to know when it comes back: round, turn, step, seeds.
    """

    number: int
    units: dict[str, str]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def commit_id(self) -> str:
        """The commit's name in messages and logs."""
        return f"{self.number:06d}"


class CommitLog:
    """Commits in one folder; one writer at a time.

    Parameters
    ----------
    folder
        Created when missing. Commits found there are continued from the newest one whose every byte is right.
    reads_only
        Leave the folder as it is: another process may be writing there.

    Attributes
    ----------
    latest
        The commit in force.
    damaged
        Newer manifests that were passed over, and why.
    """

    def __init__(self, folder: Path, *, reads_only: bool = False) -> None:
        self._folder, self._reads_only = folder, reads_only
        self.damaged: dict[str, str] = {}
        for place in () if reads_only else (folder, folder / "units"):
            remove_leftovers(place)
        self.latest = self._newest_valid()

    def commit(self, units: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]) -> Manifest:
        """Make new states of some units durable; the others stay as in the previous commit.

        Raises
        ------
        StoreError
            If the disk is full or cannot be written, or the log was opened to read; the previous commit stays in force.
        """
        if self._reads_only:
            raise StoreError(f"{self._folder} was opened with `reads_only`; expected no commit. Open it without.")
        try:
            self.latest = self._write(units, info)
        finally:  # of a failed commit too: the disk may be full of what it left
            self._prune()
        return self.latest

    def _write(self, units: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]) -> Manifest:
        digests = dict(self.latest.units) if self.latest else {}
        for unit, tensors in units.items():
            digests[unit] = digest(tensors)
            path = self._unit_path(unit, digests[unit])
            if not is_whole(path):
                write_tensors(path, tensors, durable=True, file_digest=digests[unit])
        number = self.latest.number + 1 if self.latest else 0
        manifest = Manifest(number=number, units=digests, info=dict(info))
        text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1, sort_keys=True)
        write_atomically(self._manifest_path(number), text)
        return manifest

    def read(self, unit: str, manifest: Manifest | None = None) -> dict[str, Tensor]:
        """One unit's tensors as of the latest commit, or of another one that `kept` returned.

        Raises
        ------
        StoreError
            If nothing was committed, or the file is missing or damaged.
        """
        manifest = manifest or self.latest
        if manifest is None or unit not in manifest.units:
            known = sorted(manifest.units) if manifest else []
            raise StoreError(f"Unit {unit!r} is in no commit of {self._folder}; expected one of {known}.")
        return read_tensors(self._unit_path(unit, manifest.units[unit]))

    def kept(self) -> list[Manifest]:
        """The commits that can be read, the newest first: that in force, and the one before."""
        newest = self.latest.number if self.latest else -1
        found = (_parse(path) for path in self._newest_first())
        return [manifest for manifest in found if manifest is not None and manifest.number <= newest]

    def go_back(self, manifest: Manifest) -> None:
        """Drop the commits after one that `kept` returned, so that the next one follows it, and not what is undone.

        Raises
        ------
        StoreError
            If the log was opened to read.
        """
        if self._reads_only:
            raise StoreError(f"{self._folder} was opened with `reads_only`; expected no change. Open it without.")
        for path in self._newest_first():
            newer = _parse(path)
            if newer is None or newer.number > manifest.number:
                path.unlink(missing_ok=True)
        self.latest = manifest
        self._prune()

    def _newest_valid(self) -> Manifest | None:
        """The newest manifest that parses and whose files hold what it says."""
        for path in self._newest_first():
            manifest = _parse(path)
            if manifest is None:
                self.damaged[path.name] = "it is no manifest of this format"
                continue
            try:
                for item in manifest.units.items():
                    read_tensors(self._unit_path(*item), expected_digest=item[1])
                return manifest
            except StoreError as error:
                self.damaged[path.name] = str(error)
        return None

    def _prune(self) -> None:
        newest_first = self._newest_first()
        for path in newest_first[_KEPT:]:
            path.unlink(missing_ok=True)
        kept = [manifest for path in newest_first[:_KEPT] if (manifest := _parse(path))]
        needed = {self._unit_path(*item) for manifest in kept for item in manifest.units.items()}
        for path in (self._folder / "units").glob("*.safetensors"):
            if path not in needed:
                path.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        # By length first: the millionth commit has one digit more.
        found = self._folder.glob("manifest-*.json")
        return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)

    def _manifest_path(self, number: int) -> Path:
        return self._folder / f"manifest-{number:06d}.json"

    def _unit_path(self, unit: str, file_digest: str) -> Path:
        return self._folder / "units" / f"{unit}-{file_digest}.safetensors"


def _parse(path: Path) -> Manifest | None:
    """A manifest, or None for a file that is not one: a log must open even beside a damaged manifest."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            return None
        return Manifest(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
