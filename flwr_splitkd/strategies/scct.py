"""SCCT: split learning along the chain device - edge - cloud, as a Flower strategy.

The workflow is that of Wang et al., "Split Learning based Cloud-edge-end Collaborative Model Training in Heterogeneous
Networks", section III.A: every device has an encoder of its own, split between it and the edge; its output goes to a large
language model in the cloud, of which a module is trained; all devices work at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from logging import INFO, WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from flwr_splitkd import records
from flwr_splitkd.callbacks import Callback
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import peft_to_json
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.schedulers import (
    CutPolicy,
    Decision,
    DeviceView,
    EqualShares,
    FixedCut,
    NeverStop,
    SharePolicy,
    StopPolicy,
)
from flwr_splitkd.schedulers.chain.planner import ChainPlan, ChainPlanner
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.callbacks import Callbacks, default_callbacks
from flwr_splitkd.strategies.chain.calls import Called
from flwr_splitkd.strategies.chain.progress import ChainProgress
from flwr_splitkd.strategies.chain.result import SCCTResult
from flwr_splitkd.strategies.chain.rounds import ChainRounds
from flwr_splitkd.strategies.chain.sampling import sample_nodes
from flwr_splitkd.strategies.console import log, log_changes
from flwr_splitkd.strategies.description import describe, versions
from flwr_splitkd.strategies.live import live_chain
from flwr_splitkd.strategies.metrics import MetricsAggregator, scalar_metrics, weighted_mean
from flwr_splitkd.strategies.roster import Roster
from flwr_splitkd.strategies.rounds import EvaluateFn, wait_for_nodes
from flwr_splitkd.tiers.cloud import EmbeddedCloud
from flwr_splitkd.tiers.edge.chain import ChainEdge, ChainSettings, ChainSetup, CloudAccess, CloudLink
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, OptimizerSettings, constant
from flwr_splitkd.wire.codec import CodecName
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["SCCT"]

_SETTINGS = (
    *("split_point", "shares_policy", "plan", "stop", "cloud", "task", "module_start"),
    *("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes"),
    *("weighted_by_key", "configrecord_key", "connect_timeout_s", "node_timeout_s"),
)


class SCCT(Strategy):
    """Train small encoders on devices together with a module of a large language model in the cloud.

    Parameters
    ----------
    slm
        Builds the small language model: an encoder of transformers without a head, such as `RobertaModel`. Every device has
        one of its own, which begins with these weights.
    cloud
        Where the cloud is, as `CloudAccess`; or an `EmbeddedCloud`, which runs the same service in a process next to the edge
        for as long as the run lasts.
    task
        Which of the embedded cloud's tasks is trained; its only one when not given. (`CloudAccess` names its own.)
    module_start
        Whether a new run goes on with the module that the ``"cloud"`` has, or trains it ``"fresh"``. `initial_arrays` of
        `start` win over both.
    split_point
        A policy, or the same number for everyone: how many of the encoder's blocks run on the device, up to all of them.
        Asked for each device in each round.
    shares
        How the edge's compute is shared between the devices of an epoch; equally when not given.
    plan
        Decides split points and shares together, in place of `split_point` and `shares`: the two timescales of the paper. In a
        modelled cell its seconds are in all that the run records, as ``modelled_*``. With a `MeasuredCell` it decides on what the
        run has measured, and records ``predicted_*`` beside ``measured_*``.
    num_epochs, iterations_per_epoch
        Epochs in a round, and iterations in an epoch (T and J of the paper; a round is Flower's). In each iteration every
        device trains on one batch, and the cloud's module takes one step over the sum of their losses.
    quorum
        Share of the devices that closes an iteration; 1 waits for all. The batch of one that is late counts in
        the iteration in which it arrives.
    straggler_timeout_s
        Seconds that the others have once the quorum is there.
    slm_optimizer, lr_schedule
        Of the encoders, both halves alike; the factor on the rate by the device's own step. (The module's are the cloud's.)
    optimizer_handover
        Whether the optimiser's moments change hands with their layers, ``"full"``, or start from zero in each round,
        ``"reset"``.
    max_grad_norm
        Clips the gradient norm of each encoder, both halves together; None to leave it.
    uplink_codec, downlink_codec
        For smashed data up and gradients down, between device and edge.
    slm_peft
        A configuration of the `peft` library, such as ``LoraConfig``: then only adapters of the encoders train and change
        hands, instead of all their weights.
    max_new_tokens
        Tokens of an answer when devices evaluate, at most; 0 for the loss alone.
    stop
        Ends the run early.
    fraction_train, fraction_evaluate
        Share of the connected nodes that takes part in a round, and that evaluates after it; drawn anew for each.
    min_train_nodes, min_evaluate_nodes, min_available_nodes, weighted_by_key, configrecord_key
        As in Flower's FedAvg.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in Flower's FedAvg; a weighted mean when not given.
    data_address, advertised_address, tls, insecure, grace_period_s, max_message_bytes
        As in `SplitKD`.
    connect_timeout_s
        Seconds that a round waits for a called device before the others go on; it may still join them.
    step_timeout_s
        Seconds that a device may take for one batch.
    node_timeout_s
        Seconds to wait for `min_available_nodes`.
    run_folder, resume, callbacks, seed, compute_device
        As in `SplitKD`, TensorBoard events and ``figure.png`` included; a resumed run goes on after its last whole round.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """

    def __init__(
        self,
        *,
        slm: Callable[[], nn.Module],
        cloud: CloudAccess | EmbeddedCloud,
        task: str | None = None,
        module_start: Literal["cloud", "fresh"] = "cloud",
        split_point: CutPolicy | int = 1,
        shares: SharePolicy | None = None,
        plan: ChainPlan | None = None,
        num_epochs: int = 1,
        iterations_per_epoch: int = 10,
        quorum: float = 1.0,
        straggler_timeout_s: float = 1.0,
        slm_optimizer: OptimizerSettings | None = None,
        lr_schedule: LearningRateSchedule = constant,
        optimizer_handover: Literal["full", "reset"] = "full",
        max_grad_norm: float | None = None,
        uplink_codec: CodecName = "none",
        downlink_codec: CodecName = "none",
        slm_peft: PeftConfig | None = None,
        max_new_tokens: int = 32,
        stop: StopPolicy | None = None,
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
        grace_period_s: float = 15.0,
        max_message_bytes: int | None = None,
        run_folder: str | Path | None = None,
        resume: str | Path | None = None,
        callbacks: Sequence[Callback] | None = None,
        seed: int = 0,
        compute_device: str | None = None,
    ) -> None:
        for name, value in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if not 0 <= value <= 1:
                raise ConfigError(f"`{name}` is {value}; expected 0 to 1, the share of the connected nodes.")
        if optimizer_handover not in ("full", "reset"):
            raise ConfigError(f"`optimizer_handover` is {optimizer_handover!r}; expected 'full' or 'reset'.")
        if module_start not in ("cloud", "fresh"):
            raise ConfigError(f"`module_start` is {module_start!r}; expected 'cloud' or 'fresh'.")
        if run_folder and resume:
            raise ConfigError(
                f"`run_folder` is {str(run_folder)!r} and `resume` is {str(resume)!r}; expected one of them: a resumed run "
                "goes on in its own folder."
            )
        self.cloud, self.task = cloud, _task_of(cloud, task)
        self.module_start = module_start
        self.split_point_policy = FixedCut(split_point) if isinstance(split_point, int) else split_point
        self.shares_policy = shares or EqualShares()
        if plan is not None and (shares is not None or split_point != 1):
            raise ConfigError(
                "`plan` decides split points and shares; expected neither `split_point` nor `shares` beside it."
            )
        self.plan = plan
        self.planner: ChainPlanner | None = None
        self.stop = stop or NeverStop()
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes, self.min_evaluate_nodes = min_train_nodes, min_evaluate_nodes
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key, self.configrecord_key = weighted_by_key, configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or weighted_mean
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or weighted_mean
        self.connect_timeout_s, self.node_timeout_s = connect_timeout_s, node_timeout_s
        self.run_folder, self.resume, self.callbacks = run_folder, resume, callbacks
        self.setup = ChainSetup(
            slm=slm,
            settings=ChainSettings(
                seed=seed,
                num_epochs=num_epochs,
                num_iterations=iterations_per_epoch,
                optimizer=slm_optimizer or OptimizerSettings(),
                lr_schedule=lr_schedule,
                moments_travel=optimizer_handover == "full",
                max_grad_norm=max_grad_norm,
                uplink_codec=uplink_codec,
                downlink_codec=downlink_codec,
                quorum=quorum,
                straggler_timeout_s=straggler_timeout_s,
                step_timeout_s=step_timeout_s,
                max_new_tokens=max_new_tokens,
            ),
            data_address=data_address,
            advertised_address=advertised_address,
            tls=tls,
            insecure=insecure,
            compute_device=torch.device(compute_device or ("cuda" if torch.cuda.is_available() else "cpu")),
            grace_period_s=grace_period_s,
            max_message_bytes=max_message_bytes,
            slm_peft=slm_peft,
        )
        self._edge: ChainEdge | None = None
        self._message_ttl_s: float | None = None
        self._progress = ChainProgress(run="")
        self._roster: Roster | None = None

    # ---- the loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> SCCTResult:
        """Run the rounds; parameters as in Flower's `Strategy.start`.

        The arrays, here, in `evaluate_fn` and in the result, are those of the cloud's module (projection and adapter): the
        encoders belong to the devices.

        Raises
        ------
        NoDeviceError
            If too few nodes take part.
        SplitKDError
            If the models, the settings, the cloud or the run folder cannot be used.
        """
        folder = self._folder(grid)
        with folder.locked(), self._access(folder) as access:
            return self._run(
                folder, access, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            )

    def _run(
        self,
        folder: RunFolder,
        access: CloudAccess,
        grid: Grid,
        initial_arrays: ArrayRecord | None,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
    ) -> SCCTResult:
        log(INFO, "Starting %s strategy:", type(self).__name__)
        self.summary()
        started_s = time.monotonic()
        result = SCCTResult(run_folder=folder.path)
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        self._message_ttl_s = timeout
        settings = self._settings()
        if self.resume:
            log_changes(folder.read_config().get("strategy", {}), settings)
        config = folder.write_config({"strategy": settings, "versions": versions()})
        self._progress = progress = (
            ChainProgress.load(folder.path) if self.resume else ChainProgress(run=f"{grid.run.run_id}")
        )
        callbacks = Callbacks(default_callbacks() if self.callbacks is None else self.callbacks)
        self._edge = self.setup.open(
            lambda width: self._open_cloud(access, width, initial_arrays), ticket_lifetime_s=timeout
        )
        if self.plan is not None:
            self.planner = ChainPlanner(self.plan, self._edge.layout.num_blocks)
            if progress.planner:
                self.planner.load_state_dict(progress.planner)
        introduce = self.planner.introduce if self.planner is not None else None
        self._roster = Roster(None, self._edge.layout.num_blocks, introduce)
        rounds = ChainRounds(
            self, self._edge, self.setup.settings, grid, result, folder, callbacks, timeout, progress.steps
        )
        error: BaseException | None = None
        try:
            callbacks.tell("on_start", folder, config)
            callbacks.tell("on_live", live_chain(self._edge))
            log(
                INFO,
                "\t└──> Data plane at %s, cloud at %s, run folder %s",
                self._edge.server.address,
                access.address,
                folder.path,
            )
            if self.resume:
                log(INFO, "\t└──> Resumed after round %d", progress.server_round)
            else:
                progress.save(folder.path)
                self._evaluate(rounds, result, folder, callbacks, 0, evaluate_config, evaluate_fn)
            for server_round in range(progress.server_round + 1, num_rounds + 1):
                log(INFO, "")
                log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
                metrics = self._train(rounds, result, server_round, train_config)
                self._edge.cloud.end_round(progress.run, server_round)
                metrics |= self._evaluate(rounds, result, folder, callbacks, server_round, evaluate_config, evaluate_fn)
                folder.append_metrics({"kind": "round", "server_round": server_round, **metrics})
                callbacks.tell("on_round", server_round, metrics)
                progress.server_round = server_round
                if self.planner is not None:
                    progress.planner = self.planner.state_dict()
                progress.save(folder.path)
                result.stopped = self.stop.reason(metrics) or ""
                if result.stopped:
                    log(INFO, "Stopping after round %s: %s", server_round, result.stopped)
                    break
            result.arrays = records.arrays_from_state(self._edge.cloud.weights())
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                self._edge.close()
            finally:
                self._edge = None
                callbacks.tell("on_end", error)
        log(INFO, "Finished in %.1f s; everything is in %s", time.monotonic() - started_s, folder.path)
        return result

    def _train(
        self, rounds: ChainRounds, result: SCCTResult, server_round: int, config: ConfigRecord
    ) -> dict[str, float]:
        _, metrics = self.aggregate_train(server_round, rounds.train(server_round, config))
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.train_metrics_clientapp[server_round] = metrics
        return scalar_metrics(metrics)

    def _evaluate(
        self,
        rounds: ChainRounds,
        result: SCCTResult,
        folder: RunFolder,
        callbacks: Callbacks,
        server_round: int,
        config: ConfigRecord,
        evaluate_fn: EvaluateFn | None,
    ) -> dict[str, float]:
        """Evaluate on the devices, if the strategy says so, and by the user's function."""
        found: dict[str, float] = {}
        if self.fraction_evaluate > 0:
            metrics = self.aggregate_evaluate(server_round, rounds.evaluate(server_round, config))
            if metrics is not None:
                log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
                result.evaluate_metrics_clientapp[server_round] = metrics
                found |= scalar_metrics(metrics)
        if evaluate_fn is not None:
            metrics = evaluate_fn(server_round, records.arrays_from_state(self._open_edge().cloud.weights()))
            if metrics is not None:
                log(INFO, "Global evaluation\n\t└──> MetricRecord: %s", metrics)
                result.evaluate_metrics_serverapp[server_round] = metrics
                found |= scalar_metrics(metrics)
        if found and self.planner is not None and self.planner.measured is None:
            found["modelled_clock_s"] = self.planner.clock_s
        if found:
            folder.append_metrics({"kind": "evaluation", "server_round": server_round, **found})
            callbacks.tell("on_evaluation", server_round, found)
        return found

    # ---- who is called

    def called(self, grid: Grid, server_round: int, config: ConfigRecord, mode: str) -> list[Called]:
        """Make the messages of a round's devices; each opens its session on the data plane.

        Raises
        ------
        NoDeviceError
            If too few nodes are connected.
        """
        edge, roster = self._open_edge(), self._roster
        fraction, minimum = {
            "train": (self.fraction_train, self.min_train_nodes),
            "evaluate": (self.fraction_evaluate, self.min_evaluate_nodes),
        }[mode]
        online = wait_for_nodes(grid, max(self.min_available_nodes, minimum, 1), self.node_timeout_s)
        if roster is not None:
            roster.enrol(grid, online, self.connect_timeout_s)
        names = _unique(roster.names(online) if roster is not None else {}, online)
        places = self._progress.place(names.values())
        by_place = sorted(online, key=lambda node_id: places[names[node_id]])
        count = min(max(int(len(online) * fraction), minimum), len(online))
        seed = self.setup.settings.seed
        nodes = sample_nodes(by_place, count, seed=seed, server_round=server_round, evaluating=mode == "evaluate")
        log(INFO, "configure_%s: %s devices at once, %s nodes connected", mode, len(nodes), len(online))
        made = []
        for node_id in nodes:
            session = edge.expect(run_id=grid.run.run_id, node_id=node_id, server_round=server_round)
            content = RecordDict({self.configrecord_key: _with_round(config, server_round)})
            TurnTicket(
                session_id=session.ticket.session_id,
                token=session.ticket.token,
                address=edge.server.address,
                root_certificate=edge.server.root_certificate,
                server_round=server_round,
                tied_embeddings="refuse",
                peft=peft_to_json(self.setup.slm_peft),
                run=self._progress.run,
            ).into(content)
            kind = MessageType.EVALUATE if mode == "evaluate" else MessageType.TRAIN
            message = Message(content=content, message_type=kind, dst_node_id=node_id, ttl=self._message_ttl_s)
            made.append(Called(message, session, places[names[node_id]], names[node_id]))
        return made

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages of a round; `arrays` do not travel in them."""
        return (one.message for one in self.called(grid, server_round, config, "train"))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages of a round's evaluation; `arrays` do not travel in them."""
        return (one.message for one in self.called(grid, server_round, config, "evaluate"))

    def split_point(self, device: DeviceView) -> int:
        """Ask the policy how many blocks a device runs in this round."""
        chosen = self.split_point_policy.choose(device)
        return chosen.cut if isinstance(chosen, Decision) else chosen

    def shares(self, devices: Sequence[DeviceView]) -> Sequence[float]:
        """Ask the policy for each device's share of the edge in this epoch."""
        return self.shares_policy.share(devices)

    # ---- what they answered

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the metrics of a round; the weights stay where they are, so no arrays."""
        return None, self._aggregate(server_round, replies, self.train_metrics_aggr_fn)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the metrics of a round's evaluation."""
        return self._aggregate(server_round, replies, self.evaluate_metrics_aggr_fn)

    def summary(self) -> None:
        """Log the strategy's settings."""
        settings = self.setup.settings
        log(
            INFO,
            "\t├──> Nodes: fraction train %.2f, evaluate %.2f; at least %d available",
            self.fraction_train,
            self.fraction_evaluate,
            self.min_available_nodes,
        )
        log(
            INFO,
            "\t├──> A round: %d epochs of %d iterations, quorum %g",
            settings.num_epochs,
            settings.num_iterations,
            settings.quorum,
        )
        log(
            INFO,
            "\t├──> Encoders: %s, learning rate %g; codecs: uplink %s, downlink %s",
            settings.optimizer.name,
            settings.optimizer.learning_rate,
            settings.uplink_codec,
            settings.downlink_codec,
        )
        where = "in a process next to the edge" if isinstance(self.cloud, EmbeddedCloud) else self.cloud.address
        log(INFO, "\t├──> Cloud: %s, task %s", where, self.task)

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

    # ---- the cloud, and where things lie

    @contextmanager
    def _access(self, folder: RunFolder) -> Iterator[CloudAccess]:
        """Where the cloud is; one next to the edge lives for the ``with`` block."""
        if isinstance(self.cloud, CloudAccess):
            yield self.cloud
            return
        with self.cloud.running(folder.path / "cloud") as (address, edge, token):
            yield CloudAccess(address=address, edge=edge, token=token, task=self.task)

    def _open_cloud(self, access: CloudAccess, width: int, initial_arrays: ArrayRecord | None) -> CloudLink:
        link = CloudLink(access, encoder_width=width)
        try:
            run, server_round = self._progress.run, self._progress.server_round
            if self.resume:
                link.open(pb.TASK_START_ROUND, run=run, server_round=server_round)
            elif initial_arrays:
                link.open(pb.TASK_START_GIVEN, run=run, state=_module_state(initial_arrays))
            else:
                link.open(pb.TASK_START_CONTINUE if self.module_start == "cloud" else pb.TASK_START_FRESH, run=run)
        except BaseException:
            link.close()
            raise
        return link

    def _folder(self, grid: Grid) -> RunFolder:
        if self.resume:
            return RunFolder.existing(self.resume)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        return RunFolder(Path(self.run_folder) if self.run_folder else Path("runs") / f"{stamp}-{grid.run.run_id}")

    def _settings(self) -> dict[str, Any]:
        own = {name: describe(value) for name, value in vars(self).items() if name in _SETTINGS}
        if isinstance(self.cloud, CloudAccess):
            own["cloud"] = {"address": self.cloud.address, "edge": self.cloud.edge}  # not its secret
        own["split_point"] = describe(self.split_point_policy)
        # As text: what asks a run builds the same encoder from it.
        return {"name": "SCCT", **own, **describe(self.setup), "slm_peft": peft_to_json(self.setup.slm_peft)}

    def _open_edge(self) -> ChainEdge:
        if self._edge is None:
            raise ConfigError("The edge is not open; expected `start` of SCCT itself to be running.")
        return self._edge


def _task_of(cloud: CloudAccess | EmbeddedCloud, task: str | None) -> str:
    if isinstance(cloud, CloudAccess):
        if task not in (None, cloud.task):
            raise ConfigError(f"`task` is {task!r} and `cloud` names {cloud.task!r}; expected one of the two.")
        return cloud.task
    names = sorted(cloud.tasks)
    if task is None and len(names) == 1:
        return names[0]
    if task not in names:
        raise ConfigError(f"`task` is {task!r}; expected one of {names}, the tasks of the embedded cloud.")
    return task


def _unique(names: dict[int, str], online: Sequence[int]) -> dict[int, str]:
    """A name for each node: what it says it is called, or its id where it says nothing or what another one says too."""
    said = list(names.values())
    return {
        node_id: names[node_id] if node_id in names and said.count(names[node_id]) == 1 else str(node_id)
        for node_id in online
    }


def _module_state(arrays: ArrayRecord) -> dict[str, Tensor]:
    return {f"weight/{name}": torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def _with_round(config: ConfigRecord, server_round: int) -> ConfigRecord:
    """A copy: the caller's record is not ours to change."""
    copy = ConfigRecord(dict(config))
    copy[records.SERVER_ROUND] = server_round
    return copy
