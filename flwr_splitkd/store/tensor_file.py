"""Tensor files that are either whole or absent, and that know their own digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flwr_splitkd.errors import StoreError

__all__ = ["digest", "is_whole", "read_tensors", "remove_leftovers", "write_atomically", "write_tensors"]

_DIGEST_KEY = "blake2b"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits over every tensor's name, dtype, shape and bytes; the order of the mapping does not matter."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, durable: bool, file_digest: str | None = None) -> None:
    """Write tensors so that `path` holds all of them or is untouched.

    Parameters
    ----------
    durable
        Wait until the bytes are on the disk, not only in the system's cache.
    file_digest
        ``digest(tensors)`` where the caller has it already.

    Raises
    ------
    StoreError
        If the disk is full or the folder cannot be written.
    """
    own = _with_own_memory(tensors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, temporary, metadata={_DIGEST_KEY: file_digest or digest(own)})
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)  # the rename itself
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreError(
            f"{path} cannot be written: {error}. What was there before is untouched; free some disk space or "
            "check the folder's permissions."
        ) from error


def read_tensors(path: Path, *, expected_digest: str | None = None) -> dict[str, Tensor]:
    """Read a file of `write_tensors` and check it against a digest: the one given, or else its own.

    Raises
    ------
    StoreError
        If the file is missing, truncated or altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            expected = expected_digest or (file.metadata() or {}).get(_DIGEST_KEY)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Its commit is not used.") from error
    got = digest(tensors)
    if got != expected:
        raise StoreError(f"{path} has digest {got}; expected {expected}: it was altered or half written.")
    return tensors


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file durably, all or nothing.

    Raises
    ------
    StoreError
        If the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreError(f"{path} cannot be written: {error}. What was there before is untouched.") from error


def is_whole(path: Path) -> bool:
    """Whether a file of `write_tensors` is there in its full length; its bytes are checked when it is read."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove what a process left half written in this folder; only while nobody writes to it."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def _with_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that do not overlap: a file holds a tied tensor under each of its names."""
    own: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        storage = here.untyped_storage().data_ptr()
        own[name] = here.clone() if storage in known else here
        known.add(storage)
    return own


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
