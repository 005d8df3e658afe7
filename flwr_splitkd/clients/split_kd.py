"""SplitKDClient: what a ClientApp's handlers call."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flwr_splitkd import records
from flwr_splitkd.clients.enrolment import device_name
from flwr_splitkd.clients.job import Identity, Job
from flwr_splitkd.clients.supervisor import supervise
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import (
    build_skeleton,
    fingerprint,
    inner_model,
    peft_from_json,
    set_tied_embeddings,
)
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.split import Layout, find_layout
from flwr_splitkd.store import DeviceCache, cache_root
from flwr_splitkd.telemetry.sensors import EnergyMeter, find_sensors
from flwr_splitkd.tiers.device import OWN_MOMENTS, DeviceData, TurnReport, run_turn
from flwr_splitkd.tiers.energy import check_measure_energy
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.threads import compute_threads, default_threads
from flwr_splitkd.wire.address import is_on_this_machine
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["SplitKDClient"]

_log = logging.getLogger(__name__)

_TRAIN, _EVALUATE = "train-", "eval-"


class SplitKDClient:
    """Serves a device's turns: dial the edge, run the student's first layers, reply with the turn's metrics.

    Parameters
    ----------
    student
        Builds the whole student, as on the edge. It is called with parameters on the meta device, so that only the
        device's part ever takes memory; its weights come from the edge.
    data
        Batches of this device: a `DataLoader` or a list. A batch is a mapping of tensors by the names of the model's
        arguments, with ``labels`` (or ``label``), or a pair of data and labels. They do not leave the device.
    teacher
        Builds the teacher, as on the edge; called without memory for its weights, like `student`. Needed only if its first
        blocks run here, which is when it is not a transformers model or `SplitKD` has a `teacher_cut`.
    cache_folder
        Where units are kept between turns; ``$FLWR_SPLITKD_CACHE/devices`` or ``~/.cache/flwr_splitkd/devices``
        when not given. Several nodes may share it.
    student_folder
        Where the whole student goes at the end of a run with ``student_on_device="whole"``, replacing what was there;
        ``students/<run id>-<device name>`` beside the default `cache_folder` when not given.
    compute_device
        A torch device; CUDA if there is one, else the CPU, when not given.
    num_threads
        Threads that torch computes with; when not given, one if the edge is on this machine, else torch's own choice.
    connect_timeout_s
        Seconds for reaching the edge.
    begin_timeout_s
        Seconds to wait for the turn once connected, while other devices have theirs.
    step_timeout_s
        Seconds that the edge may take for one answer.
    max_restarts
        With more than 0, a turn runs in a worker process, which is started again so many times if it dies, for example for
        want of memory. Its start takes some seconds; `student`, `teacher` and `data` must be such that multiprocessing can
        send them to a process. With 0 the turn runs in the ClientApp's own process.
    measure_energy
        Whether the device measures the joules of its machine in a turn and tells the edge (``measured_device_j``), if its sensors
        tell them; ``"auto"`` for yes, unless the edge is on the same machine, as in simulations: its joules are not a virtual
        device's. See docs/explanation/telemetry.md.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    DataError
        If `data` is empty, or has no length.
    """

    def __init__(
        self,
        *,
        student: Callable[[], nn.Module],
        data: Iterable[Any],
        teacher: Callable[[], nn.Module] | None = None,
        cache_folder: str | Path | None = None,
        student_folder: str | Path | None = None,
        compute_device: str | None = None,
        num_threads: int | None = None,
        connect_timeout_s: float = 20.0,
        begin_timeout_s: float = 3600.0,
        step_timeout_s: float = 300.0,
        max_restarts: int = 0,
        measure_energy: bool | Literal["auto"] = "auto",
    ) -> None:
        if max_restarts < 0:
            raise ConfigError(f"`max_restarts` is {max_restarts}; expected 0 or more.")
        check_measure_energy(measure_energy)
        self._measure_energy = measure_energy
        self._max_restarts = max_restarts
        self._student, self._teacher = student, teacher
        self._data = DeviceData(data)
        self._cache_folder = Path(cache_folder) if cache_folder else cache_root() / "devices"
        self._student_folder = Path(student_folder) if student_folder else None
        self._compute_device = torch.device(compute_device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._num_threads = num_threads
        self._connect_timeout_s = connect_timeout_s
        self._begin_timeout_s, self._step_timeout_s = begin_timeout_s, step_timeout_s

    def train(self, msg: Message, context: Context) -> Message:
        """Answer a train message: take part in one turn.

        Raises
        ------
        SplitKDError
            Why the turn came to nothing; Flower reports it to the strategy.
        """
        return self._reply(msg, self._turn(msg, context), _TRAIN)

    def evaluate(self, msg: Message, context: Context) -> Message:
        """Answer an evaluate message: forward passes over `data` through both halves; nothing is changed.

        Raises
        ------
        SplitKDError
            Why the turn came to nothing; Flower reports it to the strategy.
        """
        return self._reply(msg, self._turn(msg, context), _EVALUATE)

    def _turn(self, msg: Message, context: Context) -> TurnReport:
        ticket = TurnTicket.from_content(msg.content)
        identity = Identity(run_id=context.run_id, node_id=context.node_id, name=device_name(context))
        if self._max_restarts:
            return supervise(Job(self, ticket, identity), max_restarts=self._max_restarts)
        return self.take_turn(ticket, identity)

    def take_turn(
        self,
        ticket: TurnTicket,
        identity: Identity,
        *,
        token: bytes = b"",
        on_token: Callable[[bytes], None] | None = None,
    ) -> TurnReport:
        """Take a turn in this process; `train` and `evaluate` call this, or have a worker call it.

        Parameters
        ----------
        ticket, identity
            What the edge sent, and who this device is.
        token
            A resume token that opens the session in place of the ticket's own.
        on_token
            Told each new resume token.

        Raises
        ------
        SplitKDError
            Why the turn came to nothing.
        """
        whole, layout = self._build(ticket)
        hello = self._hello(ticket, identity, inner_model(whole), layout)
        hello.token = token or ticket.token
        cache = DeviceCache(self._cache_folder / str(identity.node_id) / hello.student.digest[:16])
        for unit, unit_version in cache.versions().items():
            if not unit.startswith(OWN_MOMENTS):
                hello.cached_units.add(unit=unit, version=unit_version)
        threads = self._num_threads or default_threads(ticket.address)
        meter = self._meter(ticket.address)
        with (
            meter or nullcontext(),
            compute_threads(threads),
            connect(
                ticket.address,
                hello,
                root_certificate=ticket.root_certificate,
                timeout_s=self._connect_timeout_s,
                on_token=on_token,
            ) as link,
        ):
            return run_turn(
                link,
                model=whole,
                layout=layout,
                data=self._data,
                cache=cache,
                compute_device=self._compute_device,
                begin_timeout_s=self._begin_timeout_s,
                step_timeout_s=self._step_timeout_s,
                teacher=self._teacher,
                student_folder=self._student_folder
                or cache_root() / "students" / f"{identity.run_id}-{_file_name(hello.device_name)}",
                meter=meter,
            )

    def _meter(self, edge_address: str) -> EnergyMeter | None:
        """What measures the joules of a turn; None if they are not wanted or not to be had."""
        if self._measure_energy is False or (self._measure_energy == "auto" and is_on_this_machine(edge_address)):
            return None
        meter = EnergyMeter(find_sensors())
        if not meter.parts:
            level = logging.WARNING if self._measure_energy is True else logging.DEBUG
            _log.log(level, "The joules of this device are not measured: %s", meter.reason)
            return None
        return meter

    def _build(self, ticket: TurnTicket) -> tuple[nn.Module, Layout]:
        whole = build_skeleton(self._student, peft_from_json(ticket.peft))
        model = inner_model(whole)
        set_tied_embeddings(model, ticket.tied_embeddings)  # type: ignore[arg-type]  # checked by the function
        return whole, find_layout(model, list(ticket.blocks) or None)

    def _hello(self, ticket: TurnTicket, identity: Identity, model: nn.Module, layout: Layout) -> pb.Hello:
        return pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            session_id=ticket.session_id,
            run_id=identity.run_id,
            node_id=identity.node_id,
            server_round=ticket.server_round,
            device_name=identity.name,
            student=fingerprint_to_wire(fingerprint(model, layout)),
            codecs=supported_codecs(),
            num_examples=self._data.num_examples,
            num_batches=self._data.num_batches,
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
        )

    def _reply(self, msg: Message, report: TurnReport, prefix: str) -> Message:
        result = report.result
        metrics = MetricRecord(
            {
                records.NUM_EXAMPLES: report.num_examples,
                prefix + records.LOSS: result.loss,
                prefix + records.CROSS_ENTROPY: result.cross_entropy,
            }
        )
        if prefix == _TRAIN:  # the teacher takes no part in evaluation
            metrics[prefix + records.KL_DIVERGENCE] = result.kl_divergence
        if report.task == pb.TASK_CLASSIFICATION:
            metrics[prefix + records.ACCURACY] = result.num_correct / max(result.num_tokens, 1)
        else:
            metrics[prefix + records.PERPLEXITY] = math.exp(min(result.cross_entropy, 700.0))
        # Flower's conventions ask for one ArrayRecord; the weights themselves travelled on the stream.
        content = RecordDict({records.ARRAYS: ArrayRecord(), records.METRICS: metrics})
        return Message(content=content, reply_to=msg)


def _file_name(text: str) -> str:
    """A device's name may hold anything; a file's may not."""
    return re.sub(r"[^\w.-]", "_", text)
