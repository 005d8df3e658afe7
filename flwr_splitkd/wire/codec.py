"""Tensors to wire payloads and back: no codec, float16, bfloat16 and blockwise int8."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, NonFiniteError, TensorError
from flwr_splitkd.wire.tensors import INT8_BLOCK, EncodedTensor, payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["CodecName", "codec_code", "decode", "encode", "round_trip", "supported_codecs"]

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


def encode(tensor: Tensor, codec: int = pb.CODEC_NONE) -> EncodedTensor:
    """Encode a tensor of any shape for the wire.

    Integer and boolean tensors always travel as they are. With ``CODEC_NONE`` the payload is a view of a
    contiguous CPU tensor's own memory: do not change the tensor before it has been sent.

    Raises
    ------
    NonFiniteError
        If a lossy codec meets a value that it cannot hold: NaN, infinity, or beyond float16's 65,504.
    TensorError
        If the tensor's dtype has no code on the wire.
    """
    if tensor.dtype not in _DTYPE_CODES:
        raise TensorError(f"Tensor dtype is {tensor.dtype}; expected one of {list(_DTYPE_CODES)}.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not tensor.is_floating_point():
        codec = pb.CODEC_NONE
    if codec == pb.CODEC_NONE:
        payload = flat
    elif codec in _HALF:
        payload = flat.to(_HALF[codec])
        _require_finite(payload, codec)
    elif codec == pb.CODEC_INT8_BLOCKWISE:
        payload = _quantize(flat)
    else:
        raise TensorError(f"Codec code is {codec}; expected one of {supported_codecs()}.")
    buffer = payload.view(torch.uint8).numpy().data if payload.numel() else b""
    return EncodedTensor(_DTYPE_CODES[tensor.dtype], tuple(tensor.shape), codec, buffer)


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


def round_trip(tensor: Tensor, codec: int) -> Tensor:
    """What a peer gets when `tensor` is sent with `codec`: same shape and dtype, on the CPU."""
    encoded = encode(tensor, codec)
    return decode(EncodedTensor(encoded.dtype, encoded.shape, encoded.codec, bytes(encoded.payload)))


def _quantize(flat: Tensor) -> Tensor:
    """Int8 values, then their blocks' float32 scales, as one byte tensor."""
    values = flat.to(torch.float32)
    padded = torch.nn.functional.pad(values, (0, -values.numel() % INT8_BLOCK)).view(-1, INT8_BLOCK)
    scales = padded.abs().amax(dim=1) / 127.0
    # What the receiver will make of the largest value: next to float32's end that rounds to infinity.
    _require_finite(scales * 127.0, pb.CODEC_INT8_BLOCKWISE)
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))  # an all-zero block stays zero
    # A subnormal scale may round below amax / 127, so the quotient is clamped.
    quantized = (padded / divisors[:, None]).round_().clamp_(-127, 127).to(torch.int8).view(-1)
    return torch.cat([quantized[: flat.numel()].view(torch.uint8), scales.view(torch.uint8)])


def _dequantize(raw: Tensor, dtype: torch.dtype) -> Tensor:
    # bytes = n + 4 * ceil(n / block), so n follows from the byte count alone.
    blocks = -(-raw.numel() // (INT8_BLOCK + 4))
    num_values = raw.numel() - 4 * blocks
    values = raw[:num_values].view(torch.int8).to(torch.float32)
    # The scales need not be aligned to 4 bytes where they lie.
    scales = raw[num_values:].clone().view(torch.float32)
    padded = torch.nn.functional.pad(values, (0, -num_values % INT8_BLOCK)).view(-1, INT8_BLOCK)
    return (padded * scales[:, None]).view(-1)[:num_values].to(dtype)


def _require_finite(values: Tensor, codec: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"A tensor has NaN, infinity or a value too large for {pb.Codec.Name(codec)}; expected finite "
            "values within the codec's range. Use codec 'bfloat16' or 'none', or a lower learning rate."
        )
