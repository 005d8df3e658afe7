"""Tensors to payloads and back: lossless where promised, within the stated error elsewhere."""

from __future__ import annotations

import re
import typing

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, NonFiniteError, TensorError
from flwr_splitkd.wire.codec import CodecName, codec_code, decode, encode, round_trip, supported_codecs
from flwr_splitkd.wire.framing import Assembler, Limits, to_frames
from flwr_splitkd.wire.tensors import INT8_BLOCK, EncodedTensor, payload_bytes
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

CODECS = [code for code in pb.Codec.values() if code != pb.CODEC_UNSPECIFIED]
DTYPES = [code for code in pb.DType.values() if code != pb.DTYPE_UNSPECIFIED]
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SHAPES = [(), (0,), (1,), (127,), (128,), (129,), (3, 0, 2), (2, 3, 5), (1, 7, 33), (1001,)]


def _torch_dtype(code: int) -> torch.dtype:
    """By the proto's own name, not by the codec's table."""
    dtype = getattr(torch, pb.DType.Name(code).removeprefix("DTYPE_").lower())
    assert isinstance(dtype, torch.dtype)
    return dtype


def _random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    info = torch.iinfo(dtype)
    return torch.randint(max(info.min, -(2**31)), min(info.max, 2**31), shape, generator=generator).to(dtype)


def _through_frames(encoded: EncodedTensor) -> EncodedTensor:
    limits = Limits(chunk_bytes=100)
    assembler = Assembler(limits, "x")
    for sequence, frame in enumerate(to_frames(pb.UplinkFrame, pb.Forward(), {"t": encoded}, limits)):
        frame.sequence = sequence
        message = assembler.feed(pb.UplinkFrame.FromString(frame.SerializeToString()))
    assert message is not None
    return message.tensors["t"]


def test_every_codec_of_the_proto_is_implemented() -> None:
    assert sorted(supported_codecs()) == sorted(CODECS)
    for code in CODECS:
        assert round_trip(torch.ones(3), code).tolist() == [1.0, 1.0, 1.0]
    assert {codec_code(name) for name in typing.get_args(CodecName)} == set(CODECS)


def test_an_unknown_codec_name() -> None:
    with pytest.raises(ConfigError, match="`codec` is 'gzip'; expected one of none, float16, bfloat16, int8"):
        codec_code("gzip")


@pytest.mark.parametrize("code", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_dtype_of_the_proto_survives_bit_for_bit(code: int, shape: tuple[int, ...]) -> None:
    tensor = _random(shape, _torch_dtype(code))
    encoded = encode(tensor)
    assert (encoded.dtype, encoded.shape, encoded.codec) == (code, shape, pb.CODEC_NONE)
    got = decode(_through_frames(encoded))
    assert got.dtype == tensor.dtype and got.shape == tensor.shape
    assert torch.equal(got, tensor)


def test_special_values_survive_without_a_codec() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    assert decode(encode(tensor)).view(torch.int32).tolist() == tensor.view(torch.int32).tolist()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_payload_length_is_what_the_header_implies(codec: int, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        encoded = encode(_random(shape, dtype), codec)
        assert len(encoded.payload) == payload_bytes(encoded.dtype, shape, codec)
        got = decode(_through_frames(encoded))
        assert got.dtype == dtype and got.shape == shape


@pytest.mark.parametrize("codec", CODECS)
def test_memory_layout_does_not_matter(codec: int) -> None:
    base = _random((6, 8, 10), torch.float32)
    for view in (base.transpose(0, 2), base[::2, 1:, ::3], base[0].expand(4, 8, 10), base.permute(2, 0, 1)[1:]):
        assert not view.is_contiguous()
        assert torch.equal(round_trip(view, codec), round_trip(view.contiguous().clone(), codec))


def test_a_tensor_with_a_gradient_history() -> None:
    tensor = torch.ones(3, requires_grad=True) * 2
    assert torch.equal(decode(encode(tensor)), torch.full((3,), 2.0))


@pytest.mark.parametrize("code", [c for c in DTYPES if not _torch_dtype(c).is_floating_point])
@pytest.mark.parametrize("codec", CODECS)
def test_integers_never_lose_anything(code: int, codec: int) -> None:
    tensor = _random((5, 7), _torch_dtype(code))
    assert encode(tensor, codec).codec == pb.CODEC_NONE
    assert torch.equal(round_trip(tensor, codec), tensor)


@pytest.mark.parametrize(("codec", "half"), [(pb.CODEC_FLOAT16, torch.float16), (pb.CODEC_BFLOAT16, torch.bfloat16)])
def test_half_precision_is_one_rounding(codec: int, half: torch.dtype) -> None:
    tensor = _random((64, 33), torch.float32) * 100
    assert torch.equal(round_trip(tensor, codec), tensor.to(half).to(torch.float32))


def _plain_int8(tensor: Tensor) -> tuple[bytes, Tensor]:
    """The codec's formula in whole-tensor operations: payload, and what comes of it."""
    values = tensor.reshape(-1).to(torch.float32)
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % INT8_BLOCK)).view(-1, INT8_BLOCK)
    scales = blocks.abs().amax(dim=1) / 127.0
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
    levels = (blocks / divisors[:, None]).round().clamp(-127, 127).to(torch.int8)
    decoded = (levels.to(torch.float32) * scales[:, None]).view(-1)[: values.numel()].to(tensor.dtype)
    payload = levels.view(-1)[: values.numel()].numpy().tobytes() + scales.numpy().tobytes()
    return payload, decoded.view(tensor.shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_values", [0, 1, 127, 128, 129, 262_143, 262_144, 262_145, 300_001])
def test_int8_is_its_formula_bit_for_bit(dtype: torch.dtype, num_values: int) -> None:
    """In slabs as in one piece, at the edge of a slab and of a block."""
    tensor = _random((num_values,), dtype, seed=num_values)
    tensor[num_values // 2 : num_values // 2 + 300] = -0.0
    tensor[num_values // 3 : num_values // 3 + 200] *= 1e-5
    payload, decoded = _plain_int8(tensor)
    encoded = encode(tensor, pb.CODEC_INT8_BLOCKWISE)
    assert bytes(encoded.payload) == payload
    assert torch.equal(decode(_through_frames(encoded)), decoded)


def test_int8_is_its_formula_where_scales_are_subnormal() -> None:
    tensor = _random((4096,), torch.float32) * torch.logspace(-45, -36, 4096, dtype=torch.float64).to(torch.float32)
    payload, decoded = _plain_int8(tensor)
    encoded = encode(tensor, pb.CODEC_INT8_BLOCKWISE)
    assert bytes(encoded.payload) == payload
    assert torch.equal(decode(encoded), decoded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("num_values", [1, 127, 128, 129, 1000, 4096])
def test_int8_error_is_at_most_half_a_level_of_its_block(dtype: torch.dtype, scale: float, num_values: int) -> None:
    tensor = _random((num_values,), dtype, seed=num_values) * scale
    got = round_trip(tensor, pb.CODEC_INT8_BLOCKWISE)
    for start in range(0, num_values, INT8_BLOCK):
        block = slice(start, start + INT8_BLOCK)
        bound = tensor[block].abs().max() / 254
        # The scale and the product are float32: a few units in the last place of the largest value on top.
        assert (got[block] - tensor[block]).abs().max() <= bound * (1 + 254 * 4 * 2**-24)


def test_int8_blocks_do_not_disturb_each_other() -> None:
    tensor = torch.cat([torch.full((INT8_BLOCK,), 1e6), torch.linspace(-1e-6, 1e-6, INT8_BLOCK), torch.zeros(5)])
    got = round_trip(tensor, pb.CODEC_INT8_BLOCKWISE)
    assert (got[INT8_BLOCK : 2 * INT8_BLOCK] - tensor[INT8_BLOCK : 2 * INT8_BLOCK]).abs().max() <= 1e-6 / 254 * 1.001
    assert torch.equal(got[-5:], torch.zeros(5))  # an all-zero block stays zero


def test_int8_at_the_ends_of_float32() -> None:
    for extreme in (3.4e38, 1e-45, 1e-40, torch.finfo(torch.float32).tiny):
        tensor = torch.tensor([extreme, -extreme, 0.0])
        got = round_trip(tensor, pb.CODEC_INT8_BLOCKWISE)
        assert torch.isfinite(got).all()
        assert (got - tensor).abs().max() <= max(extreme / 254, 127 * 1e-45)


def test_int8_is_idempotent_and_small() -> None:
    tensor = _random((64, 768), torch.float32)
    encoded = encode(tensor, pb.CODEC_INT8_BLOCKWISE)
    assert len(encoded.payload) <= 0.26 * 4 * tensor.numel()
    once = decode(_through_frames(encoded))
    assert (round_trip(once, pb.CODEC_INT8_BLOCKWISE) - once).abs().max() <= once.abs().max() * 2**-22


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        *[(codec, value) for codec in CODECS[1:] for value in (float("nan"), float("inf"), -float("inf"))],
        (pb.CODEC_FLOAT16, 65_520.0),
        (pb.CODEC_FLOAT16, -1e6),
        (pb.CODEC_BFLOAT16, torch.finfo(torch.float32).max),
        (pb.CODEC_INT8_BLOCKWISE, torch.finfo(torch.float32).max),
    ],
)
def test_a_lossy_codec_refuses_what_it_cannot_hold(codec: int, value: float) -> None:
    tensor = torch.ones(300)
    tensor[200] = value
    with pytest.raises(NonFiniteError, match=f"too large for {pb.Codec.Name(codec)}"):  # type: ignore[arg-type]
        encode(tensor, codec)


def test_float16_holds_its_largest_value() -> None:
    assert round_trip(torch.tensor([65_504.0]), pb.CODEC_FLOAT16).item() == 65_504.0


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16])
def test_a_dtype_without_a_code(dtype: torch.dtype) -> None:
    with pytest.raises(TensorError, match=f"Tensor dtype is {dtype}; expected one of"):
        encode(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("codec", [0, 9])
def test_an_unknown_codec_code(codec: int) -> None:
    with pytest.raises(TensorError, match=f"Codec code is {codec}; expected one of"):
        encode(torch.zeros(2), codec)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_payload_of_another_length(length: int) -> None:
    encoded = EncodedTensor(pb.DTYPE_FLOAT32, (4,), pb.CODEC_NONE, bytes(length))
    message = f"Tensor payload has {length} bytes; expected 16 for shape (4,), DTYPE_FLOAT32 and CODEC_NONE"
    with pytest.raises(TensorError, match=re.escape(message)):
        decode(encoded)


@pytest.mark.parametrize("payload", [bytes(8), bytearray(8), memoryview(bytes(8))])
def test_what_is_decoded_can_be_written_to(payload: bytes) -> None:
    tensor = decode(EncodedTensor(pb.DTYPE_FLOAT32, (2,), pb.CODEC_NONE, payload))
    tensor += 1
    assert tensor.tolist() == [1.0, 1.0]
