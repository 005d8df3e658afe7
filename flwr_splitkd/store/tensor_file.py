"""Tensor files that are either whole or absent, and that know their own digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flwr_splitkd.errors import StoreError

__all__ = ["digest", "read_tensors", "sync_folder", "write_atomically", "write_tensors"]

_DIGEST_KEY = "blake2b"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits over every tensor's name, dtype, shape and bytes; the order of the mapping does not matter."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            hasher.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return hasher.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, durable: bool, file_digest: str | None = None
) -> None:
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
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, temporary, metadata={_DIGEST_KEY: file_digest or digest(own)})
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error}. What was there before is untouched; free some disk space or "
            "check the folder's permissions."
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of `write_tensors` and check it against its digest.

    Raises
    ------
    StoreError
        If the file is missing, truncated or altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            expected = (file.metadata() or {}).get(_DIGEST_KEY)
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
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error}. What was there before is untouched.") from error


def sync_folder(folder: Path) -> None:
    """Make a rename within the folder durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
