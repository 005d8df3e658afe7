"""From a tensor on the compute device to a message on its way, without holding up what is computed next.

On a CPU a tensor is encoded where it was computed: whatever would do it beside takes the same cores. On a GPU a thread of
its own does it: it waits for the tensor on a CUDA stream beside that of the computation, copies it to pinned memory,
encodes and sends it, while the next micro-batch is on the GPU already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.wire.codec import encode
from flwr_splitkd.wire.feedback import ErrorFeedback
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Outbox", "Parcel"]


class Parcel(NamedTuple):
    """A tensor that is to be sent.

    Attributes
    ----------
    codec
        A ``pb.Codec``.
    kind
        Of tensors that follow one another, for error feedback; empty for none.
    """

    tensor: Tensor
    codec: int = pb.CODEC_NONE
    kind: str = ""


Timer = Callable[[], AbstractContextManager[None]]


class Outbox:
    """Encodes and sends messages in the order in which they are given.

    Leaving the ``with`` block waits for what is under way.

    Parameters
    ----------
    link
        Takes the messages. Nothing else may send on it before `flush`.
    device
        Where the tensors are.
    feedback
        Encodes the tensors that name their kind; None for no error feedback.
    """

    def __init__(self, link: Link, device: torch.device, feedback: ErrorFeedback | None = None) -> None:
        self._link, self._device, self._feedback = link, device, feedback
        self._thread = ThreadPoolExecutor(1, "outbox") if device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._under_way: list[Future[int]] = []
        self._payload_bytes = 0

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self.flush()

    @property
    def payload_bytes(self) -> int:
        """Encoded bytes of all tensors that `flush` has waited for."""
        return self._payload_bytes

    def send(self, body: Any, parcels: Mapping[str, Parcel], timer: Timer = nullcontext) -> None:
        """Encode the tensors within `timer` and send the message; on a GPU, soon after the call.

        Raises
        ------
        SplitKDError
            Why this message, or one before it, cannot be sent.
        """
        if self._thread is None:
            with timer():
                tensors = {name: self._encode(parcel) for name, parcel in parcels.items()}
            self._link.send(body, tensors)
            self._payload_bytes += _num_bytes(tensors)
            return
        while self._under_way and self._under_way[0].done():
            self._payload_bytes += self._under_way.pop(0).result()
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(torch.cuda.current_stream(self._device))
        self._under_way.append(self._thread.submit(self._copy_and_send, body, dict(parcels), timer, ready))

    def flush(self) -> None:
        """Wait until everything is with the link.

        Raises
        ------
        SplitKDError
            Why a message cannot be sent.
        """
        while self._under_way:
            self._payload_bytes += self._under_way.pop(0).result()

    def _copy_and_send(self, body: Any, parcels: dict[str, Parcel], timer: Timer, ready: torch.cuda.Event) -> int:
        try:
            with timer(), torch.cuda.stream(self._stream):
                ready.wait(self._stream)
                tensors = {name: self._encode(parcel) for name, parcel in parcels.items()}
            self._link.send(body, tensors)
        except SplitKDError as error:
            self._link.give_up(error)  # the computing thread may wait for an answer that will not come
            raise
        return _num_bytes(tensors)

    def _encode(self, parcel: Parcel) -> EncodedTensor:
        tensor = parcel.tensor.detach()
        if self._stream is not None and tensor.device.type == "cuda":
            tensor.record_stream(self._stream)  # its memory is not given to another before the copy
            if parcel.codec == pb.CODEC_NONE:  # otherwise it is encoded where it is, and less is to be copied
                tensor = self._to_host(tensor, self._stream)
        if parcel.kind and self._feedback is not None:
            return self._feedback.encode(tensor, parcel.codec, parcel.kind)
        return encode(tensor, parcel.codec)

    @staticmethod
    def _to_host(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        stream.synchronize()
        return pinned


def _num_bytes(tensors: Mapping[str, EncodedTensor]) -> int:
    return sum(len(tensor.payload) for tensor in tensors.values())
