"""Tensors to wire payloads and back: no codec, float16, bfloat16 and blockwise int8."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, NonFiniteError, TensorError
from flwr_splitkd.wire.tensors import INT8_BLOCK, EncodedTensor, payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = [
    "CodecName",
    "codec_code",
    "decode",
    "dtype_code",
    "encode",
    "require_finite",
    "round_trip",
    "supported_codecs",
]

CodecName = Literal["none", "float16", "bfloat16", "int8"]

_CODES: dict[str, pb.Codec] = {
    "none": pb.CODEC_NONE,
    "float16": pb.CODEC_FLOAT16,
    "bfloat16": pb.CODEC_BFLOAT16,
    "int8": pb.CODEC_INT8_BLOCKWISE,
}
_DTYPE_CODES: dict[torch.dtype, pb.DType] = {
    torch.float32: pb.DTYPE_FLOAT32,
    torch.float16: pb.DTYPE_FLOAT16,
    torch.bfloat16: pb.DTYPE_BFLOAT16,
    torch.float64: pb.DTYPE_FLOAT64,
    torch.int64: pb.DTYPE_INT64,
    torch.int32: pb.DTYPE_INT32,
    torch.int16: pb.DTYPE_INT16,
    torch.int8: pb.DTYPE_INT8,
    torch.uint8: pb.DTYPE_UINT8,
    torch.bool: pb.DTYPE_BOOL,
}
_DTYPES: dict[int, torch.dtype] = {code: dtype for dtype, code in _DTYPE_CODES.items()}
_HALF: dict[int, torch.dtype] = {pb.CODEC_FLOAT16: torch.float16, pb.CODEC_BFLOAT16: torch.bfloat16}
_SLAB_BLOCKS = 2048
"""Int8 blocks that are worked on at once on a CPU: their 1 MiB of float32 stay in its cache from one operation to the next."""


def supported_codecs() -> tuple[pb.Codec, ...]:
    """Codec codes that this build encodes and decodes."""
    return tuple(_CODES.values())


def codec_code(name: str) -> pb.Codec:
    """Return the wire code of a codec's name.

    Raises
    ------
    ConfigError
        If there is no codec of that name.
    """
    if name not in _CODES:
        raise ConfigError(f"`codec` is {name!r}; expected one of {', '.join(get_args(CodecName))}.")
    return _CODES[name]


def dtype_code(dtype: torch.dtype) -> pb.DType:
    """Return the wire code of a tensor's dtype.

    Raises
    ------
    TensorError
        If it has none.
    """
    if dtype not in _DTYPE_CODES:
        raise TensorError(f"Tensor dtype is {dtype}; expected one of {list(_DTYPE_CODES)}.")
    return _DTYPE_CODES[dtype]


def encode(tensor: Tensor, codec: int = pb.CODEC_NONE) -> EncodedTensor:
    """Encode a tensor of any shape for the wire.

    Integer and boolean tensors always travel as they are. With ``CODEC_NONE`` the payload is a view of a
    contiguous CPU tensor's own memory: do not change the tensor before it has been sent. A tensor on an accelerator is
    encoded there, so that only the payload is copied to the host.

    Raises
    ------
    NonFiniteError
        If a lossy codec meets a value that it cannot hold: NaN, infinity, or beyond float16's 65,504.
    TensorError
        If the tensor's dtype has no code on the wire.
    """
    dtype = dtype_code(tensor.dtype)
    flat = tensor.detach().contiguous().reshape(-1)
    if not tensor.is_floating_point():
        codec = pb.CODEC_NONE
    if codec == pb.CODEC_NONE:
        payload = flat
    elif codec in _HALF:
        require_finite(flat, codec, _HALF[codec])
        payload = flat.to(_HALF[codec])
    elif codec == pb.CODEC_INT8_BLOCKWISE:
        payload = _quantize(flat)
    else:
        raise TensorError(f"Codec code is {codec}; expected one of {supported_codecs()}.")
    buffer = payload.cpu().view(torch.uint8).numpy().data if payload.numel() else b""
    return EncodedTensor(dtype, tuple(tensor.shape), codec, buffer)


def decode(encoded: EncodedTensor) -> Tensor:
    """Decode a tensor from the wire; the result owns or shares the payload's memory.

    Raises
    ------
    TensorError
        If the payload's length is not what dtype, shape and codec imply.
    """
    expected = payload_bytes(encoded.dtype, encoded.shape, encoded.codec)
    if len(encoded.payload) != expected:
        raise TensorError(
            f"Tensor payload has {len(encoded.payload)} bytes; expected {expected} for shape "
            f"{encoded.shape}, {pb.DType.Name(encoded.dtype)} and {pb.Codec.Name(encoded.codec)}."
        )
    dtype = _DTYPES[encoded.dtype]
    if expected == 0:
        return torch.empty(encoded.shape, dtype=dtype)
    payload = encoded.payload
    if memoryview(payload).readonly:  # torch wants writable memory
        payload = bytearray(payload)
    raw = torch.frombuffer(payload, dtype=torch.uint8)
    if encoded.codec == pb.CODEC_NONE:
        flat = raw.view(dtype)
    elif encoded.codec in _HALF:
        flat = raw.view(_HALF[encoded.codec]).to(dtype)
    else:
        flat = _dequantize(raw, dtype)
    return flat.reshape(encoded.shape)


def require_finite(values: Tensor, codec: int, dtype: torch.dtype | None = None) -> None:
    """Refuse NaN, infinity and what rounds to infinity in `dtype`, in one look at the values.

    Rounding keeps the order, and both extremes are NaN if any value is.

    Raises
    ------
    NonFiniteError
        If there is such a value.
    """
    if values.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(values)).to(dtype or values.dtype)).all()):
        raise NonFiniteError(
            f"A tensor has NaN, infinity or a value too large for {pb.Codec.Name(codec)}; expected finite "
            "values within the codec's range. Use codec 'bfloat16' or 'none', or a lower learning rate."
        )


def round_trip(tensor: Tensor, codec: int) -> Tensor:
    """What a peer gets when `tensor` is sent with `codec`: same shape and dtype, on the CPU."""
    encoded = encode(tensor, codec)
    return decode(EncodedTensor(encoded.dtype, encoded.shape, encoded.codec, bytes(encoded.payload)))


def _quantize(flat: Tensor) -> Tensor:
    """Int8 values, then their blocks' float32 scales, as one byte tensor."""
    num_values = flat.numel()
    blocks = -(-num_values // INT8_BLOCK)
    payload = torch.empty(num_values + 4 * blocks, dtype=torch.uint8, device=flat.device)
    scales = torch.empty(blocks, 1, dtype=torch.float32, device=flat.device)
    targets = _slabs(payload[:num_values].view(torch.int8))
    for source, target, scale in zip(_slabs(flat), targets, _rows(scales, targets), strict=True):
        values = source.to(torch.float32)
        amax = torch.maximum(values.amax(dim=1, keepdim=True), values.amin(dim=1, keepdim=True).neg_()).abs_()
        torch.div(amax, 127.0, out=scale)
        divisors = torch.where(scale > 0, scale, torch.ones_like(scale))  # an all-zero block stays zero
        # A subnormal scale may round below amax / 127, so the quotient is clamped.
        target.copy_((values / divisors).round_().clamp_(-127, 127))
    # What the receiver will make of the largest value: next to float32's end that rounds to infinity.
    require_finite(scales * 127.0, pb.CODEC_INT8_BLOCKWISE)
    payload[num_values:] = scales.view(-1).view(torch.uint8)
    return payload


def _dequantize(raw: Tensor, dtype: torch.dtype) -> Tensor:
    # bytes = n + 4 * ceil(n / block), so n follows from the byte count alone.
    blocks = -(-raw.numel() // (INT8_BLOCK + 4))
    num_values = raw.numel() - 4 * blocks
    # The scales need not be aligned to 4 bytes where they lie.
    scales = raw[num_values:].clone().view(torch.float32)[:, None]
    decoded = torch.empty(num_values, dtype=dtype)
    targets = _slabs(decoded)
    sources = _slabs(raw[:num_values].view(torch.int8))
    for source, target, scale in zip(sources, targets, _rows(scales, targets), strict=True):
        torch.mul(source.to(torch.float32), scale, out=target)
    return decoded


def _slabs(flat: Tensor) -> list[Tensor]:
    """Views of some blocks at a time, one a row, and of the last block if it is shorter than the others."""
    whole = flat.numel() // INT8_BLOCK * INT8_BLOCK
    rows = _SLAB_BLOCKS if flat.device.type == "cpu" else max(whole, 1)
    blocks = flat[:whole].view(-1, INT8_BLOCK)
    slabs = [blocks[start : start + rows] for start in range(0, len(blocks), rows)]
    return [*slabs, flat[whole:][None]] if whole < flat.numel() else slabs


def _rows(scales: Tensor, slabs: list[Tensor]) -> list[Tensor]:
    """The scales of each slab's blocks."""
    ends = list(accumulate(len(slab) for slab in slabs))
    return [scales[end - len(slab) : end] for end, slab in zip(ends, slabs, strict=True)]
