"""What the frozen teacher made of sequences, kept in memory and on disk so that it need not be made twice.

The teacher does not depend on the student, so its outcome for a sequence is the same in every epoch. From a device's second
epoch on neither the teacher runs nor its embeddings travel. A cache lives as long as its teacher: another one, or another
process with the same one, begins with nothing, under names that no earlier one knew.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flwr_splitkd.errors import ProtocolError, SplitKDError, StoreError
from flwr_splitkd.store.tensor_file import read_tensors, write_tensors

__all__ = ["TeacherCache"]

_logger = logging.getLogger(__name__)

_SALT_BYTES = 32


class _Name(NamedTuple):
    """Whose sequence: a device is never served with what another one sent."""

    owner: str
    key: bytes


class TeacherCache:
    """Bounded, least recently used first out. What is pinned stays: a device leaves out what it was told is here.

    Parameters
    ----------
    folder
        For what does not fit into memory; made when needed. What is in it is removed.
    memory_bytes, disk_bytes
        Most bytes of outcomes in memory and on disk; 0 for none there.
    """

    def __init__(self, folder: Path, *, memory_bytes: int, disk_bytes: int) -> None:
        self._folder, self._memory_bytes = folder, memory_bytes
        self._disk_bytes, self._disk_works = disk_bytes, True
        self._memory: OrderedDict[_Name, Tensor] = OrderedDict()
        self._disk: OrderedDict[_Name, int] = OrderedDict()
        self._pinned: set[str] = set()
        self.bytes_in_memory, self.bytes_on_disk = 0, 0
        self.salt = secrets.token_bytes(_SALT_BYTES)
        if folder.exists():  # of an earlier process, which alone knew whose they are
            shutil.rmtree(folder)

    def __len__(self) -> int:
        return len(self._memory) + len(self._disk)

    def pin(self, owner: str) -> list[bytes]:
        """Keep everything of this device until `unpin`; return the names of its sequences."""
        self._pinned.add(owner)
        return self.names(owner)

    def names(self, owner: str) -> list[bytes]:
        """The names of this device's sequences that are here now."""
        return sorted(name.key for kept in (self._memory, self._disk) for name in kept if name.owner == owner)

    @property
    def _bytes_left(self) -> int:
        """Room for outcomes without dropping others."""
        on_disk = self._disk_bytes - self.bytes_on_disk if self._disk_works else 0
        return self._memory_bytes - self.bytes_in_memory + on_disk

    def unpin(self, owner: str) -> None:
        """Let what this device has sent be replaced again."""
        self._pinned.discard(owner)

    def put(self, owner: str, key: bytes, outcome: Tensor, *, evict: bool = True) -> bool:
        """Keep the outcome for a sequence, if there is room; return whether it is kept. With `evict`, others make room.

        A disk that fails is written to no more: a cache is no reason to end a run.
        """
        name = _Name(owner, key)
        if name in self._memory or name in self._disk:
            return True
        if outcome.nbytes > self._bytes_left and not (evict and self._make_room(outcome.nbytes)):
            return False
        self._memory[name] = outcome.detach().cpu().clone()  # of its own: a row would keep its whole batch
        self.bytes_in_memory += outcome.nbytes
        try:
            self._spill()
        except StoreError as error:
            self._disk_works = False
            _logger.warning("The teacher's cache keeps what is on the disk and writes no more there: %s", error)
            self._forget(name)  # and whatever it would have driven out of memory stays there
            return False
        return True

    def get(self, owner: str, key: bytes) -> Tensor:
        """The outcome for a sequence.

        Raises
        ------
        ProtocolError
            If it is not here: the device was never told that it is.
        SplitKDError
            If its file is damaged: the turn is lost, and the device sends the sequence in its next one.
        """
        name = _Name(owner, key)
        if name not in self._memory:
            if name not in self._disk:
                raise ProtocolError(
                    f"{owner} left out a sequence of which the teacher's outcome is not kept; expected one that it was told of."
                )
            try:
                tensor = read_tensors(self._path(name))["outcome"]
            except StoreError as error:
                self._forget(name)
                raise SplitKDError(f"What the teacher made of a sequence cannot be read any more: {error}") from error
            self._disk.move_to_end(name)
        else:
            tensor = self._memory[name]
            self._memory.move_to_end(name)
        return tensor

    # ---- room

    def _make_room(self, size: int) -> bool:
        """Drop what was not used for longest and is not pinned."""
        excess = size - self._bytes_left
        places = (self._disk, self._memory) if self._disk_works else (self._memory,)
        free = [name for kept in places for name in kept if name.owner not in self._pinned]
        for name in free:
            if excess <= 0:
                break
            excess -= self._forget(name)
        return excess <= 0

    def _spill(self) -> None:
        """Move what does not fit into memory to the disk, least recently used first."""
        while self.bytes_in_memory > self._memory_bytes and self._memory:
            name, tensor = next(iter(self._memory.items()))
            write_tensors(self._path(name), {"outcome": tensor}, durable=False)
            del self._memory[name]
            self._disk[name] = tensor.nbytes
            self.bytes_in_memory -= tensor.nbytes
            self.bytes_on_disk += tensor.nbytes

    def _forget(self, name: _Name) -> int:
        """Drop one outcome; return its bytes."""
        if name in self._memory:
            size = self._memory.pop(name).nbytes
            self.bytes_in_memory -= size
            return size
        size = self._disk.pop(name)
        self.bytes_on_disk -= size
        self._path(name).unlink(missing_ok=True)
        return size

    # ---- the folder

    def _path(self, name: _Name) -> Path:
        return self._folder / hashlib.blake2b(name.owner.encode(), digest_size=16).hexdigest() / f"{name.key.hex()}.st"
