"""SCCTClient: what a ClientApp's handlers call in a run of SCCT."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flwr_splitkd import records
from flwr_splitkd.clients.enrolment import device_name
from flwr_splitkd.models import add_adapters, build_skeleton, fingerprint, inner_model, peft_from_json
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.split import Layout, find_layout
from flwr_splitkd.store import FolderLock, encoder_folder, forget_old_runs
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.device.chain import OwnEncoder, RoundReport, Score, run_round
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.threads import compute_threads, default_threads
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["SCCTClient"]

_log = logging.getLogger(__name__)

_TRAIN, _EVALUATE = "train-", "eval-"
_OTHER_RUNS = 2
"""Runs besides the present one whose encoders a device keeps, for those that are resumed."""
# A handler whose edge is gone gives up after a while; another one may have been called in the meantime.
_LOCK_PATIENCE_S = 30.0


class SCCTClient:
    """Takes part in a device's rounds: keep an encoder, run its first blocks beside the data, reply with the metrics.

    Parameters
    ----------
    slm
        Builds the encoder, as on the edge. Its structure is built without memory in every round; its first weights are built
        once, when this device keeps none yet.
    data
        Batches of this device: a `DataLoader` or a list of mappings with the encoder's inputs, ``labels`` (token ids of the
        answers by the LLM's tokenizer, -100 where there is none) and, for the reference loss,
        ``reference_input_ids`` and ``reference_attention_mask``. Texts do not leave the device; labels do.
    score
        Rates the answers of an evaluation: gets the generated token ids of each sample and the batch, returns means.
    encoder_folder
        Where the encoder and its backup lie. When not given, ``encoders/<run>/<encoder>/<device name>`` under
        ``$FLWR_SPLITKD_CACHE`` or ``~/.cache/flwr_splitkd``: every run begins with a new encoder, and those of the newest three
        are kept. A folder of your own goes on from run to run.
    leave_when
        Asked before each step with its number in the round; a reason, such as a low battery, makes the device leave the round
        with its whole encoder.
    compute_device, num_threads, connect_timeout_s, begin_timeout_s
        As in `SplitKDClient`.
    step_timeout_s
        Seconds that an answer may take; the other devices of the iteration are waited for too.

    Raises
    ------
    DataError
        If `data` is empty, or has no length.
    """

    def __init__(
        self,
        *,
        slm: Callable[[], nn.Module],
        data: Iterable[Any],
        score: Score | None = None,
        encoder_folder: str | Path | None = None,
        leave_when: Callable[[int], str | None] | None = None,
        compute_device: str | None = None,
        num_threads: int | None = None,
        connect_timeout_s: float = 20.0,
        begin_timeout_s: float = 3600.0,
        step_timeout_s: float = 3600.0,
    ) -> None:
        self._slm, self._data, self._score, self._leave_when = slm, DeviceData(data), score, leave_when
        self._encoder_folder = Path(encoder_folder) if encoder_folder else None
        self._compute_device = torch.device(compute_device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._num_threads = num_threads
        self._connect_timeout_s, self._begin_timeout_s = connect_timeout_s, begin_timeout_s
        self._step_timeout_s = step_timeout_s

    def train(self, msg: Message, context: Context) -> Message:
        """Answer a train message: take part in one round.

        Raises
        ------
        SplitKDError
            Why it came to nothing; Flower reports it to the strategy.
        """
        return self._reply(msg, self._take_part(msg, context, training=True), _TRAIN)

    def evaluate(self, msg: Message, context: Context) -> Message:
        """Answer an evaluate message: send `data` forward through the chain, and rate the answers; nothing is changed.

        Raises
        ------
        SplitKDError
            Why it came to nothing; Flower reports it to the strategy.
        """
        return self._reply(msg, self._take_part(msg, context, training=False), _EVALUATE)

    def _take_part(self, msg: Message, context: Context, *, training: bool) -> RoundReport:
        ticket = TurnTicket.from_content(msg.content)
        peft = peft_from_json(ticket.peft)
        skeleton = inner_model(build_skeleton(self._slm, peft))
        layout = find_layout(skeleton)
        student = fingerprint_to_wire(fingerprint(skeleton, layout))
        name = device_name(context)
        folder = self._encoder_folder or encoder_folder(name, student.digest, ticket.run)
        if self._encoder_folder is None:
            forget_old_runs(ticket.run, _OTHER_RUNS)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, _LOCK_PATIENCE_S)
        try:
            own = OwnEncoder(
                folder, skeleton, layout, self._slm if peft is None else partial(self._with_adapters, peft, name)
            )
            # An evaluation follows the round of its number.
            if own.begin(ticket.run, ticket.server_round + (not training)):
                _log.warning("Round %d takes place again; this device goes back to the one before", ticket.server_round)
            return self._serve(ticket, context, skeleton, layout, own)
        finally:
            lock.release()

    def _with_adapters(self, peft: PeftConfig, name: str) -> nn.Module:
        model = self._slm()
        # New adapters are drawn at random: for each device the same in every run.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little"))
            return inner_model(add_adapters(model, peft))

    def _serve(
        self, ticket: TurnTicket, context: Context, skeleton: nn.Module, layout: Layout, own: OwnEncoder
    ) -> RoundReport:
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            session_id=ticket.session_id,
            token=ticket.token,
            run_id=context.run_id,
            node_id=context.node_id,
            server_round=ticket.server_round,
            device_name=device_name(context),
            student=fingerprint_to_wire(fingerprint(skeleton, layout)),
            codecs=supported_codecs(),
            cached_units=[pb.UnitVersion(unit=unit, version=digest) for unit, digest in own.versions.items()],
            num_examples=self._data.num_examples,
            num_batches=self._data.num_batches,
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
            next_step=int(own.info.get("next_step", 0)),
        )
        with (
            compute_threads(self._num_threads or default_threads(ticket.address)),
            connect(
                ticket.address,
                hello,
                root_certificate=ticket.root_certificate,
                timeout_s=self._connect_timeout_s,
            ) as link,
        ):
            return run_round(
                link,
                skeleton=skeleton,
                layout=layout,
                own=own,
                data=self._data,
                compute_device=self._compute_device,
                begin_timeout_s=self._begin_timeout_s,
                step_timeout_s=self._step_timeout_s,
                score=self._score,
                leave_when=self._leave_when,
            )

    def _reply(self, msg: Message, report: RoundReport, prefix: str) -> Message:
        over = report.over
        metrics = MetricRecord({records.NUM_EXAMPLES: report.num_examples, prefix + records.LOSS: over.loss})
        if over.HasField("reference_loss"):
            metrics[prefix + records.REFERENCE_LOSS] = over.reference_loss
        for name, value in report.scores.items():
            metrics[prefix + name] = float(value)
        # Flower's conventions ask for one ArrayRecord; the weights themselves travelled on the stream.
        content = RecordDict({records.ARRAYS: ArrayRecord(), records.METRICS: metrics})
        return Message(content=content, reply_to=msg)
