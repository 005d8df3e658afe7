"""Error feedback: nothing is lost for good, and nothing is carried to where it does not belong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import NonFiniteError, TensorError
from flwr_splitkd.wire.codec import decode, encode, round_trip
from flwr_splitkd.wire.feedback import ErrorFeedback
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

LOSSY = [pb.CODEC_FLOAT16, pb.CODEC_BFLOAT16, pb.CODEC_INT8_BLOCKWISE]
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def _tensors(count: int, shape: tuple[int, ...] = (3, 5, 130), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def _bytes(encoded: EncodedTensor) -> bytes:
    return bytes(encoded.payload)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_differ_by_the_last_residual_alone(codec: int, dtype: torch.dtype) -> None:
    feedback, tensors = ErrorFeedback(), _tensors(50, dtype=dtype)
    received = [decode(feedback.encode(tensor, codec)) for tensor in tensors]
    assert {one.dtype for one in received} == {dtype} and {one.shape for one in received} == {tensors[0].shape}
    meant = torch.stack(tensors).to(torch.float64).sum(0)
    got = torch.stack(received).to(torch.float64).sum(0)
    residual = feedback.residual()
    assert residual is not None
    assert torch.allclose(got + residual, meant, rtol=0, atol=1e-4)
    without = torch.stack([round_trip(tensor, codec) for tensor in tensors]).to(torch.float64).sum(0)
    if codec == pb.CODEC_INT8_BLOCKWISE or dtype == torch.float32:  # else the codec loses next to nothing
        assert (got - meant).norm() < 0.5 * (without - meant).norm()


def test_a_value_too_small_for_the_codec_arrives_in_the_end() -> None:
    tensor = torch.full((128,), 1e-3)
    tensor[0] = 1.0  # a level is 1 / 127, so the others are rounded to zero
    feedback = ErrorFeedback()
    received = torch.stack([decode(feedback.encode(tensor, pb.CODEC_INT8_BLOCKWISE)) for _ in range(100)])
    assert round_trip(tensor, pb.CODEC_INT8_BLOCKWISE)[1] == 0
    assert received[:, 1].sum().item() == pytest.approx(0.1, abs=1 / 127)


@pytest.mark.parametrize("codec", LOSSY)
def test_the_first_tensor_is_encoded_as_ever(codec: int) -> None:
    (tensor,) = _tensors(1)
    assert _bytes(ErrorFeedback().encode(tensor, codec)) == _bytes(encode(tensor, codec))


def test_kinds_do_not_mix() -> None:
    feedback, (first, second) = ErrorFeedback(), _tensors(2)
    feedback.encode(first, pb.CODEC_INT8_BLOCKWISE, "0")
    got = feedback.encode(second, pb.CODEC_INT8_BLOCKWISE, "1")
    assert _bytes(got) == _bytes(encode(second, pb.CODEC_INT8_BLOCKWISE))


@pytest.mark.parametrize("between", ["another shape", "another dtype", "no codec", "reset"])
def test_the_residual_is_dropped(between: str) -> None:
    feedback, (first, second) = ErrorFeedback(), _tensors(2)
    feedback.encode(first, pb.CODEC_INT8_BLOCKWISE)
    if between == "another shape":
        second = second[:2]
    elif between == "another dtype":
        second = second.double()
    elif between == "no codec":
        assert _bytes(feedback.encode(first, pb.CODEC_NONE)) == _bytes(encode(first))
    else:
        feedback.reset()
    got = feedback.encode(second, pb.CODEC_INT8_BLOCKWISE)
    assert _bytes(got) == _bytes(encode(second, pb.CODEC_INT8_BLOCKWISE))


def test_it_is_used_otherwise() -> None:
    """What the tests above lean on."""
    feedback, (first, second) = ErrorFeedback(), _tensors(2)
    feedback.encode(first, pb.CODEC_INT8_BLOCKWISE)
    got = feedback.encode(second, pb.CODEC_INT8_BLOCKWISE)
    assert _bytes(got) != _bytes(encode(second, pb.CODEC_INT8_BLOCKWISE))


def test_the_callers_tensor_stays_as_it_is() -> None:
    feedback, (first, second) = ErrorFeedback(), _tensors(2)
    for tensor in (first, second):
        before = tensor.clone()
        feedback.encode(tensor, pb.CODEC_INT8_BLOCKWISE)
        assert torch.equal(tensor, before)


def test_a_tensor_that_is_refused_leaves_the_residual() -> None:
    feedback, (first, second) = ErrorFeedback(), _tensors(2)
    feedback.encode(first, pb.CODEC_INT8_BLOCKWISE)
    before = feedback.residual()
    second[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        feedback.encode(second, pb.CODEC_INT8_BLOCKWISE)
    assert feedback.residual() is before


def test_a_sum_beyond_float16_is_refused() -> None:
    """The tensor alone fits, and the receiver would make infinity of it and the residual."""
    feedback, first = ErrorFeedback(), torch.full((128,), 100.0, dtype=torch.float16)
    first[0] = 60_000
    feedback.encode(first, pb.CODEC_INT8_BLOCKWISE)  # the others are rounded to 0
    with pytest.raises(NonFiniteError, match="too large for CODEC_INT8_BLOCKWISE"):
        feedback.encode(torch.full((128,), 65_504.0, dtype=torch.float16), pb.CODEC_INT8_BLOCKWISE)


def test_integers_and_unknown_codecs() -> None:
    feedback, ids = ErrorFeedback(), torch.arange(9)
    assert torch.equal(decode(feedback.encode(ids, pb.CODEC_INT8_BLOCKWISE)), ids)
    with pytest.raises(TensorError, match="Codec code is 9"):
        feedback.encode(torch.ones(3), 9)


@pytest.mark.parametrize("shape", [(), (0,), (1, 129)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    feedback = ErrorFeedback()
    for tensor in _tensors(3, shape):
        assert decode(feedback.encode(tensor, pb.CODEC_INT8_BLOCKWISE)).shape == shape
