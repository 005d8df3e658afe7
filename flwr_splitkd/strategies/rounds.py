"""The rounds of a run: serve the called devices one after another, or cluster after cluster, collect replies, evaluate."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import INFO
from typing import Any, Protocol, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from flwr_splitkd import records
from flwr_splitkd.errors import ConfigError, CutError, InfeasibleError, NoDeviceError, SplitKDError, StoreError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.schedulers import DeviceView
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies import console
from flwr_splitkd.strategies.callbacks import Callbacks
from flwr_splitkd.strategies.clusters import Planned, serve_together, short_of_devices
from flwr_splitkd.strategies.console import log
from flwr_splitkd.strategies.metrics import scalar_metrics
from flwr_splitkd.strategies.planner import PlannedTurn
from flwr_splitkd.strategies.progress import Progress, Unfinished
from flwr_splitkd.strategies.replies import Replies
from flwr_splitkd.strategies.result import SplitKDResult, TurnRecord
from flwr_splitkd.strategies.turns import Call, CallWindow, GaveUp
from flwr_splitkd.telemetry.spans import LocatedSpan
from flwr_splitkd.telemetry.trace import trace_events
from flwr_splitkd.tiers.edge import EdgeService, TurnMode, TurnOutcome
from flwr_splitkd.wire.codec import CodecName

__all__ = ["Director", "EvaluateFn", "RoundRunner", "wait_for_nodes"]

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_REPLY_TIMEOUT_S = 60.0
_NODE_POLL_S = 1.0


class Director(Protocol):
    """What a round asks of its strategy."""

    connect_timeout_s: float
    cluster_size: int

    def calls(
        self, grid: Grid, server_round: int, config: ConfigRecord, mode: TurnMode, nodes: Sequence[int]
    ) -> Iterable[Call]:
        """Yield the calls of these nodes, or of the round, in order."""

    def remember(self) -> Progress:
        """Return where the run stands, with the state of the policies."""

    def may_call_ahead(self, grid: Grid) -> bool:
        """Return whether the next round's devices can be called before this one is evaluated."""

    def plan_turn(self, device: DeviceView) -> PlannedTurn:
        """Return a turn's cut and local epochs, and what they are expected to cost."""

    def evaluation_cut(self, device: DeviceView) -> int:
        """Return the cut of an evaluation."""

    def pay(self, device: DeviceView, planned: PlannedTurn) -> dict[str, Any]:
        """Let a modelled turn take place, before the turn itself; return what it took."""

    def pay_together(self, turns: Sequence[tuple[DeviceView, PlannedTurn]]) -> list[dict[str, Any]]:
        """Let the modelled turns of a cluster take place, as `pay` does one."""

    def refund(self) -> None:
        """Take the last payment back, of a turn or a cluster that was lost."""

    def learn(
        self, device: DeviceView, planned: PlannedTurn, outcome: TurnOutcome, paid: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Learn from a completed turn; return what to record of it beside what was paid."""

    def totals(self) -> dict[str, float]:
        """Return what the run has cost so far, where costs are modelled."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies of a round's turns."""

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the replies of a round's evaluation."""


class RoundRunner:
    """What happens in a round, for one run.

    Parameters
    ----------
    strategy
        Decides who is called and with which cut, and aggregates.
    edge
        Serves the turns.
    grid
        Carries Flower's messages.
    result, folder
        Where turns and metrics are recorded.
    callbacks
        Told of each turn and evaluation.
    progress
        Where the run stands; kept up to date.
    timeout_s
        Bound on the wait for Flower's replies at a round's end.
    """

    def __init__(
        self,
        strategy: Director,
        edge: EdgeService,
        grid: Grid,
        result: SplitKDResult,
        folder: RunFolder,
        callbacks: Callbacks,
        progress: Progress,
        timeout_s: float,
    ) -> None:
        self._strategy, self._edge, self._grid, self._progress = strategy, edge, grid, progress
        self._result, self._folder, self._callbacks = result, folder, callbacks
        self._reply_timeout_s = min(timeout_s, _REPLY_TIMEOUT_S)
        self._started_s = time.monotonic()
        self._ahead: CallWindow | None = None
        self._pids: dict[str, int] = {}

    def train(self, server_round: int, config: ConfigRecord, *, call_ahead: bool = False) -> dict[str, float]:
        """Serve a round's turns; return their metrics.

        With `call_ahead` the first devices of the next round are called, if they may be, as soon as nobody is left to serve:
        they start while the edge waits for Flower's replies and evaluates. See `call_off`.

        Raises
        ------
        NoDeviceError
            If not one turn was completed.
        """
        turns, replies = self._serve_all(server_round, config, "train", call_ahead=call_ahead)
        if turns and not self._progress.served:
            reasons = "; ".join(f"{turn.device or turn.node_id}: {turn.error}" for turn in turns)
            raise NoDeviceError(
                f"Round {server_round} had {len(turns)} turns and completed 0; expected at least 1. {reasons}"
            )
        _, metrics = self._strategy.aggregate_train(server_round, replies)
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            self._result.train_metrics_clientapp[server_round] = metrics
        return scalar_metrics(metrics) | self._strategy.totals()

    def call_off(self, reason: str) -> None:
        """Send those away who were called for a round that does not take place."""
        window, self._ahead = self._ahead, None
        for call in window.waiting if window else ():
            self._edge.dismiss(call.session, reason)

    def evaluate(self, server_round: int, config: ConfigRecord) -> dict[str, float]:
        """Evaluate on the devices, if the strategy says so; return the metrics."""
        _, replies = self._serve_all(server_round, config, "evaluate")
        metrics = self._strategy.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            self._result.evaluate_metrics_clientapp[server_round] = metrics
        return scalar_metrics(metrics)

    def deliver(self, server_round: int, config: ConfigRecord) -> None:
        """Give every connected device the whole student; one that cannot take it is reported and left out."""
        turns, _ = self._serve_all(server_round, config, "deliver")
        delivered = sum(turn.outcome is not None for turn in turns)
        log(INFO, "\t└──> Delivered the student to %d of %d devices", delivered, len(turns))

    def evaluate_on_server(self, server_round: int, evaluate_fn: EvaluateFn | None) -> dict[str, float]:
        """Call the user's evaluation with the whole student; return its metrics."""
        if evaluate_fn is None:
            return {}
        arrays = records.arrays_from_model(self._edge.student.whole)
        self._edge.free_clock()  # evaluating is no pause
        metrics = evaluate_fn(server_round, arrays)
        if metrics is not None:
            log(INFO, "Global evaluation\n\t└──> MetricRecord: %s", metrics)
            self._result.evaluate_metrics_serverapp[server_round] = metrics
            line = {
                "kind": "evaluation",
                "server_round": server_round,
                **scalar_metrics(metrics),
                **self._strategy.totals(),
            }
            self._folder.append_metrics(line)
            self._callbacks.tell("on_evaluation", server_round, scalar_metrics(metrics))
        return scalar_metrics(metrics)

    def _serve_all(
        self, server_round: int, config: ConfigRecord, mode: TurnMode, *, call_ahead: bool = False
    ) -> tuple[list[TurnRecord], list[Message]]:
        """Serve every device of the round that comes; return what became of each, and Flower's replies.

        A device that was lost and has not come back by itself is called once more at the end.
        """
        turns: list[TurnRecord] = []
        replies = Replies(self._grid)
        window = self._called_ahead(server_round) if mode == "train" else None
        window = window or self._window(server_round, config, mode)
        if lost := self._serve_calls(window, server_round, mode, turns, replies):
            log(INFO, "\tcalling %d lost devices again", len(lost))
            self._serve_calls(self._window(server_round, config, mode, lost), server_round, mode, turns, replies)
        # Not before: a node that was lost must not be called for two rounds at a time.
        if call_ahead and self._progress.served and self._strategy.may_call_ahead(self._grid):
            self._ahead = self._window(server_round + 1, config, mode)
            self._ahead.call_ahead()
        return turns, replies.collect(self._reply_timeout_s)

    def _window(self, server_round: int, config: ConfigRecord, mode: TurnMode, nodes: Sequence[int] = ()) -> CallWindow:
        """Calls for some nodes, or those of the round."""
        return CallWindow(
            self._grid,
            self._strategy.calls(self._grid, server_round, config, mode, nodes),
            wait_for=self._wait_for,
            connect_timeout_s=self._strategy.connect_timeout_s,
            on_overdue=console.log_overdue,
            cluster_size=self._strategy.cluster_size if mode == "train" else 1,
            on_short=lambda there, expected: short_of_devices(self._grid, there, expected),
        )

    def _called_ahead(self, server_round: int) -> CallWindow | None:
        """Begin the round with the calls that are under way, if there are any."""
        window, self._ahead = self._ahead, None
        if window is not None:
            self._progress.begin_round(server_round, self._progress.next_order)
        return window

    def _serve_calls(
        self, window: CallWindow, server_round: int, mode: TurnMode, turns: list[TurnRecord], replies: Replies
    ) -> list[int]:
        """Serve whoever comes; return the nodes that could come if called again."""
        lost: list[int] = []
        waiting_since_s = time.monotonic()
        together = mode == "train" and self._strategy.cluster_size > 1
        for item in window.clusters() if together else window:
            wait_s = time.monotonic() - waiting_since_s
            if isinstance(item, list):
                calls = [call for call in item if not self._is_dismissed(call, mode, replies)]
                for call, turn in self._serve_cluster(calls, server_round, len(turns) + 1, wait_s):
                    self._settle(call, turn, window, replies)
                    turns.append(turn)
                    self._record(turn)
                replies.pull(window.replies)
                waiting_since_s = time.monotonic()
                continue
            if isinstance(item, GaveUp):
                self._edge.server.end(item.call.session)
                if item.may_come:
                    lost.append(item.call.node_id)
                turn = TurnRecord(
                    server_round=server_round,
                    turn=len(turns) + 1,
                    num_turns=item.call.num_turns,
                    node_id=item.call.node_id,
                    device="",
                    mode=mode,
                    error=item.reason,
                    fault=item.fault,
                )
                replies.give_up(item.call)
            elif self._is_dismissed(item, mode, replies):
                continue
            else:
                turn = self._serve(item, server_round, len(turns) + 1, mode, wait_s, window)
                self._settle(item, turn, window, replies)
            turns.append(turn)
            self._record(turn)
            replies.pull(window.replies)
            waiting_since_s = time.monotonic()
        replies.pull(window.replies)
        return lost

    @staticmethod
    def _settle(call: Call, turn: TurnRecord, window: CallWindow, replies: Replies) -> None:
        """Say what is awaited of a device after its turn: a reply, itself again, or nothing."""
        if turn.outcome is not None:
            replies.expect(call)
        elif call.session.ended_s is None:  # of a lost device Flower says so only a minute later
            window.again(call)
        else:
            replies.give_up(call)

    def _is_dismissed(self, call: Call, mode: TurnMode, replies: Replies) -> bool:
        """Send a device away that had its turn before the run was resumed, as a node of another id."""
        name = call.session.hello.device_name if call.session.hello else ""
        if mode != "train" or not self._progress.had_turn(call.node_id, name):
            return False
        reason = f"device {name} had its turn in round {self._progress.server_round} before the run was resumed"
        log(INFO, "\t%s", reason)
        self._edge.dismiss(call.session, reason)
        replies.give_up(call)
        return True

    def _serve(
        self, call: Call, server_round: int, turn: int, mode: TurnMode, wait_s: float, window: CallWindow
    ) -> TurnRecord:
        progress = self._progress
        device, base = self._introduce(call, server_round, turn, 0, mode, wait_s)
        try:
            planned = self._planned(device, mode)
            paid = self._strategy.pay(device, planned) if mode == "train" else {}
        except InfeasibleError as error:
            self._edge.dismiss(call.session, f"the device is left out of round {server_round}: {error}")
            return replace(base, error=str(error), fault=fault_of(error))
        base = replace(base, local_epochs=planned.local_epochs, costs=planned.to_json())
        console.log_plan(device, planned)
        part = progress.unfinished.get(call.node_id) if mode == "train" else None
        info = {
            "server_round": server_round,
            "turn": turn,
            "node_id": call.node_id,
            "device": device.name,
            "progress": self._strategy.remember().to_json(),
        }
        before = self._edge.student.last_commit
        base = replace(base, started_s=time.monotonic() - self._started_s)
        try:
            outcome = self._edge.serve(
                call.session,
                mode=mode,
                cut=planned.cut,
                local_epochs=planned.local_epochs,
                info=info,
                done_steps=part.done_steps if part else 0,
                order_step=part.order_step if part else None,
                run=progress.run,
                codec=cast("CodecName | None", planned.codec),
                frequency_hz=planned.frequency_hz,
                waiting=lambda: [other.session for other in window.waiting],
            )
        except SplitKDError as error:
            self._strategy.refund()
            # Not the device's fault: the next one would meet the same. A student that is done is not lost for that.
            if mode != "deliver" and isinstance(error, ConfigError | CutError | StoreError):
                raise
            return replace(base, error=str(error) + self._keep_part(call.node_id, before), fault=fault_of(error))
        if mode == "train":
            progress.complete(call.node_id, device.name)
            learnt = self._strategy.learn(device, planned, outcome, paid)
            base = replace(base, costs={**base.costs, **paid, **learnt})
        return replace(base, outcome=outcome)

    def _serve_cluster(
        self, calls: Sequence[Call], server_round: int, turn: int, wait_s: float
    ) -> list[tuple[Call, TurnRecord]]:
        """Serve the turns of connected devices at the same time; `turn` is the first one's."""
        left_out: list[tuple[Call, TurnRecord]] = []
        decided: list[tuple[Call, DeviceView, PlannedTurn, TurnRecord]] = []
        for position, call in enumerate(calls):
            device, base = self._introduce(call, server_round, turn + position, position, "train", wait_s)
            try:
                planned = self._planned(device, "train")
            except InfeasibleError as error:
                self._edge.dismiss(call.session, f"the device is left out of round {server_round}: {error}")
                left_out.append((call, replace(base, error=str(error), fault=fault_of(error))))
                continue
            console.log_plan(device, planned)
            decided.append((call, device, planned, base))
        if not decided:
            return left_out
        try:
            paid = self._strategy.pay_together([(device, planned) for _, device, planned, _ in decided])
        except InfeasibleError as error:
            for call, _, _, base in decided:
                self._edge.dismiss(call.session, f"the cluster is left out of round {server_round}: {error}")
                left_out.append((call, replace(base, error=str(error), fault=fault_of(error))))
            return left_out
        cluster = [
            Planned(
                call=call,
                device=device,
                turn=planned,
                paid=its_paid,
                record=replace(base, local_epochs=planned.local_epochs, costs=planned.to_json()),
            )
            for (call, device, planned, base), its_paid in zip(decided, paid, strict=True)
        ]
        info = {"server_round": server_round, "turn": turn, "progress": self._strategy.remember().to_json()}
        started_s = time.monotonic() - self._started_s
        records = serve_together(self._edge, cluster, info=info, run=self._progress.run, started_s=started_s)
        if all(record.outcome is None for record in records):
            self._strategy.refund()
        served = []
        for one, record in zip(cluster, records, strict=True):
            if record.outcome is not None:
                self._progress.complete(one.call.node_id, one.device.name)
                learnt = self._strategy.learn(one.device, one.turn, record.outcome, one.paid)
                record = replace(record, costs={**record.costs, **one.paid, **learnt})
            served.append((one.call, record))
        return left_out + served

    def _introduce(
        self, call: Call, server_round: int, turn: int, position: int, mode: TurnMode, wait_s: float
    ) -> tuple[DeviceView, TurnRecord]:
        """Who has come, for the policies, and the beginning of its record; `position` counts within its cluster."""
        hello = call.session.hello
        if hello is None:
            raise ValueError("Only a connected device can be served.")
        device = DeviceView(
            node_id=call.node_id,
            name=hello.device_name,
            server_round=server_round,
            turn=self._progress.num_turns + position,
            num_blocks=self._edge.student.layout.num_blocks,
            num_examples=hello.num_examples,
            num_batches=hello.num_batches,
        )
        record = TurnRecord(
            server_round=server_round,
            turn=turn,
            num_turns=call.num_turns,
            node_id=call.node_id,
            device=device.name,
            mode=mode,
            wait_s=wait_s,
        )
        return device, record

    def _planned(self, device: DeviceView, mode: TurnMode) -> PlannedTurn:
        if mode == "deliver":
            return PlannedTurn(cut=device.num_blocks, local_epochs=0)
        if mode == "train":
            return self._strategy.plan_turn(device)
        return PlannedTurn(cut=self._strategy.evaluation_cut(device), local_epochs=1)

    def _keep_part(self, node_id: int, commit_before: str) -> str:
        """Remember what a failed turn has committed, and say so."""
        student = self._edge.student
        if student.last_commit == commit_before:
            return ""
        info = student.last_info
        self._progress.unfinished[node_id] = Unfinished(info["order_step"], info["done_steps"])
        return f" (its first {info['done_steps']} steps are kept in commit {student.last_commit})"

    def _record(self, turn: TurnRecord) -> None:
        self._result.turns.append(turn)
        self._folder.append_metrics(turn.to_json())
        if turn.outcome is not None and turn.outcome.spans:
            self._record_spans(turn, turn.outcome.spans)
        console.log_turn(turn)
        self._callbacks.tell("on_turn", turn)

    def _record_spans(self, turn: TurnRecord, spans: Sequence[LocatedSpan]) -> None:
        """A line for each step, and the turn's part of the trace."""
        for step, stages in itertools.groupby(sorted(spans, key=lambda span: span.step), key=lambda span: span.step):
            self._folder.append_metrics(
                {
                    "kind": "step",
                    "server_round": turn.server_round,
                    "turn": turn.turn,
                    "device": turn.device,
                    "step": step,
                    "spans": [[s.where, s.stage, s.microbatch, s.start_s, s.duration_s] for s in stages],
                }
            )
        pid = self._pids.setdefault(turn.device, len(self._pids) + 1)
        self._folder.append_trace(trace_events(spans, device=turn.device, pid=pid, began_s=turn.started_s))

    def _wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        with self._edge.server.changed:
            return self._edge.server.changed.wait_for(predicate, timeout_s)


def wait_for_nodes(grid: Grid, minimum: int, timeout_s: float) -> list[int]:
    """Wait until enough nodes are connected; return their ids.

    Raises
    ------
    NoDeviceError
        If they are not within `timeout_s` seconds.
    """
    deadline_s = time.monotonic() + timeout_s
    announced = False
    while len(online := sorted(grid.get_node_ids())) < minimum:
        if time.monotonic() > deadline_s:
            raise NoDeviceError(
                f"{len(online)} nodes are connected after {timeout_s:g} s; expected at least {minimum}. Start more "
                "SuperNodes, raise `node_timeout_s`, or lower `min_available_nodes`."
            )
        if not announced:
            log(INFO, "Waiting for nodes: %s connected, at least %s needed", len(online), minimum)
            announced = True
        time.sleep(_NODE_POLL_S)
    return online
