"""What the edge has asked of the cloud and may have to ask again.

Nothing here is safe to use from two threads at once; `CloudLink` has the lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flwr_splitkd.errors import ProtocolError
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Journal", "Request"]


@dataclass(slots=True, eq=False)
class Request:
    """A message with the promise of its answer; `lasting` ones are sent again until they are durable.

    `answered` tells of the stream that is open now: a device that was started again has the same step answered twice.
    """

    body: Any
    tensors: Mapping[str, EncodedTensor]
    future: Future[WireMessage]
    lasting: bool
    answered: bool = False


class Journal:
    """Requests in the order in which they were sent, until their answer is there and what they did is durable."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def steps(self) -> list[int]:
        """Numbers of the optimiser steps that are not durable yet."""
        return [one.body.step for one in self._requests if isinstance(one.body, pb.PeftStep)]

    @property
    def waiting(self) -> list[Future[WireMessage]]:
        """Promises that nobody has kept yet."""
        return [one.future for one in self._requests if not one.future.done()]

    def add(self, request: Request) -> None:
        """Append a request."""
        self._requests.append(request)

    def clear(self) -> None:
        """Forget everything."""
        self._requests = []

    def answered_by(self, message: WireMessage, *, failed: bool) -> Request:
        """Take the request that a message answers down as answered, and drop what need not be sent again because of it.

        Raises
        ------
        ProtocolError
            If there is none.
        """
        request = next((one for one in self._requests if not one.answered and _answers(one.body, message)), None)
        if request is None:
            raise ProtocolError(f"The cloud answered {message.kind} to what nobody asked.")
        request.answered = True
        if isinstance(request.body, pb.EndRound):
            self._forget_round(request)
        elif failed or not request.lasting:
            self._requests.remove(request)
        return request

    def forget_durable(self, next_step: int) -> None:
        """Drop the steps before `next_step` and what they were taken over.

        A commit that another edge has asked for may be told before the answer to a step that is in it.
        """
        steps = [
            one
            for one in self._requests
            if isinstance(one.body, pb.PeftStep) and one.body.step < next_step and one.future.done()
        ]
        for step in steps:
            keys = {(item.device, item.step) for item in step.body.contributions}
            position = self._requests.index(step)
            before = [one for one in self._requests[:position] if not _names(one.body, keys)]
            self._requests = before + self._requests[position + 1 :]

    def answer_lost(self, opened: pb.TaskOpened) -> None:
        """Keep a promise late: a step may have become durable, and the cloud's process ended before the answer left."""
        if not opened.HasField("last") or opened.last.step >= opened.next_step:
            return
        for one in self._requests:
            if isinstance(one.body, pb.PeftStep) and one.body.step == opened.last.step and not one.future.done():
                one.future.set_result(WireMessage(opened.last))

    def _forget_round(self, end: Request) -> None:
        """Drop what came before a round's end: its steps are durable, and the cloud has dropped other gradients too."""
        position = self._requests.index(end)
        before = [one for one in self._requests[:position] if not one.future.done()]
        self._requests = before + self._requests[position + 1 :]


def _names(body: Any, contributions: set[tuple[int, int]]) -> bool:
    """Whether this is the intermediate data of one of these contributions."""
    training = isinstance(body, pb.Intermediate) and body.mode == pb.MODE_TRAIN
    return training and (body.device, body.step) in contributions


def _answers(body: Any, message: WireMessage) -> bool:
    """Whether a message answers a request; each kind of request is answered in order."""
    answer = message.body
    if isinstance(body, pb.Intermediate):
        same = message.kind == "IntermediateGradient" and (body.device, body.step) == (answer.device, answer.step)
        return same and body.mode == answer.mode
    if isinstance(body, pb.PeftStep):
        return message.kind == "PeftStepped" and body.step == answer.step
    if isinstance(body, pb.EndRound):
        return message.kind == "Committed" and body.server_round == answer.server_round
    return isinstance(body, pb.FetchState) and message.kind == "TaskState"
