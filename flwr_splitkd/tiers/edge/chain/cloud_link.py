"""The edge's side of its stream to the cloud: many devices ask, one stream carries, nothing is lost with the cloud.

What trains the cloud's module is kept until the cloud has made it durable. When the cloud's process dies, the link dials
until it is back, opens the task where the cloud's disk has it, and sends again what came since, in the same order: the
module ends as if nothing had happened.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn

import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, HandshakeError, PeerLostError, ProtocolError, SplitKDError, TensorError
from flwr_splitkd.tiers.edge.chain.access import CloudAccess
from flwr_splitkd.tiers.edge.chain.journal import Journal, Request
from flwr_splitkd.tiers.units import decode_all, decode_one, encode_all, require_finite
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import codec_code, decode, encode, supported_codecs
from flwr_splitkd.wire.failures import error_from
from flwr_splitkd.wire.framing import Limits, WireMessage
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["CloudAccess", "CloudAnswer", "CloudLink", "Stepped"]

_log = logging.getLogger(__name__)

_ANSWERS = "IntermediateGradient|PeftStepped|Committed|TaskState"
_SILENCE_S = 30 * 86_400.0
_PAUSE_S = 0.5
_END_S = 10.0
_REMEDY = "The iteration is undone; check the cloud's log, lower the learning rate of its task, or clip its gradients."


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAnswer:
    """What the cloud says to one device's intermediate data.

    Parameters
    ----------
    gradient
        Of the device's loss by the intermediate data, when training.
    tokens
        What the LLM generated, if it was asked to.
    loss
        Mean over the answer's tokens when training, else their sum.
    reference_loss
        Of the LLM without the encoder, if asked for.
    num_tokens
        Labels that count.
    compute_s
        Seconds that the cloud computed.
    """

    gradient: Tensor | None
    tokens: Tensor | None
    loss: float
    reference_loss: float | None
    num_tokens: int
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """An optimiser step of the cloud's module."""

    step: int
    learning_rate: float
    grad_norm: float


class CloudLink:
    """One task's stream to the cloud, for many threads.

    Parameters
    ----------
    access
        Where the cloud is, and who asks.
    encoder_width
        Width of the intermediate data in values.
    limits
        Bounds on what the cloud may send.

    Notes
    -----
    Two edges that train one task at once are sent again each its own messages; their order among each other is then not that
    of before.
    """

    def __init__(self, access: CloudAccess, *, encoder_width: int, limits: Limits | None = None) -> None:
        self.access = access
        self.opened = pb.TaskOpened()
        self.num_reopened = 0
        self._width, self._limits = encoder_width, limits
        self._changed = threading.Condition()  # guards what follows
        self._link: Link | None = None
        self._journal = Journal()
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._next_step = 0
        self._id = secrets.token_hex(8)
        self._lost_s: float | None = None  # since when the cloud is away
        self._bytes = (0, 0)
        self._thread: threading.Thread | None = None

    def open(
        self, start: pb.TaskStart, *, run: str = "", server_round: int = 0, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Reach the cloud and open the task there.

        Parameters
        ----------
        start
            Where the module begins; with ``TASK_START_ROUND`` at the end of `server_round` of `run`, with
            ``TASK_START_GIVEN`` with the weights in `state`.

        Raises
        ------
        PeerLostError
            If the cloud cannot be reached.
        HandshakeError
            If it refuses this edge.
        SplitKDError
            If it has no such state.
        """
        opening = pb.OpenTask(start=start, run=run, server_round=server_round)
        first: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opening, encode_all(state or {}), first), name="splitkd-cloud-link", daemon=True
        )
        self._thread.start()
        first.result()

    # ---- what devices and the round ask for

    def differentiate(
        self,
        device: int,
        step: int,
        hidden: Tensor,
        mask: Tensor,
        labels: Tensor,
        reference: Mapping[str, EncodedTensor] | None = None,
    ) -> CloudAnswer:
        """Have the loss of one device's intermediate data differentiated; wait for the answer.

        Parameters
        ----------
        device, step
            Name the gradient of the module, for `step`.
        hidden
            The encoder's output, [batch, positions, width].
        mask
            Which positions count, [batch, positions].
        labels
            Token ids of the answers, [batch, tokens].
        reference
            Tokens of context and question as encoded tensors, if the cloud wants them.

        Raises
        ------
        SplitKDError
            If the cloud is lost for good, or cannot do it.
        """
        tensors = {
            "hidden": encode(hidden, codec_code(self.access.codec)),
            **encode_all({"mask": mask, "labels": labels}),
        }
        tensors.update({f"reference/{name}": tensor for name, tensor in (reference or {}).items()})
        body = pb.Intermediate(mode=pb.MODE_TRAIN, device=device, step=step)
        message = self._ask(body, tensors, lasting=True)
        gradient = decode_one(message, "gradient")
        if gradient.shape != hidden.shape:
            raise TensorError(
                f"The cloud's gradient has shape {tuple(gradient.shape)}; expected {tuple(hidden.shape)}. Install the same "
                "flwr_splitkd on edge and cloud."
            )
        require_finite(gradient, f"The cloud's gradient of step {step} of device {device}", _REMEDY)
        return _answer(message, gradient=gradient.to(hidden.device))

    def evaluate(
        self, device: int, step: int, hidden: Tensor, mask: Tensor, labels: Tensor | None, max_new_tokens: int
    ) -> CloudAnswer:
        """Have the loss computed, if there are labels, and an answer generated, if `max_new_tokens` is above 0."""
        plain = {"mask": mask} if labels is None else {"mask": mask, "labels": labels}
        tensors = {"hidden": encode(hidden, codec_code(self.access.codec)), **encode_all(plain)}
        body = pb.Intermediate(mode=pb.MODE_EVALUATE, device=device, step=step, max_new_tokens=max_new_tokens)
        return _answer(self._ask(body, tensors))

    def step(self, contributions: Sequence[tuple[int, int]]) -> Stepped:
        """Take one optimiser step of the module over the sum of these gradients, named by device and step."""
        body = pb.PeftStep(
            step=self._next_step, contributions=[pb.Contribution(device=d, step=s) for d, s in contributions]
        )
        self._next_step += 1
        answer: pb.PeftStepped = self._ask(body, {}, lasting=True).body
        return Stepped(step=answer.step, learning_rate=answer.learning_rate, grad_norm=answer.grad_norm)

    def end_round(self, run: str, server_round: int) -> None:
        """Have the module's state kept as that of a round's end; gradients that no step has named are forgotten.

        Raises
        ------
        ConfigError
            If the run has no name, or the round is below 1.
        SplitKDError
            If the cloud is lost for good, or cannot store it.
        """
        if not run or server_round < 1:
            raise ConfigError(f"Round {server_round} of run {run!r} ends; expected a name, and a round of at least 1.")
        self._ask(pb.EndRound(run=run, server_round=server_round), {})

    def weights(self) -> dict[str, Tensor]:
        """The module's weights as they are now, by name."""
        tensors = decode_all(self._ask(pb.FetchState(), {}).tensors)
        return {name.removeprefix("weight/"): tensor for name, tensor in tensors.items()}

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes up and down so far."""
        with self._changed:
            link = self._link
            return (self._bytes[0] + link.bytes_sent, self._bytes[1] + link.bytes_received) if link else self._bytes

    def close(self) -> None:
        """End the stream; who still waits for an answer gets an error."""
        with self._changed:
            self._closing.set()
            if self._link is not None:
                self._link.close()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_END_S)
        self._fail(PeerLostError("The stream to the cloud is closed."))  # should the thread still be dialling

    # ---- requests and their answers

    def _ask(self, body: Any, tensors: Mapping[str, EncodedTensor], *, lasting: bool = False) -> WireMessage:
        request = Request(body, tensors, Future(), lasting)
        with self._changed:
            if self._error is not None or self._closing.is_set():
                raise self._error or PeerLostError("The stream to the cloud is closed.")
            self._journal.add(request)
            if self._link is not None:
                try:
                    self._link.send(body, tensors)
                except SplitKDError as error:  # it is sent again when the cloud is back
                    _log.debug("Sent again later: %s", error)
        return request.future.result()

    def _answered(self, message: WireMessage) -> None:
        with self._changed:
            if message.kind == "Committed":
                self._journal.forget_durable(message.body.next_step)
                if not message.body.server_round:
                    return
            failed = isinstance(message.body, pb.IntermediateGradient) and message.body.HasField("failure")
            request = self._journal.answered_by(message, failed=failed)
            if request.future.done():  # it is, when it was sent again
                return
            if failed:
                request.future.set_exception(error_from(message.body.failure, "The cloud"))
            else:
                request.future.set_result(message)

    # ---- the thread

    def _run(self, opening: pb.OpenTask, state: Mapping[str, EncodedTensor], first: Future[None]) -> None:
        try:
            while not self._closing.is_set():
                try:
                    self._serve(opening, state, first)
                except HandshakeError:
                    raise
                except PeerLostError as error:
                    if self._closing.is_set():
                        break
                    now_s = time.monotonic()
                    self._lost_s = now_s if self._lost_s is None else self._lost_s
                    if not first.done() or now_s - self._lost_s > self.access.patience_s:
                        raise
                    _log.warning("%s; dialling again for up to %g s", error, self.access.patience_s)
                    self._closing.wait(_PAUSE_S)
                    opening, state = pb.OpenTask(start=pb.TASK_START_CONTINUE), {}
            self._fail(PeerLostError("The stream to the cloud is closed."), first)
        except SplitKDError as error:
            self._fail(error, first)
        except Exception as error:  # nobody else would hear of it, and every device would wait
            self._fail(SplitKDError(f"The stream to the cloud failed: {type(error).__name__}: {error}"), first)

    def _serve(self, opening: pb.OpenTask, state: Mapping[str, EncodedTensor], first: Future[None]) -> NoReturn:
        access = self.access
        hello = pb.CloudHello(
            protocol_version=PROTOCOL_VERSION,
            session_id=secrets.token_hex(8),
            link_id=self._id,
            edge=access.edge,
            token=access.token,
            task=access.task,
            encoder_width=self._width,
            codecs=supported_codecs(),
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
            reads_only=access.reads_only,
        )
        with connect(
            access.address,
            hello,
            root_certificate=access.root_certificate,
            timeout_s=access.connect_timeout_s,
            limits=self._limits,
        ) as link:
            link.send(opening, state)
            opened: pb.TaskOpened = link.receive("TaskOpened", access.patience_s).body
            try:
                self._attach(link, opened, again=first.done())
                if not first.done():
                    first.set_result(None)
                while True:
                    self._answered(link.receive(_ANSWERS, _SILENCE_S))
            finally:
                with self._changed:
                    self._bytes = (self._bytes[0] + link.bytes_sent, self._bytes[1] + link.bytes_received)
                    self._link = None

    def _attach(self, link: Link, opened: pb.TaskOpened, *, again: bool) -> None:
        """Use this link from now on; send what the cloud lacks."""
        with self._changed:
            if again:
                self.num_reopened += 1
                _log.warning("The cloud is back at step %d of %d", opened.next_step, self._next_step)
                self._journal.answer_lost(opened)
                self._journal.forget_durable(opened.next_step)
                self._check_complete(opened.next_step)
            else:
                self._next_step = opened.next_step
            self.opened, self._link, self._lost_s = opened, link, None
            for request in self._journal:
                request.answered = False
                link.send(request.body, request.tensors)

    def _check_complete(self, next_step: int) -> None:
        """Refuse to go on with a cloud whose state is another one than that which this edge knows."""
        if self.access.reads_only:  # whoever trains has gone on in the meantime
            return
        if next_step > self._next_step or self._journal.steps != list(range(next_step, self._next_step)):
            raise ProtocolError(
                f"The cloud came back at step {next_step} of task {self.access.task!r}; expected {self._next_step} or what "
                "it last committed. Its state was changed or lost; resume the run from its last round."
            )

    def _fail(self, error: SplitKDError, *first: Future[None]) -> None:
        with self._changed:
            self._error = self._error or error
            futures: tuple[Future[Any], ...] = (*first, *self._journal.waiting)
            self._journal.clear()
            for future in futures:
                if not future.done():
                    future.set_exception(error)


def _answer(message: WireMessage, gradient: Tensor | None = None) -> CloudAnswer:
    body: pb.IntermediateGradient = message.body
    return CloudAnswer(
        gradient=gradient,
        tokens=decode(message.tensors["tokens"]) if "tokens" in message.tensors else None,
        loss=body.loss,
        reference_loss=body.reference_loss if body.HasField("reference_loss") else None,
        num_tokens=body.num_tokens,
        compute_s=body.compute_s,
    )
