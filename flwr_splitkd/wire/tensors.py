"""A tensor as it lies on the wire, without torch: what its header says and how many bytes that implies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr_splitkd.errors import TensorError
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["INT8_BLOCK", "ITEM_BYTES", "EncodedTensor", "payload_bytes"]

INT8_BLOCK = 128
"""Values that share one float32 scale in the blockwise int8 codec."""

ITEM_BYTES: dict[int, int] = {
    pb.DTYPE_FLOAT32: 4,
    pb.DTYPE_FLOAT16: 2,
    pb.DTYPE_BFLOAT16: 2,
    pb.DTYPE_FLOAT64: 8,
    pb.DTYPE_INT64: 8,
    pb.DTYPE_INT32: 4,
    pb.DTYPE_INT16: 2,
    pb.DTYPE_INT8: 1,
    pb.DTYPE_UINT8: 1,
    pb.DTYPE_BOOL: 1,
}

_FLOATING = frozenset({pb.DTYPE_FLOAT32, pb.DTYPE_FLOAT16, pb.DTYPE_BFLOAT16, pb.DTYPE_FLOAT64})


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor's payload with what a receiver needs to decode it.

    Parameters
    ----------
    dtype
        A ``pb.DType``: the dtype after decoding.
    shape
        Elements along each dimension; empty for a scalar.
    codec
        A ``pb.Codec``: how the payload stands for the values.
    payload
        The encoded bytes, any flat buffer of bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    codec: int
    payload: memoryview | bytes | bytearray = field(repr=False)


def payload_bytes(dtype: int, shape: Sequence[int], codec: int) -> int:
    """Bytes that a tensor's payload must have.

    Raises
    ------
    TensorError
        If dtype or codec is unknown, or the codec does not apply to the dtype.
    """
    if dtype not in ITEM_BYTES:
        raise TensorError(f"Tensor dtype code is {dtype}; expected one of {sorted(ITEM_BYTES)}.")
    values = math.prod(shape)
    if codec == pb.CODEC_NONE:
        return values * ITEM_BYTES[dtype]
    if dtype not in _FLOATING:
        raise TensorError(
            f"Codec {_codec_name(codec)} was used for a tensor of {pb.DType.Name(dtype)}; "
            "expected CODEC_NONE, the lossy codecs are for floating-point tensors."
        )
    if codec in (pb.CODEC_FLOAT16, pb.CODEC_BFLOAT16):
        return values * 2
    if codec == pb.CODEC_INT8_BLOCKWISE:
        return values + 4 * -(-values // INT8_BLOCK)
    raise TensorError(f"Tensor codec code is {codec}; expected one of {sorted(pb.Codec.values())[1:]}.")


def _codec_name(codec: int) -> str:
    known: dict[int, str] = {value: name for name, value in pb.Codec.items()}
    return known.get(codec, str(codec))
