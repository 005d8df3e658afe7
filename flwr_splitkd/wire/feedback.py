"""Error feedback: what a lossy codec left out of one tensor is added to the next one of its kind."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flwr_splitkd.wire.codec import decode, dtype_code, encode, require_finite
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["ErrorFeedback"]


class ErrorFeedback:
    r"""Encode the tensors of one direction, each with the error of the one before it.

    For the k-th tensor :math:`x_k` of a kind and a codec :math:`C`, with :math:`e_0 = 0`:

    .. math:: m_k = C(x_k + e_k), \qquad e_{k+1} = x_k + e_k - m_k

    so that the sums of what was sent and of what was meant differ by one rounding, however many tensors there were:
    :math:`\sum_{j \le k} m_j = \sum_{j \le k} x_j - e_{k+1}`.

    Notes
    -----
    From Seide et al., "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs"
    (Interspeech 2014), section 3; that it makes up for any codec whose error is less than the tensor is shown by Karimireddy
    et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes" (ICML 2019), theorem II. Both are about
    gradients of *weights*, which are summed from step to step.

    Smashed data and the gradient at the cut are another matter: a value belongs to a position of the batch, and the next batch has
    another token there. Nothing sums the two, so the error is a disturbance of the next batch rather than a correction, and for
    smashed data of any size it is wrong in principle. `benchmarks/codec.py` measures what comes of it.

    Not for several threads at once. One object serves one direction of one turn, whose tensors are encoded once, whatever the
    connection: what is sent again is the payload of before, and its error is not counted twice. It holds as much memory
    as the last tensor of each kind takes in float32.
    """

    def __init__(self) -> None:
        self._residuals: dict[str, Tensor] = {}

    def encode(self, tensor: Tensor, codec: int, kind: str = "") -> EncodedTensor:
        """Encode as `flwr_splitkd.wire.codec.encode`, with the residual of the last tensor of this kind added first.

        The residual is dropped, not reshaped, when the shape, dtype or machine changes (such as a last, shorter batch), and when
        the codec loses nothing. A tensor that is refused leaves it as it was.

        Parameters
        ----------
        tensor
            What is meant, of any shape.
        codec
            A ``pb.Codec``.
        kind
            Which tensors follow one another, e.g. ``"gradient"``; micro-batches of one step are kinds of their own, since
            their positions are others.

        Raises
        ------
        NonFiniteError
            If the codec cannot hold a value, or its sum with the residual.
        TensorError
            If the tensor's dtype has no code on the wire.
        """
        if codec == pb.CODEC_NONE or not tensor.is_floating_point():
            self._residuals.pop(kind, None)
            return encode(tensor, codec)
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        meant = tensor.detach().to(dtype)
        residual = self._residuals.get(kind)
        if residual is not None and _alike(residual, meant):
            meant = meant + residual
        # In the tensor's own dtype, as the receiver gets it: that rounding is fed back too, and float16 may overflow.
        encoded = replace(encode(meant, codec), dtype=dtype_code(tensor.dtype))
        left_out = meant - decode(encoded).to(meant)
        require_finite(left_out, codec)
        self._residuals[kind] = left_out
        return encoded

    def residual(self, kind: str = "") -> Tensor | None:
        """What was left out of the last tensor of this kind, in its shape; None where nothing was."""
        return self._residuals.get(kind)

    def reset(self) -> None:
        """Forget all residuals, such as when a turn begins anew."""
        self._residuals.clear()


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
