"""A run of `SplitKD` or `SCCT` as metrics.

What a turn tells is counted when it is over; what changes in its midst (sessions, bytes, faults of connections, commits) is asked
for when somebody reads. Counters begin at 0 with the process, also of a resumed run: Prometheus reckons with that.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import Metric

from flwr_splitkd.callbacks import LiveReading
from flwr_splitkd.faults import FAULTS, OTHER, RESTARTED, RESUMED
from flwr_splitkd.report.prometheus.families import Asked, counters, gauges, new_registry, number

if TYPE_CHECKING:
    from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
    from flwr_splitkd.strategies.result import TurnRecord
    from flwr_splitkd.tiers.edge import TurnOutcome
    from flwr_splitkd.tiers.edge.chain import DeviceOutcome

__all__ = ["DURATIONS_S", "RunMetrics"]

DURATIONS_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
"""Upper bounds of the histogram of turns: from simulations of small models to devices that train for hours."""

_MODES = {"SplitKD": ("train", "evaluate", "deliver"), "SCCT": ("train", "evaluate")}
_STAGES = {
    "SplitKD": (
        *(("device", "compute"), ("edge", "student"), ("edge", "teacher"), ("edge", "wait")),
        *(("network", "uplink"), ("network", "downlink")),
        *(("turn", "build_and_commit"), ("turn", "other"), ("turn", "cluster_wait")),
    ),
    "SCCT": (
        *(("device", "compute"), ("edge", "compute"), ("edge", "queue"), ("cloud", "compute")),
        *(("network", "uplink"), ("network", "downlink")),
    ),
}
_STREAM_FAULTS = ("corrupt", "handshake", "protocol", "timeout", RESUMED, RESTARTED)
_ENERGY: dict[str, tuple[str, tuple[str, ...]]] = {
    "predicted_j": ("planned", ()),
    "modelled_j": ("modelled", ()),
    "measured_device_j": ("measured", ("device",)),
    "measured_edge_j": ("measured", ("edge",)),
}
"""What a turn's costs may tell of joules: whose word it is, and where they were spent."""
_ENERGY_TEXTS = {
    "planned": "Expected of the turns that were completed, both sides.",
    "modelled": "Of completed turns, both sides, by the cost model.",
    "measured": "Of completed turns, by sensors.",
}
_MOST_EVALUATED = 64
"""Metrics of evaluations, whose names are the user's: as many as anybody looks at, and no more series than that."""


class RunMetrics:
    """The metrics of one run; told by the run's thread, read by those of the server.

    Parameters
    ----------
    run
        Name of its folder.
    config
        What ``config.json`` holds.
    max_devices
        Devices that have series of their own.
    """

    def __init__(self, run: str, config: Mapping[str, Any], *, max_devices: int) -> None:
        strategy = config.get("strategy", {})
        self._kind = "SCCT" if strategy.get("name") == "SCCT" else "SplitKD"
        self.registry = new_registry(config.get("versions", {}))
        self._read: Callable[[], LiveReading] = LiveReading
        self._lock = threading.Lock()  # guards what follows
        self._faults = dict.fromkeys(FAULTS, 0)
        self._energy_j = _known_energy(strategy.get("planner"))
        self._num_iterations = 0
        self._newest_epoch: EpochRecord | None = None
        self._evaluated: dict[str, float] = {}
        self._devices: set[str] = set()
        self._omitted: set[str] = set()
        self._max_devices = max_devices
        self._newest_wait_s = 0.0
        self._define(run)
        self.registry.register(Asked(self._asked))

    def _define(self, run: str) -> None:
        registry = self.registry
        about = Info("splitkd_run", "The run that is served here.", registry=registry)
        about.info({"run": run, "strategy": self._kind})
        started = Gauge(
            "splitkd_run_start_time_seconds", "When it, or its continuation, began (Unix time).", registry=registry
        )
        started.set(time.time())
        self._round = Gauge("splitkd_round", "The round of the newest turn, or that is over.", registry=registry)
        self._rounds = Counter("splitkd_rounds", "Rounds that are over.", registry=registry)
        self._turns = Counter(
            "splitkd_turns",
            "Turns (of the chain, parts in a round) that are over.",
            ["mode", "outcome"],
            registry=registry,
        )
        self._durations = Histogram(
            "splitkd_turn_duration_seconds",
            "Seconds of completed turns.",
            ["mode"],
            buckets=DURATIONS_S,
            registry=registry,
        )
        self._tokens = Counter("splitkd_tokens", "Labels that counted in completed turns.", ["mode"], registry=registry)
        self._stages = Counter(
            "splitkd_stage_seconds", "Where the seconds of completed turns went.", ["where", "stage"], registry=registry
        )
        self._handover = Counter(
            "splitkd_handover_bytes", "Layers and moments that changed hands.", ["direction"], registry=registry
        )
        self._loss = Gauge(
            "splitkd_loss", "Of the newest completed turn; of the chain, epoch.", ["mode"], registry=registry
        )
        for mode in _MODES[self._kind]:
            self._durations.labels(mode)
            self._tokens.labels(mode)
            for outcome in ("completed", "failed"):
                self._turns.labels(mode, outcome)
        for where, stage in _STAGES[self._kind]:
            self._stages.labels(where, stage)
        for direction in ("uplink", "downlink"):
            self._handover.labels(direction)
        if self._kind == "SCCT":
            self._define_chain()
        self._define_devices()

    def _define_chain(self) -> None:
        registry = self.registry
        self._epoch_seconds = Counter("splitkd_epoch_seconds", "Seconds of epochs.", registry=registry)
        self._missed = Counter(
            "splitkd_missed_iterations", "How often an iteration was closed without a device.", registry=registry
        )

    def _define_devices(self) -> None:
        def of_device(name: str, text: str) -> Gauge:
            return Gauge(f"splitkd_device_{name}", text, ["device"], registry=self.registry)

        self._device_loss = of_device("loss", "Of the device's newest completed turn.")
        self._device_seconds = of_device("turn_seconds", "Of the device's newest completed turn.")
        self._device_rate = of_device("tokens_per_second", "In the device's newest completed turn.")
        self._device_cut = of_device("cut", "Blocks on the device in its newest completed turn.")
        self._device_seen = of_device("last_turn_time_seconds", "When its newest completed turn ended (Unix time).")

    # ---- what the run tells

    def watch(self, read: Callable[[], LiveReading]) -> None:
        """Ask this whenever somebody reads."""
        self._read = read

    def turn(self, turn: TurnRecord) -> None:
        """Count a turn of `SplitKD`."""
        self._round.set(turn.server_round)
        self._wait(turn)
        outcome = turn.outcome
        if outcome is None:
            self._failed(turn.mode, turn.fault)
            return
        self._completed(turn.mode, outcome.duration_s)
        self._handover.labels("uplink").inc(outcome.handover_uplink_bytes)
        self._handover.labels("downlink").inc(outcome.handover_downlink_bytes)
        if turn.mode == "deliver":  # nothing else was measured
            return
        self._tokens.labels(turn.mode).inc(outcome.num_tokens)
        self._loss.labels(turn.mode).set(outcome.loss)
        self._add_stages(
            {
                ("device", "compute"): outcome.device_s,
                ("edge", "student"): outcome.edge_s - outcome.teacher_s,
                ("edge", "teacher"): outcome.teacher_s,
                ("network", "uplink"): outcome.uplink_s,
                ("network", "downlink"): outcome.downlink_s,
                ("turn", "build_and_commit"): outcome.fixed_s,
                ("turn", "cluster_wait"): outcome.cluster_wait_s,
                ("turn", "other"): outcome.other_s,
            }
        )
        if turn.mode == "train":
            self._energy(turn.costs)
            self._show_device(turn.device, outcome, outcome.cut)

    def device(self, device: DeviceRecord) -> None:
        """Count a device's part in a round of the chain."""
        self._round.set(device.server_round)
        outcome = device.outcome
        if outcome is None:
            self._failed(device.mode, device.fault)
            return
        self._completed(device.mode, outcome.duration_s)
        self._tokens.labels(device.mode).inc(outcome.num_tokens)
        self._handover.labels("uplink").inc(outcome.uplink_handover_bytes)
        self._handover.labels("downlink").inc(outcome.downlink_handover_bytes)
        self._add_stages(
            {
                ("device", "compute"): outcome.device_s,
                ("edge", "compute"): outcome.edge_s,
                ("edge", "queue"): outcome.edge_wait_s,
                ("cloud", "compute"): outcome.cloud_s,
                ("network", "uplink"): outcome.uplink_s,
                ("network", "downlink"): outcome.downlink_s,
            }
        )
        if device.mode == "train":
            self._show_device(device.device, outcome, outcome.split_point)

    def epoch(self, epoch: EpochRecord) -> None:
        """Count an epoch of the chain."""
        self._round.set(epoch.server_round)
        self._loss.labels("train").set(epoch.loss)
        with self._lock:
            self._num_iterations += epoch.num_iterations
            self._newest_epoch = epoch
        self._epoch_seconds.inc(epoch.seconds)
        self._missed.inc(epoch.num_missed)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Show an evaluation in the place of the one before."""
        found = {name: value for name, one in metrics.items() if (value := number(one)) is not None}
        with self._lock:
            merged = {**self._evaluated, **found}
            self._evaluated = dict(list(merged.items())[:_MOST_EVALUATED])

    def round(self, server_round: int) -> None:
        """Count a round."""
        self._round.set(server_round)
        self._rounds.inc()

    # ---- inside

    def _wait(self, turn: TurnRecord) -> None:
        # Turns of a cluster share one wait, and have the same number to the last bit.
        if turn.wait_s != self._newest_wait_s:
            self._add_stages({("edge", "wait"): turn.wait_s})
        self._newest_wait_s = turn.wait_s

    def _completed(self, mode: str, duration_s: float) -> None:
        self._turns.labels(mode, "completed").inc()
        self._durations.labels(mode).observe(duration_s)

    def _failed(self, mode: str, fault: str) -> None:
        self._turns.labels(mode, "failed").inc()
        with self._lock:
            self._faults[fault if fault in FAULTS else OTHER] += 1

    def _add_stages(self, seconds: Mapping[tuple[str, str], float]) -> None:
        for labels, value in seconds.items():
            # Where micro-batches are in flight stages overlap, and what no stage explains is then less than nothing. One NaN, such
            # as a cloud may claim, would stay in the sum.
            if 0 < value < math.inf:
                self._stages.labels(*labels).inc(value)

    def _energy(self, costs: Mapping[str, Any]) -> None:
        """Add what is known; of what is not there is no series, rather than one of zeros."""
        for name, (word, where) in _ENERGY.items():
            joules = number(costs.get(name))
            if joules is None or not 0 <= joules < math.inf:
                continue
            with self._lock:
                sums = self._energy_j.setdefault(word, {})
                sums[where] = sums.get(where, 0.0) + joules

    def _show_device(self, name: str, outcome: TurnOutcome | DeviceOutcome, cut: int) -> None:
        """The series of one device, unless there are enough of others: those stay, so that series do not come and go."""
        with self._lock:
            if name not in self._devices:
                if len(self._devices) >= self._max_devices:
                    self._omitted.add(name)
                    return
                self._devices.add(name)
        self._device_loss.labels(name).set(outcome.loss)
        self._device_seconds.labels(name).set(outcome.duration_s)
        self._device_rate.labels(name).set(outcome.num_tokens / max(outcome.duration_s, 1e-9))
        self._device_cut.labels(name).set(cut)
        self._device_seen.labels(name).set(time.time())

    # ---- when somebody reads

    def _asked(self) -> Iterator[Metric]:
        live = self._read()
        with self._lock:
            faults: dict[Any, float] = {("turn", kind): self._faults[kind] for kind in FAULTS}
            evaluated, omitted, iterations = dict(self._evaluated), len(self._omitted), self._num_iterations
            energy_j = {word: dict(sums) for word, sums in self._energy_j.items()}
            epoch = self._newest_epoch
        faults |= {("stream", kind): 0 for kind in _STREAM_FAULTS}
        faults |= {("stream", kind): count for kind, count in live.stream_faults.items()}
        if self._kind == "SCCT":
            faults["cloud", "lost"] = live.num_cloud_losses
            both: dict[Any, float] = {"uplink": live.cloud_uplink_bytes, "downlink": live.cloud_downlink_bytes}
            yield counters("splitkd_cloud_link_bytes", "Between edge and cloud.", ["direction"], both)
        yield counters("splitkd_faults", "What went wrong, and what of it was overcome.", ["where", "kind"], faults)
        both = {"uplink": live.uplink_bytes, "downlink": live.downlink_bytes}
        yield counters("splitkd_bytes", "On the data plane, what was lost included.", ["direction"], both)
        steps = iterations if live.num_steps is None else live.num_steps
        yield counters("splitkd_steps", "Optimiser steps in commits; of the chain, of the module.", [], {(): steps})
        if epoch is not None:
            yield gauges(
                "splitkd_grad_norm", "Of the module's newest step, before clipping.", [], {(): epoch.grad_norm}
            )
            yield gauges("splitkd_learning_rate", "Of the module's newest step.", [], {(): epoch.learning_rate})
        for word, sums in energy_j.items():
            labels = ["where"] if word == "measured" else []
            yield counters(f"splitkd_{word}_energy_joules", _ENERGY_TEXTS[word], labels, sums)
        sessions: dict[Any, float] = dict(live.sessions)
        yield gauges("splitkd_sessions", "Devices by what they are about.", ["state"], sessions)
        yield gauges("splitkd_open_streams", "Connections to the data plane.", [], {(): live.num_streams})
        yield gauges("splitkd_evaluation", "The newest evaluation.", ["metric"], evaluated)
        yield gauges("splitkd_devices_without_series", "Beyond the bound for devices.", [], {(): omitted})


def _known_energy(planner: object) -> dict[str, dict[tuple[str, ...], float]]:
    """Sums that begin at 0, because there will be something to add: Prometheus takes no notice of a counter's first value."""
    if not isinstance(planner, Mapping):
        return {}
    words = ("planned", "modelled") if planner.get("modelled") else ("planned",)
    return {word: {(): 0.0} for word in words}
