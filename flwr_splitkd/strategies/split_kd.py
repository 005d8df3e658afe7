"""SplitKD: split knowledge distillation as a Flower strategy.

The workflow is that of Li et al., "Split Knowledge Distillation for Large Models in IoT: Architecture, Challenges, and
Solutions", section IV.B: devices one after another, a cut layer for each, cross-entropy and KL divergence on the edge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from logging import INFO, WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from flwr_splitkd import records
from flwr_splitkd.callbacks import Callback
from flwr_splitkd.costs import GENERIC_SERVER
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError, InfeasibleError, NoDeviceError
from flwr_splitkd.models import peft_to_json
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.schedulers import (
    Candidate,
    ClusterPolicy,
    CutPolicy,
    Decision,
    DeviceView,
    EpochsPolicy,
    FixedCut,
    FixedEpochs,
    InOrder,
    NeverStop,
    RoundRobin,
    SelectionPolicy,
    StopPolicy,
)
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies import console
from flwr_splitkd.strategies.basis import planner_basis
from flwr_splitkd.strategies.callbacks import Callbacks, default_callbacks
from flwr_splitkd.strategies.console import log
from flwr_splitkd.strategies.description import describe, versions
from flwr_splitkd.strategies.live import live_turns
from flwr_splitkd.strategies.metrics import MetricsAggregator, weighted_mean
from flwr_splitkd.strategies.planner import PlannedTurn, Planner
from flwr_splitkd.strategies.progress import Progress
from flwr_splitkd.strategies.result import SplitKDResult
from flwr_splitkd.strategies.roster import Roster
from flwr_splitkd.strategies.rounds import EvaluateFn, RoundRunner, wait_for_nodes
from flwr_splitkd.strategies.turns import Call
from flwr_splitkd.telemetry.sensors import EnergyMeter, find_sensors
from flwr_splitkd.tiers.edge import (
    EdgeCompute,
    EdgeService,
    EdgeSetup,
    HandoverName,
    TaskName,
    TurnMode,
    TurnOutcome,
    TurnSettings,
)
from flwr_splitkd.tiers.energy import check_measure_energy
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, OptimizerSettings, constant
from flwr_splitkd.wire.address import is_loopback, parse_listen_address
from flwr_splitkd.wire.codec import CodecName
from flwr_splitkd.wire.credentials import TlsFiles

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["SplitKD"]

_SETTINGS = (
    *("cut", "selection", "local_epochs", "stop", "planner", "student_on_device", "cluster_size", "clusters"),
    *("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes"),
    *("weighted_by_key", "configrecord_key", "connect_timeout_s", "node_timeout_s", "measure_energy"),
)
"""What ``config.json`` tells beside the fields of `EdgeSetup`."""


class SplitKD(Strategy):
    """Distill a teacher into a student whose first layers run on the devices, one device or one cluster after another.

    Parameters
    ----------
    student
        Builds the whole student. ``initial_arrays`` of `start` win over its own weights.
    teacher
        Builds the whole teacher; None when ``loss.kd_ratio`` is 0.
    teacher_blocks, teacher_cut
        For a teacher that is not a transformers model: dotted paths of its blocks, and how many of them run on the devices (1
        when not given), whose `SplitKDClient` then needs a ``teacher`` too. Of a language model of transformers the devices
        have the token embedding alone, unless `teacher_cut` is more than 0.
    loss
        Settings of the distillation loss.
    cut
        A cut policy, or the same cut for everyone: the device runs blocks ``0 .. cut - 1``.
    selection
        Who takes a turn in a round, and in which order.
    cluster_size
        Devices that train at the same time, from the same student, whose copies are averaged at the end; clusters follow one
        another. 1 is one device after another; all of a round's devices at once is SplitFed. In a simulation a cluster needs
        as many actors.
    clusters
        Which devices of a round these are: `InOrder` of the selection, or `AlikeTogether`.
    batch_devices
        Whether the edge computes for devices of one cluster and one cut in one batch, where their batches fit and it gives the
        same. It takes the memory of all their activations.
    local_epochs
        A policy, or the same number of passes over its data for every device.
    stop
        Ends the run early.
    planner
        Knows the devices, their links and what turns cost, for policies such as `OptimalCut` that decide by it; one that starts
        from common machines and learns from every turn when not given and needed. With any other policy it records what
        turns were expected to take.
    task
        ``"causal-lm"``, ``"masked-lm"`` or ``"classification"``.
    tied_embeddings
        What to do with a student whose input and output embeddings are one matrix: ``"untie"`` clones it (more
        memory, both train), ``"freeze"`` trains neither, ``"refuse"`` asks you to choose.
    train_embeddings
        Whether the input embedding trains; frozen it travels once and never again.
    blocks
        Dotted paths of the student's blocks in the order in which they run; found for transformers models. What runs between
        them (pooling, reshaping) need not be named unless it has weights; the first batch of each cut is tried.
    peft
        A configuration of the `peft` library, such as ``LoraConfig``: then only the adapters train and change hands, and
        the arrays of `start` and of its result are theirs, under PEFT's names. A `student` may bring its adapters itself.
    student_on_device
        ``"whole"`` leaves the distilled student on every connected device at the end, see `SplitKDClient`; ``"part"`` leaves
        nothing but the cache of the layers that a device trained.
    optimizer, lr_schedule
        The optimiser of both halves, and the factor on its rate by step of the run.
    optimizer_handover
        What becomes of the moments of layers that change hands: ``"full"`` (they travel; equals unsplit training),
        ``"reset"`` (they start from zero in every turn) or ``"device"`` (every device keeps its own).
    max_grad_norm
        Clips the global gradient norm of both halves together; None to leave it.
    gradient_accumulation_steps
        Batches of a device in one optimiser step.
    num_microbatches
        Micro-batches that each batch is divided into; with the batches of a step they are what can be in flight at a time.
        Training is that of the unsplit model with as many micro-batches.
    pipeline_depth
        Micro-batches of a step in flight: while one is computed on the device, others are on their way or on the edge. It changes
        no result; the device holds the activations of as many. 1 is lock-step; 0 chooses by what the device's last turn took.
    trace
        Whether to record every stage of every step in ``metrics.jsonl`` and ``trace.json`` (for ui.perfetto.dev).
    teacher_cache_bytes, teacher_cache_disk_bytes
        Most bytes that the edge keeps, in memory and on disk, of what the teacher made of a device's sequences. From the second
        epoch on the teacher need not run for these, nor do their embeddings travel. 0 and 0 keep nothing.
    teacher_top_k
        How many of the teacher's logits the loss compares: the largest, and a sample of the others, so that the gradient is right
        on average (with the loss's ``beta`` above 0 the k largest, while all others share what is left). Takes ``8 (k + 1)`` bytes
        of a token in the cache instead of the teacher's hidden state, and is lossy: the probability that is not kept exactly is in
        each turn's ``teacher_rest_mass``, a mean so far. None compares all.
    teach_waiting
        Whether the next device, once it has connected, sends what the teacher needs while it waits, and the teacher works on it
        when the edge would be idle: its turn then finds the outcomes in the cache. Without clusters. Where a shuffled data set's
        last batch is short, what was done in time decides how it is rounded.
    max_batches
        At most so many batches of each local epoch; 0 for all.
    commit_every_steps
        Optimiser steps after which a turn hands its layers in and commits what it has: no more than that is lost with a
        device. It costs the way of the layers and their moments each time; 0 for only at the turn's end.
    uplink_codec, downlink_codec
        ``"none"``, ``"float16"``, ``"bfloat16"`` or ``"int8"`` for smashed data up and gradients down. ``"auto"`` chooses by what
        the device's last turn took: the least lossy of none, bfloat16 and int8 with which a step is at most 5 % longer than with
        the fastest. Its first turn is without one.
    error_feedback
        Whether what the downlink codec leaves out of a gradient is added to the next step's.
    fraction_train, fraction_evaluate
        Share of the connected nodes that takes a turn in a round, and that evaluates after it.
    min_train_nodes, min_evaluate_nodes, min_available_nodes
        As in Flower's FedAvg.
    weighted_by_key, configrecord_key
        As in Flower's FedAvg.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in Flower's FedAvg; a weighted mean when not given.
    data_address, advertised_address
        Where the data plane listens (``host:port``, ``host:first-last``, ``host:0``), and what devices dial.
    tls, insecure
        Certificate files for the data plane; or plaintext on an address that is not loopback.
    connect_timeout_s
        Seconds after which a called device that has not connected no longer holds up the next call; twice that, at the
        round's end, and it is given up. (A device that is ready waits 10 s for those before it, then goes first.)
    step_timeout_s
        Seconds that a device may take for one answer within its turn.
    turn_timeout_s
        Seconds that a whole turn may take; None for as long as its answers come.
    grace_period_s
        Seconds that a device which has lost its connection has to resume its turn; then the turn is undone and the next
        device has its own.
    node_timeout_s
        Seconds to wait for `min_available_nodes`.
    max_message_bytes
        Most that one message of a device may hold; four times the student, and at least 1 GiB, when not given.
    run_folder
        Where metrics and commits go; ``runs/<time>-<run id>`` when not given.
    resume
        Folder of a run to go on with from its last commit, instead of a `run_folder`. The same settings are expected.
    callbacks
        Told how the run goes. When not given: TensorBoard events and ``figure.png`` in the run folder, if the ``report``
        extra is installed.
    seed
        Of dropout, and of the order of data loaders that draw it from torch's own generator.
    compute_device
        A torch device for both models; CUDA if there is one, else the CPU, when not given.
    edge_autocast
        ``"bfloat16"`` computes both models' blocks on the edge in it, and the loss in the weights' own type.
    edge_compile, edge_fused_optimizer
        Whether torch compiles both models' blocks on the edge, and whether its optimiser is a single kernel. All three round
        otherwise than torch does without them; see docs/explanation/pipelining.md for where they pay.
    measure_energy
        Whether the edge measures the joules of its machine in each turn (``measured_edge_j``), if its sensors tell them; ``"auto"``
        for yes, unless devices run on the same machine: in a simulation, or with a data plane on a loopback address.
        See docs/explanation/telemetry.md.
    set_frequency
        Whether the edge sets its GPU's clock: to the planned one for a turn, to the server's idle one between turns where that
        saves energy, and back at the end. It takes a `planner` whose fleet describes this server, and the right to set clocks;
        without the right the run says so and goes on at the GPU's own clock. See docs/how-to/server-frequency.md.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """

    def __init__(
        self,
        *,
        student: Callable[[], nn.Module],
        teacher: Callable[[], nn.Module] | None = None,
        teacher_blocks: Sequence[str] | None = None,
        teacher_cut: int | None = None,
        loss: DistillationLoss | None = None,
        cut: CutPolicy | int = 1,
        selection: SelectionPolicy | None = None,
        cluster_size: int = 1,
        clusters: ClusterPolicy | None = None,
        batch_devices: bool = True,
        local_epochs: EpochsPolicy | int = 1,
        stop: StopPolicy | None = None,
        planner: Planner | None = None,
        task: TaskName = "causal-lm",
        tied_embeddings: Literal["refuse", "untie", "freeze"] = "refuse",
        train_embeddings: bool = False,
        blocks: Sequence[str] | None = None,
        peft: PeftConfig | None = None,
        student_on_device: Literal["part", "whole"] = "part",
        optimizer: OptimizerSettings | None = None,
        lr_schedule: LearningRateSchedule = constant,
        optimizer_handover: HandoverName = "full",
        max_grad_norm: float | None = None,
        gradient_accumulation_steps: int = 1,
        num_microbatches: int = 1,
        pipeline_depth: int = 0,
        trace: bool = False,
        teacher_cache_bytes: int = 512 << 20,
        teacher_cache_disk_bytes: int = 0,
        teacher_top_k: int | None = None,
        teach_waiting: bool = False,
        max_batches: int = 0,
        commit_every_steps: int = 0,
        uplink_codec: CodecName | Literal["auto"] = "none",
        downlink_codec: CodecName | Literal["auto"] = "none",
        error_feedback: bool = False,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 0.0,
        min_train_nodes: int = 1,
        min_evaluate_nodes: int = 1,
        min_available_nodes: int = 1,
        weighted_by_key: str = records.NUM_EXAMPLES,
        configrecord_key: str = records.CONFIG,
        train_metrics_aggr_fn: MetricsAggregator | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregator | None = None,
        data_address: str = "127.0.0.1:0",
        advertised_address: str | None = None,
        tls: TlsFiles | None = None,
        insecure: bool = False,
        connect_timeout_s: float = 120.0,
        step_timeout_s: float = 300.0,
        node_timeout_s: float = 300.0,
        turn_timeout_s: float | None = None,
        grace_period_s: float = 15.0,
        max_message_bytes: int | None = None,
        run_folder: str | Path | None = None,
        resume: str | Path | None = None,
        callbacks: Sequence[Callback] | None = None,
        seed: int = 0,
        compute_device: str | None = None,
        edge_autocast: Literal["bfloat16"] | None = None,
        edge_compile: bool = False,
        edge_fused_optimizer: bool = False,
        measure_energy: bool | Literal["auto"] = "auto",
        set_frequency: bool = False,
    ) -> None:
        _check_fractions(fraction_train=fraction_train, fraction_evaluate=fraction_evaluate)
        if student_on_device not in ("part", "whole"):
            raise ConfigError(f"`student_on_device` is {student_on_device!r}; expected 'part' or 'whole'.")
        self.student_on_device = student_on_device
        _check_cluster_size(cluster_size, commit_every_steps)
        self.cluster_size, self.clusters = cluster_size, clusters or InOrder()
        self.cut = FixedCut(cut) if isinstance(cut, int) else cut
        _check_codecs(self.cut, uplink_codec, downlink_codec)
        check_measure_energy(measure_energy)
        self.selection = selection or RoundRobin()
        self.local_epochs = FixedEpochs(local_epochs) if isinstance(local_epochs, int) else local_epochs
        self.stop = stop or NeverStop()
        policies = self.cut, self.selection, self.local_epochs, self.clusters
        if set_frequency:
            _check_described(planner)
        self.planner = planner or (Planner() if _needs_planner(*policies) else None)
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes, self.min_evaluate_nodes = min_train_nodes, min_evaluate_nodes
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key, self.configrecord_key = weighted_by_key, configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or weighted_mean
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or weighted_mean
        self.connect_timeout_s, self.node_timeout_s = connect_timeout_s, node_timeout_s
        if run_folder and resume:
            raise ConfigError(
                f"`run_folder` is {str(run_folder)!r} and `resume` is {str(resume)!r}; expected one of them: a resumed run "
                "goes on in its own folder."
            )
        self.run_folder, self.resume, self.callbacks = run_folder, resume, callbacks
        self.measure_energy = measure_energy
        self.setup = EdgeSetup(
            student=student,
            teacher=teacher,
            loss=loss or DistillationLoss(),
            task=task,
            tied_embeddings=tied_embeddings,
            train_embeddings=train_embeddings,
            blocks=_block_paths("blocks", blocks),
            peft=peft,
            teacher_blocks=_block_paths("teacher_blocks", teacher_blocks),
            teacher_cut=teacher_cut,
            teacher_cache_bytes=teacher_cache_bytes,
            teacher_cache_disk_bytes=teacher_cache_disk_bytes,
            teacher_top_k=teacher_top_k,
            teach_waiting=teach_waiting,
            optimizer=optimizer or OptimizerSettings(),
            optimizer_handover=optimizer_handover,
            turn=TurnSettings(
                seed=seed,
                max_grad_norm=max_grad_norm,
                gradient_accumulation_steps=gradient_accumulation_steps,
                num_microbatches=num_microbatches,
                pipeline_depth=pipeline_depth,
                trace=trace,
                max_batches=max_batches,
                uplink_codec=uplink_codec,
                downlink_codec=downlink_codec,
                error_feedback=error_feedback,
                lr_schedule=lr_schedule,
                commit_every_steps=commit_every_steps,
                batch_devices=batch_devices,
                step_timeout_s=step_timeout_s,
                turn_timeout_s=turn_timeout_s,
            ),
            data_address=data_address,
            advertised_address=advertised_address,
            tls=tls,
            insecure=insecure,
            grace_period_s=grace_period_s,
            max_message_bytes=max_message_bytes,
            compute_device=torch.device(compute_device or ("cuda" if torch.cuda.is_available() else "cpu")),
            compute=EdgeCompute(autocast=edge_autocast, compile=edge_compile, fused_optimizer=edge_fused_optimizer),
            set_frequency=set_frequency,
        )
        self._edge: EdgeService | None = None
        self._message_ttl_s: float | None = None
        self._progress = Progress(run="")
        self._roster: Roster | None = None

    # ---- the loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> SplitKDResult:
        """Run the rounds; parameters as in Flower's `Strategy.start`.

        `timeout` is, in seconds, the life of a message and its ticket: how long after its call a device may still
        connect. It also bounds how long the end of a round waits for Flower's replies.

        Raises
        ------
        NoDeviceError
            If too few nodes connect, or a whole round passes without one completed turn.
        SplitKDError
            If the models, the settings or the run folder cannot be used.
        """
        folder = self._folder(grid)
        with folder.locked():
            return self._run(
                folder, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            )

    def _run(
        self,
        folder: RunFolder,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
    ) -> SplitKDResult:
        log(INFO, "Starting %s strategy:", type(self).__name__)
        self.summary()
        result = SplitKDResult(run_folder=folder.path)
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        started_s = time.monotonic()
        self._message_ttl_s = timeout
        settings = self._settings()
        if self.resume:
            console.log_changes(folder.read_config().get("strategy", {}), settings)
        config = folder.write_config({"strategy": settings, "versions": versions()})
        callbacks = Callbacks(default_callbacks() if self.callbacks is None else self.callbacks)
        meter = EnergyMeter(find_sensors()) if self._measures_energy(grid) else None
        self._edge = self._open_edge(initial_arrays, folder, timeout, meter)
        try:
            progress = self._prepare(self._edge, run=str(grid.run.run_id))
        except BaseException:
            self._edge.close()
            self._edge = None
            raise
        error: BaseException | None = None
        try:
            callbacks.tell("on_start", folder, config)
            callbacks.tell("on_live", live_turns(self._edge))
            console.log_energy(meter)
            log(INFO, "\t└──> Data plane at %s, run folder %s", self._edge.server.address, folder.path)
            if self.resume:
                console.log_resumed(progress, self._edge.student.last_commit)
            rounds = RoundRunner(self, self._edge, grid, result, folder, callbacks, progress, timeout)
            if progress.next_round == 1 and not progress.served:
                rounds.evaluate_on_server(0, evaluate_fn)
            server_round = progress.server_round
            for server_round in range(progress.next_round, num_rounds + 1):
                log(INFO, "")
                log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
                metrics = rounds.train(server_round, train_config, call_ahead=server_round < num_rounds)
                metrics |= rounds.evaluate(server_round, evaluate_config)
                metrics |= rounds.evaluate_on_server(server_round, evaluate_fn)
                folder.append_metrics({"kind": "round", "server_round": server_round, **metrics})
                callbacks.tell("on_round", server_round, metrics)
                progress.round_done = True
                self._edge.student.note({"progress": self.remember().to_json()})
                result.stopped = self.stop.reason(metrics) or ""
                if result.stopped:
                    log(INFO, "Stopping after round %s: %s", server_round, result.stopped)
                    rounds.call_off(f"the run stops after round {server_round}: {result.stopped}")
                    break
            result.arrays = records.arrays_from_model(self._edge.student.whole)
            if self.student_on_device == "whole":
                rounds.deliver(server_round, train_config)
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                self._edge.close()
            finally:
                self._edge = None
                callbacks.tell("on_end", error)
        console.log_end(result, time.monotonic() - started_s)
        return result

    def _prepare(self, edge: EdgeService, run: str) -> Progress:
        """Open the planner, and go on from the last commit."""
        if self.planner is not None:
            self.planner.open(planner_basis(self.planner, self.setup, edge, cluster_size=self.cluster_size))
        self._roster = Roster(self.planner, edge.student.layout.num_blocks)
        self._progress = Progress.from_commit(edge.student.last_info, run=run)
        self._progress.restore_policies(self._policies())
        return self._progress

    # ---- who is called

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages of a round's turns, in order and one at a time; `arrays` do not travel in them."""
        return (call.message for call in self.calls(grid, server_round, config, "train"))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages of a round's evaluation, in order and one at a time; `arrays` do not travel in them."""
        return (call.message for call in self.calls(grid, server_round, config, "evaluate"))

    def calls(
        self, grid: Grid, server_round: int, config: ConfigRecord, mode: TurnMode, nodes: Sequence[int] = ()
    ) -> Iterator[Call]:
        """Yield the round's calls in order; each opens its session on the data plane when it is drawn.

        Parameters
        ----------
        nodes
            Call these, instead of those that the policies choose.

        Raises
        ------
        NoDeviceError
            If too few nodes are connected.
        """
        edge = self._open_service()
        order = list(nodes) or self._order(grid, server_round, mode)
        # To deliver is for the handler that every device has.
        kind = MessageType.EVALUATE if mode == "evaluate" else MessageType.TRAIN
        parts = [order] if mode != "train" else self._part(order, server_round)
        for cluster, node_id in [(cluster, node_id) for cluster, part in enumerate(parts) for node_id in part]:
            session = edge.expect(run_id=grid.run.run_id, node_id=node_id, server_round=server_round)
            content = RecordDict({self.configrecord_key: _with_round(config, server_round)})
            TurnTicket(
                session_id=session.ticket.session_id,
                token=session.ticket.token,
                address=edge.server.address,
                root_certificate=edge.server.root_certificate,
                server_round=server_round,
                tied_embeddings=self.setup.tied_embeddings,
                blocks=self.setup.blocks,
                peft=peft_to_json(self.setup.peft),
            ).into(content)
            message = Message(content=content, message_type=kind, dst_node_id=node_id, ttl=self._message_ttl_s)
            yield Call(message, session, len(order), cluster)

    def _order(self, grid: Grid, server_round: int, mode: TurnMode) -> list[int]:
        """Who takes a turn in a round; in a round that was begun before the run was resumed, who still has to."""
        fraction, minimum = {
            "train": (self.fraction_train, self.min_train_nodes),
            "evaluate": (self.fraction_evaluate, self.min_evaluate_nodes),
            "deliver": (1.0, 0),  # to whoever is there
        }[mode]
        if fraction == 0.0:
            return []
        wanted = 0 if mode == "deliver" else max(self.min_available_nodes, minimum)
        online = wait_for_nodes(grid, wanted, self.node_timeout_s)
        if mode == "deliver":  # policies by cost leave devices out that could not train now
            return online
        num_turns = min(max(int(len(online) * fraction), minimum), len(online))

        def choose() -> list[int]:
            taken = self._progress.turns_taken
            candidates = [Candidate(node_id=node_id, turns=taken.get(node_id, 0)) for node_id in online]
            policies = self.cut, self.selection, self.local_epochs, self.clusters
            by_name = any(getattr(self.selection, name, False) for name in ("needs_forecast", "needs_names"))
            if self._roster is not None and (by_name or _needs_planner(*policies)):
                self._roster.enrol(grid, online, self.connect_timeout_s)
            if self._roster is not None and by_name:
                candidates = self._roster.candidates(online, taken, server_round, self.cut, self.local_epochs)
            chosen = self.selection.order(candidates, num_turns, server_round)
            if not chosen and mode == "train":
                raise NoDeviceError(
                    f"{type(self.selection).__name__} chose none of {len(online)} devices for round {server_round}; expected at "
                    "least 1. "
                    + "; ".join(c.forecast.infeasible for c in candidates if c.forecast and c.forecast.infeasible)
                )
            return chosen

        order = self._progress.order_of(server_round, online, choose) if mode == "train" else choose()
        log(INFO, "configure_%s: %s turns, %s nodes connected", mode, len(order), len(online))
        return order

    def _part(self, order: Sequence[int], server_round: int) -> list[list[int]]:
        """The clusters of a round, by what is known of its devices when it begins."""
        candidates: list[Candidate] = []
        if self._roster is not None and self.cluster_size > 1 and getattr(self.clusters, "needs_forecast", False):
            taken = self._progress.turns_taken
            candidates = self._roster.candidates(order, taken, server_round, self.cut, self.local_epochs)
        return self.clusters.part(order, self.cluster_size, candidates)

    def may_call_ahead(self, grid: Grid) -> bool:
        """Whether the next round's devices can be called before this one is evaluated: none evaluates, and enough are there.

        A node serves one message at a time: one that waits for its turn would not answer an evaluation.
        """
        wanted = max(self.min_available_nodes, self.min_train_nodes, 1)
        return self.fraction_evaluate == 0.0 and len(list(grid.get_node_ids())) >= wanted

    def plan_turn(self, device: DeviceView) -> PlannedTurn:
        """Ask the policies for a turn's local epochs and cut.

        Raises
        ------
        InfeasibleError
            If the device cannot take it.
        """
        if self._roster is not None:
            self._roster.meet(device)
        if self.planner is not None:
            return self.planner.plan(device, self.cut, self.local_epochs)
        epochs = self.local_epochs.choose(device)
        chosen = self.cut.choose(replace(device, local_epochs=epochs))
        if isinstance(chosen, Decision):
            return PlannedTurn(cut=chosen.cut, local_epochs=epochs, codec=chosen.codec, decision=chosen)
        return PlannedTurn(cut=chosen, local_epochs=epochs)

    def evaluation_cut(self, device: DeviceView) -> int:
        """Ask the policies for the cut of an evaluation.

        Costs are those of training: who cannot afford a turn may still be asked for forward passes, at the privacy floor.
        """
        if self.planner is not None:
            return self.planner.evaluation_cut(device, self.cut, self.local_epochs)
        try:
            return self.plan_turn(device).cut
        except InfeasibleError:
            return int(getattr(self.cut, "min_cut", 1))

    def pay(self, device: DeviceView, planned: PlannedTurn) -> dict[str, Any]:
        """Let a modelled turn take place, before the turn itself; return what it took."""
        return self.planner.pay(device.name, planned) if self.planner is not None else {}

    def pay_together(self, turns: Sequence[tuple[DeviceView, PlannedTurn]]) -> list[dict[str, Any]]:
        """Let the modelled turns of a cluster take place, as `pay` does one."""
        if self.planner is None:
            return [{} for _ in turns]
        clipped = self.setup.turn.max_grad_norm is not None
        return self.planner.pay_together([(device.name, planned) for device, planned in turns], clipped=clipped)

    def refund(self) -> None:
        """Take the last payment back, of a turn or a cluster that was lost."""
        if self.planner is not None:
            self.planner.refund()

    def learn(
        self, device: DeviceView, planned: PlannedTurn, outcome: TurnOutcome, paid: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Learn from a completed turn; return what to record of it beside what was paid."""
        spent = getattr(self.selection, "spent", None)
        if spent is not None and planned.decision is not None:
            spent(device.node_id, paid.get("modelled_device_j", planned.decision.cost.device_j))
        return self.planner.learn(device.name, planned, outcome) if self.planner is not None else {}

    def totals(self) -> dict[str, float]:
        """What the run has cost so far, where costs are modelled."""
        return self.planner.totals() if self.planner is not None else {}

    # ---- what they answered

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the metrics of a round's turns; the weights are on the edge already, so no arrays."""
        return None, self._aggregate(server_round, replies, self.train_metrics_aggr_fn)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the metrics of a round's evaluation."""
        return self._aggregate(server_round, replies, self.evaluate_metrics_aggr_fn)

    def summary(self) -> None:
        """Log the strategy's settings."""
        log(
            INFO,
            "\t├──> Nodes: fraction train %.2f, evaluate %.2f; at least %d available",
            self.fraction_train,
            self.fraction_evaluate,
            self.min_available_nodes,
        )
        console.log_settings(self.setup)

    def _aggregate(
        self, server_round: int, replies: Iterable[Message], aggregate: MetricsAggregator
    ) -> MetricRecord | None:
        contents = []
        for reply in replies:
            if reply.has_error():
                log(WARNING, "Round %s: a device replied with an error: %s", server_round, reply.error.reason)
            else:
                contents.append(reply.content)
        return aggregate(contents, self.weighted_by_key) if contents else None

    def remember(self) -> Progress:
        """Where the run stands, with the state that the policies have now."""
        self._progress.remember_policies(self._policies())
        return self._progress

    def _policies(self) -> dict[str, Any]:
        return {
            "cut": self.cut,
            "selection": self.selection,
            "local_epochs": self.local_epochs,
            "stop": self.stop,
            "planner": self.planner,
        }

    def _folder(self, grid: Grid) -> RunFolder:
        if self.resume:
            return RunFolder.existing(self.resume)
        return RunFolder(Path(self.run_folder) if self.run_folder else _default_run_folder(grid))

    def _settings(self) -> dict[str, Any]:
        own = {name: describe(value) for name, value in vars(self).items() if name in _SETTINGS}
        return {**own, **describe(self.setup)}

    def _measures_energy(self, grid: Grid) -> bool:
        if isinstance(self.measure_energy, bool):
            return self.measure_energy
        # Flower's grid for simulations has no other mark.
        is_simulation = type(grid).__name__ == "InMemoryGrid"
        return not (is_simulation or is_loopback(parse_listen_address(self.setup.data_address).host))

    def _open_edge(
        self, initial_arrays: ArrayRecord, folder: RunFolder, ticket_lifetime_s: float, meter: EnergyMeter | None
    ) -> EdgeService:
        student = self.setup.build_student()
        if initial_arrays:
            records.load_arrays(student, initial_arrays)
        return self.setup.open(
            student,
            folder.commits,
            ticket_lifetime_s=ticket_lifetime_s,
            resume=self.resume is not None,
            codecs=getattr(self.cut, "codecs", ()),
            meter=meter,
            machine=self.planner.fleet.server if self.planner is not None else None,
        )

    def _open_service(self) -> EdgeService:
        if self._edge is None:
            raise ConfigError(
                "The edge is not open; expected `start` to be running. Call strategy.start(grid=..., ...) of SplitKD itself: "
                "a strategy around it, such as Flower's differential privacy, finds no weights in the replies to work on."
            )
        return self._edge


def _with_round(config: ConfigRecord, server_round: int) -> ConfigRecord:
    """A copy: the caller's record is not ours to change."""
    copy = ConfigRecord(dict(config))
    copy[records.SERVER_ROUND] = server_round
    return copy


def _needs_planner(cut: CutPolicy, selection: SelectionPolicy, epochs: EpochsPolicy, clusters: ClusterPolicy) -> bool:
    by_cost = any(getattr(policy, "needs_outlook", False) for policy in (cut, epochs))
    return by_cost or any(getattr(policy, "needs_forecast", False) for policy in (selection, clusters))


def _default_run_folder(grid: Grid) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{grid.run.run_id}"


def _block_paths(name: str, blocks: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(blocks, str):  # a sequence too, of letters
        raise ConfigError(f"`{name}` is {blocks!r}; expected a list with the path of each block, in running order.")
    return tuple(blocks or ())


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"`{name}` is {value}; expected 0 to 1, the share of the connected nodes.")


def _check_described(planner: Planner | None) -> None:
    """Refuse to set a clock that was chosen for another machine."""
    if planner is not None and planner.modelled:
        raise ConfigError(
            "`set_frequency` is True and the planner's world is modelled; expected False: its clock is that of a modelled server."
        )
    if planner is None or planner.fleet.server == GENERIC_SERVER:
        raise ConfigError(
            f"`set_frequency` is True and the server is {GENERIC_SERVER.name if planner else 'not described'}; expected a planner "
            "that knows it: `planner=Planner(fleet=Fleet(server=...))`, or a fleet file with a `server`. `flwr-splitkd profile "
            "--role edge` measures it."
        )


def _check_codecs(cut: CutPolicy, uplink_codec: str, downlink_codec: str) -> None:
    if getattr(cut, "codecs", ()) and "auto" in (uplink_codec, downlink_codec):
        raise ConfigError(
            f"`uplink_codec` is {uplink_codec!r}, `downlink_codec` {downlink_codec!r}, and {type(cut).__name__} chooses codecs "
            "itself; expected no 'auto' beside it: a turn would be served with another codec than it was planned with."
        )


def _check_cluster_size(cluster_size: int, commit_every_steps: int) -> None:
    if cluster_size < 1:
        raise ConfigError(f"`cluster_size` is {cluster_size}; expected at least 1, for one device after another.")
    if cluster_size > 1 and commit_every_steps:
        raise ConfigError(
            f"`commit_every_steps` is {commit_every_steps} and `cluster_size` {cluster_size}; expected 0 with clusters, whose "
            "copies become one student at their end only. Set fewer `max_batches` or `local_epochs` to commit more often."
        )
