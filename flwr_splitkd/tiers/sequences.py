"""Names of sequences, under which the edge keeps what the teacher made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from flwr_splitkd.errors import ProtocolError

__all__ = ["KEY_BYTES", "keys_from_tensor", "keys_to_tensor", "select_rows", "sequence_keys"]

KEY_BYTES = 16


def sequence_keys(inputs: Mapping[str, Tensor], salt: bytes, codec: int) -> list[bytes]:
    """Name every sequence of a batch by what the teacher is given of it.

    Parameters
    ----------
    inputs
        Tensors of shape ``[batch, ...]``; one without the batch's dimension belongs to all of its sequences.
    salt
        At most 64 bytes. Tells teachers apart, and keeps whoever sees the names alone from trying out sequences.
    codec
        A ``pb.Codec``: what comes from rounded embeddings is another thing.
    """
    tensors = {name: inputs[name].detach().cpu().contiguous() for name in sorted(inputs)}
    batch = max((len(tensor) for tensor in tensors.values() if tensor.dim()), default=0)
    common = hashlib.blake2b(digest_size=KEY_BYTES, key=salt)
    common.update(f"{codec}\0".encode())
    for name, tensor in tensors.items():
        common.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape[1:])}\0".encode())
        if not _by_row(tensor, batch):
            common.update(_bytes(tensor))
    keys = []
    for row in range(batch):
        hasher = common.copy()
        for tensor in tensors.values():
            if _by_row(tensor, batch):
                hasher.update(_bytes(tensor[row]))
        keys.append(hasher.digest())
    return keys


def keys_to_tensor(keys: Sequence[bytes]) -> UInt8[Tensor, "sequences 16"]:
    """As they travel."""
    return torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES) if keys else _none()


def keys_from_tensor(tensor: Tensor) -> list[bytes]:
    """Undo `keys_to_tensor`.

    Raises
    ------
    ProtocolError
        If the tensor holds no names.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 2 or tensor.shape[1] != KEY_BYTES:
        raise ProtocolError(
            f"Names of sequences are {tensor.dtype} of shape {tuple(tensor.shape)}; expected torch.uint8 of shape "
            f"[sequences, {KEY_BYTES}]."
        )
    flat = tensor.contiguous().numpy().tobytes()
    return [flat[start : start + KEY_BYTES] for start in range(0, len(flat), KEY_BYTES)]


def select_rows(tensors: Mapping[str, Tensor], rows: Sequence[int], batch: int) -> dict[str, Tensor]:
    """Some sequences of a batch; a tensor without the batch's dimension belongs to all of them."""
    return {name: tensor[list(rows)] if _by_row(tensor, batch) else tensor for name, tensor in tensors.items()}


def _none() -> Tensor:
    return torch.empty((0, KEY_BYTES), dtype=torch.uint8)


def _by_row(tensor: Tensor, batch: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == batch


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
