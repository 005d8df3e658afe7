"""From settings and builders to an open edge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from flwr_splitkd.costs import ServerProfile
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models import add_adapters, inner_model, set_tied_embeddings
from flwr_splitkd.split import find_layout, is_token_model, verify_cut
from flwr_splitkd.store import CommitLog
from flwr_splitkd.telemetry.sensors import EnergyMeter
from flwr_splitkd.tiers.edge.clock import ServerClock, find_setter
from flwr_splitkd.tiers.edge.compute import EdgeCompute
from flwr_splitkd.tiers.edge.objective import Objective, TaskName
from flwr_splitkd.tiers.edge.plan import TurnSettings
from flwr_splitkd.tiers.edge.service import EdgeService
from flwr_splitkd.tiers.edge.student import HANDOVERS, EdgeStudent, HandoverName
from flwr_splitkd.tiers.edge.teacher import EdgeTeacher
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.codec import CodecName
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.server import DataPlaneServer

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["EdgeSetup"]

_log = logging.getLogger(__name__)

_MIN_MESSAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSetup:
    """Everything that an edge needs to open; parameters as in `SplitKD`."""

    student: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module] | None
    loss: DistillationLoss
    task: TaskName
    tied_embeddings: Literal["refuse", "untie", "freeze"]
    train_embeddings: bool
    blocks: tuple[str, ...]
    optimizer: OptimizerSettings
    optimizer_handover: HandoverName
    turn: TurnSettings
    data_address: str
    advertised_address: str | None
    tls: TlsFiles | None
    insecure: bool
    compute_device: torch.device
    grace_period_s: float = 15.0
    max_message_bytes: int | None = None
    peft: PeftConfig | None = None
    teacher_blocks: tuple[str, ...] = ()
    teacher_cut: int | None = None
    teacher_top_k: int | None = None
    teacher_cache_bytes: int = 0
    teacher_cache_disk_bytes: int = 0
    teach_waiting: bool = False
    compute: EdgeCompute = field(default_factory=EdgeCompute)
    set_frequency: bool = False

    def __post_init__(self) -> None:
        """Check the choices.

        Raises
        ------
        ConfigError
            If one is unknown or out of range.
        """
        if not self.grace_period_s >= 0:
            raise ConfigError(f"`grace_period_s` is {self.grace_period_s}; expected 0 or more seconds.")
        if self.max_message_bytes is not None and self.max_message_bytes < 1:
            raise ConfigError(f"`max_message_bytes` is {self.max_message_bytes}; expected at least 1, or None.")
        for name in ("teacher_cache_bytes", "teacher_cache_disk_bytes"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"`{name}` is {value}; expected 0 or more bytes.")
        if self.optimizer_handover not in HANDOVERS:
            raise ConfigError(
                f"`optimizer_handover` is {self.optimizer_handover!r}; expected one of {', '.join(HANDOVERS)}."
            )

    def build_student(self) -> nn.Module:
        """Build the whole student, with its adapters if there are any, its embeddings as `tied_embeddings` says.

        Raises
        ------
        ConfigError
            If the adapters do not fit.
        CutError
            If they are tied and the choice is left open.
        """
        student = add_adapters(self.student(), self.peft)
        set_tied_embeddings(inner_model(student), self.tied_embeddings)
        return student

    def open(
        self,
        student: nn.Module,
        commits: Path,
        *,
        ticket_lifetime_s: float,
        resume: bool = False,
        codecs: Collection[CodecName] = (),
        meter: EnergyMeter | None = None,
        machine: ServerProfile | None = None,
    ) -> EdgeService:
        """Check the models, bind the port, commit the initial state (or load the last commit) and begin to listen.

        Parameters
        ----------
        student
            What `build_student` returned, with its initial weights.
        commits
            Folder of the commit log.
        ticket_lifetime_s
            Seconds that a called device has to come.
        resume
            Whether the log holds the run that goes on, or none.
        codecs
            Those that turns may ask for beside the settings' own.
        meter
            Measures the joules of this machine in each turn, and is closed with the edge; None not to.
        machine
            What the edge is, by which its clock between turns is chosen; needed with `set_frequency`.

        Raises
        ------
        ConfigError, CutError
            If the settings or the models cannot be used.
        StoreError
            If the commit log cannot be read or written, holds another run, or nothing to resume from.
        """
        # The cheap checks come first: a teacher may take minutes.
        if self.set_frequency and machine is None:
            raise ConfigError("`set_frequency` is True and `machine` None; expected a profile of the edge with it.")
        log = CommitLog(commits)
        for name, reason in log.damaged.items():
            _log.warning("%s of %s is passed over: %s", name, commits, reason)
        if resume and log.latest is None:
            raise StoreError(
                f"{commits} has {len(log.damaged)} damaged commits and no whole one; expected one to resume from. "
                "Start a new run, with the arrays of another run's student if you have them."
            )
        if not resume and (log.latest or log.damaged):
            what = f"commit {log.latest.commit_id}" if log.latest else "commits"
            raise StoreError(
                f"{commits} holds {what} of an earlier run; expected an empty folder, because a new run would replace its "
                "student. Give this run another `run_folder`, or go on with the earlier one by `resume`."
            )
        server = DataPlaneServer(
            data_address=self.data_address,
            advertised_address=self.advertised_address,
            tls=self.tls,
            insecure=self.insecure,
            grace_period_s=self.grace_period_s,
            limits=Limits(max_message_bytes=self.max_message_bytes or _default_message_bytes(student)),
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
        )
        try:
            return self._open(student, log, server, ticket_lifetime_s, codecs, commits.parent, meter, machine)
        except BaseException:
            server.stop()
            raise

    def _open(
        self,
        whole: nn.Module,
        log: CommitLog,
        server: DataPlaneServer,
        ticket_lifetime_s: float,
        codecs: Collection[CodecName],
        folder: Path,
        meter: EnergyMeter | None,
        machine: ServerProfile | None,
    ) -> EdgeService:
        student = inner_model(whole)
        layout = find_layout(student, list(self.blocks) or None)
        if not self.train_embeddings:
            _freeze_input_embeddings(student)
        if is_token_model(student):
            verify_cut(student, layout)
        teacher: EdgeTeacher | None = None
        if self.teacher is not None and self.loss.kd_ratio > 0:
            teacher = EdgeTeacher(
                self.teacher(),
                has_head=self.task != "classification",
                compute_device=self.compute_device,
                blocks=self.teacher_blocks,
                cut=self.teacher_cut,
                top_k=self.teacher_top_k,
                temperature=self.loss.temperature,
                beta=self.loss.beta,
                compute=self.compute,
            )
        edge_student = EdgeStudent(
            whole.to(self.compute_device),
            layout,
            optimizer=self.optimizer,
            handover=self.optimizer_handover,
            log=log,
            fused_optimizer=self.compute.fused_optimizer,
        )
        self.compute.prepare(edge_student.model, layout)
        objective = Objective(edge_student.model, teacher, self.loss, self.task, self.compute)
        cache: TeacherCache | None = None
        if teacher is not None and self.teacher_cache_bytes + self.teacher_cache_disk_bytes > 0:
            cache = TeacherCache(
                folder / "teacher-cache",
                memory_bytes=self.teacher_cache_bytes,
                disk_bytes=self.teacher_cache_disk_bytes,
            )
        clock: ServerClock | None = None
        if self.set_frequency and machine is not None:
            clock = ServerClock(machine, lambda: find_setter(self.compute_device))
        try:
            return EdgeService(
                server,
                student=edge_student,
                objective=objective,
                settings=self.turn,
                ticket_lifetime_s=ticket_lifetime_s,
                codecs=codecs,
                cache=cache,
                teach_waiting=self.teach_waiting,
                meter=meter,
                clock=clock,
            )
        except BaseException:
            if clock is not None:
                clock.close()
            raise


def _default_message_bytes(student: nn.Module) -> int:
    """Four times the student: weights with both moments of AdamW, and room for a large batch."""
    student_bytes: int = sum(tensor.nbytes for tensor in student.state_dict().values())
    return max(_MIN_MESSAGE_BYTES, 4 * student_bytes)


def _freeze_input_embeddings(model: nn.Module) -> None:
    getter = getattr(model, "get_input_embeddings", None)
    embeddings = getter() if callable(getter) else None
    if isinstance(embeddings, nn.Module):
        embeddings.requires_grad_(False)
