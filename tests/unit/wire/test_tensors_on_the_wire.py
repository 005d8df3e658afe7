"""What a tensor header implies, without torch."""

from __future__ import annotations

import pytest

from flwr_splitkd.errors import TensorError
from flwr_splitkd.wire.tensors import INT8_BLOCK, ITEM_BYTES, payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

DTYPES = [code for code in pb.DType.values() if code != pb.DTYPE_UNSPECIFIED]
LOSSY = [code for code in pb.Codec.values() if code not in (pb.CODEC_UNSPECIFIED, pb.CODEC_NONE)]
FLOATS = [pb.DTYPE_FLOAT32, pb.DTYPE_FLOAT16, pb.DTYPE_BFLOAT16, pb.DTYPE_FLOAT64]


def test_every_dtype_of_the_proto_has_a_size() -> None:
    assert sorted(ITEM_BYTES) == sorted(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "values"), [((), 1), ((0,), 0), ((3, 0, 2), 0), ((7,), 7), ((2, 3, 5), 30)])
def test_bytes_without_a_codec(dtype: pb.DType, shape: tuple[int, ...], values: int) -> None:
    assert payload_bytes(dtype, shape, pb.CODEC_NONE) == values * ITEM_BYTES[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
def test_bytes_of_the_lossy_codecs(dtype: pb.DType) -> None:
    for values in (0, 1, INT8_BLOCK - 1, INT8_BLOCK, INT8_BLOCK + 1, 10 * INT8_BLOCK + 3):
        blocks = -(-values // INT8_BLOCK)
        assert payload_bytes(dtype, (values,), pb.CODEC_FLOAT16) == 2 * values
        assert payload_bytes(dtype, (values,), pb.CODEC_BFLOAT16) == 2 * values
        assert payload_bytes(dtype, (values,), pb.CODEC_INT8_BLOCKWISE) == values + 4 * blocks


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(FLOATS)))
def test_lossy_codecs_are_for_floats(codec: pb.Codec, dtype: pb.DType) -> None:
    message = f"{pb.Codec.Name(codec)} was used for a tensor of {pb.DType.Name(dtype)}"
    with pytest.raises(TensorError, match=message):
        payload_bytes(dtype, (4,), codec)


@pytest.mark.parametrize("dtype", [pb.DTYPE_UNSPECIFIED, 99])
def test_unknown_dtype(dtype: int) -> None:
    with pytest.raises(TensorError, match=f"dtype code is {dtype}; expected one of"):
        payload_bytes(dtype, (4,), pb.CODEC_NONE)


@pytest.mark.parametrize("codec", [pb.CODEC_UNSPECIFIED, 99])
def test_unknown_codec(codec: int) -> None:
    with pytest.raises(TensorError, match=f"codec code is {codec}; expected one of"):
        payload_bytes(pb.DTYPE_FLOAT32, (4,), codec)
    with pytest.raises(TensorError, match="Codec"):
        payload_bytes(pb.DTYPE_INT64, (4,), codec)
