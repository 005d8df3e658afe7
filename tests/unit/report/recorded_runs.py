"""Run folders as a run would leave them, written by the code that writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flwr_splitkd.costs import LinkState, TurnCost
from flwr_splitkd.report.load import RunData, load_run
from flwr_splitkd.schedulers import Decision
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
from flwr_splitkd.strategies.planner import PlannedTurn
from flwr_splitkd.strategies.result import TurnRecord
from flwr_splitkd.telemetry import ModelledTurn
from flwr_splitkd.tiers.edge import TurnOutcome
from flwr_splitkd.tiers.edge.chain import DeviceOutcome

Costs = Literal["", "planned", "modelled"]
"""What a run knows of costs: nothing, predictions and measurements, or those of a modelled world."""


def outcome(number: int, **changes: float) -> TurnOutcome:
    values = {
        "cut": 1 + number % 3,
        "num_steps": 4,
        "num_batches": 4,
        "num_examples": 16,
        "num_tokens": 480,
        "loss": 3.0 / number,
        "cross_entropy": 5.0 / number,
        "kl_divergence": 2.0 / number,
        "num_correct": 0,
        "duration_s": 1.5,
        "num_resumed": 0,
        "first_forward_s": 0.1,
        "uplink_bytes": 1 << 20,
        "downlink_bytes": 3 << 20,
        "handover_bytes": 2 << 20,
        "handover_downlink_bytes": 1 << 20,
        "device_s": 0.5,
        "edge_s": 0.4,
        "uplink_s": 0.2,
        "downlink_s": 0.1,
        "fixed_s": 0.2,
        "uplink_payload_bytes": 1 << 20,
        "downlink_payload_bytes": 3 << 20,
    }
    return TurnOutcome(commit_id=f"{number:06d}", **{**values, **changes})  # type: ignore[arg-type]


def with_joules(made: list[TurnRecord]) -> list[TurnRecord]:
    """The same turns, of which the devices have measured 8 J each, and the edge 20 J in the first one."""
    changed: list[TurnRecord] = []
    for turn in made:
        if turn.outcome is not None:
            measured: dict[str, Any] = {"measured_device_j": 8.0, "measured_device_parts": ("VDD_IN",)}
            if not changed:
                measured |= {"measured_edge_j": 20.0, "measured_edge_parts": ("NVIDIA H200 0", "package-0")}
            turn = replace(turn, outcome=replace(turn.outcome, **measured))
        changed.append(turn)
    return changed


def turn_cost(number: int) -> TurnCost:
    """13 s and 26 J in the first turn, 7 of them the device's; uplinks get faster from turn to turn."""
    return TurnCost(
        device_s=4.0,
        uplink_s=6.0 / number,
        server_s=2.0,
        downlink_s=1.0,
        other_s=0.0,
        device_compute_j=4.0,
        device_transmit_j=3.0 / number,
        server_compute_j=8.0,
        server_transmit_j=1.0,
        server_static_j=6.0,
        server_idle_j=4.0,
    )


def decision(cost: TurnCost, cut: int, **changes: Any) -> dict[str, Any]:
    """As a planner records it."""
    made = Decision(
        cut=cut,
        codec="int8",
        frequency_hz=1.5e9,
        cost=cost,
        binding="delay",
        runner_up=None,
        excluded={"device memory": 2},
    )
    return PlannedTurn(cut=cut, local_epochs=1, decision=replace(made, **changes)).to_json()


def with_costs(made: list[TurnRecord], costs: Costs, *, factor: float = 1.0, waited_s: float = 0.0) -> list[TurnRecord]:
    """The same turns with what a planner, or a planner and a modelled world, add to them.

    In a modelled world the second completed turn is late and waits for its link before it; costs are multiplied by `factor`.
    """
    clock_s, done = 0.0, 0
    changed: list[TurnRecord] = []
    for turn in made:
        if costs and turn.outcome is not None:
            done += 1
            expected = turn_cost(max(done - 1, 1))
            line: dict[str, Any] = decision(expected, turn.outcome.cut)
            if costs == "modelled":
                base = turn_cost(done)
                cost = replace(base, device_s=factor * base.device_s, server_static_j=factor * base.server_static_j)
                away_s = waited_s if done == 2 else 0.0
                clock_s += cost.total_s + away_s
                line |= ModelledTurn(
                    cost=cost,
                    link=LinkState(uplink_bps=1e6, downlink_bps=2e6),
                    waited_s=away_s,
                    clock_s=clock_s,
                    battery_j=None,
                ).to_json()
                line["modelled_late"] = done == 2
            else:
                line |= {"measured_other_s": 0.2, "prediction_error": {"device_s": 7.0, "uplink_s": 0.1 * done}}
            turn = replace(turn, costs=line)
        changed.append(turn)
    return changed


def turns(rounds: int, devices: list[str], failing: str = "") -> list[TurnRecord]:
    made: list[TurnRecord] = []
    for server_round in range(1, rounds + 1):
        for turn, device in enumerate(devices, start=1):
            failed = device == failing
            made.append(
                TurnRecord(
                    server_round=server_round,
                    turn=turn,
                    num_turns=len(devices),
                    node_id=100 + turn,
                    device=device,
                    mode="train",
                    local_epochs=1,
                    outcome=None if failed else outcome(len(made) + 1),
                    error="it left <b>without</b> a word" if failed else "",
                    wait_s=0.1,
                )
            )
    return made


def write_run(
    path: Path,
    rounds: int,
    devices: list[str],
    failing: str = "",
    *,
    costs: Costs = "",
    factor: float = 1.0,
    waited_s: float = 0.0,
    joules: bool = False,
    **config: object,
) -> RunFolder:
    folder = RunFolder(path)
    folder.write_config(
        {"strategy": {"loss": {"temperature": 1.0, "kd_ratio": 0.9}, **config}, "versions": {"flwr": "1.41.0"}}
    )
    made = with_costs(turns(rounds, devices, failing), costs, factor=factor, waited_s=waited_s)
    if joules:
        made = with_joules(made)

    def totals(server_round: int) -> dict[str, float]:
        past = [turn.costs for turn in made if turn.server_round <= server_round and "modelled_s" in turn.costs]
        if costs != "modelled":
            return {}
        return {f"modelled-{unit}": sum(cost[f"modelled_{unit}"] for cost in past) for unit in ("s", "j")}

    first = {"kind": "evaluation", "server_round": 0, "loss": 6.0, "perplexity": 403.4}
    folder.append_metrics({**first, **totals(0)})
    for server_round in range(1, rounds + 1):
        for turn in made:
            if turn.server_round == server_round:
                folder.append_metrics(turn.to_json())
        evaluation = {"server_round": server_round, "loss": 4.0 / server_round, "perplexity": 54.6}
        folder.append_metrics({"kind": "evaluation", **evaluation, **totals(server_round)})
        means = {"server_round": server_round, "train-loss": 3.0 / server_round}
        folder.append_metrics({"kind": "round", **means, **totals(server_round)})
    return folder


def old_run(path: Path, **settings: Any) -> RunData:
    """A run of a release whose turns did not tell where their seconds went."""
    folder = write_run(path, **{"rounds": 1, "devices": ["0"], **settings})
    new = {"device_s", "edge_s", "uplink_s", "downlink_s", "fixed_s", "uplink_payload_bytes", "downlink_payload_bytes"}
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    lines = (json.dumps({name: value for name, value in record.items() if name not in new}) for record in records)
    folder.metrics.write_text("\n".join(lines) + "\n")
    return load_run(path)


def epoch(server_round: int, number: int, **changes: Any) -> EpochRecord:
    """10 iterations of half a second, those of a round's first epoch of one second; the loss falls from 4 on."""
    done = 2 * (server_round - 1) + number
    values: dict[str, Any] = {
        "num_iterations": 10,
        "loss": 4.0 / done,
        "reference_loss": None,
        "seconds": 10.0 if number == 1 else 5.0,
        "num_missed": 1,
        "module_step": 10 * done,
        "learning_rate": 0.003,
        "grad_norm": 1.5,
    }
    return EpochRecord(server_round=server_round, epoch=number, **{**values, **changes})


def device(server_round: int, number: int, name: str, *, mode: str = "train", **changes: Any) -> DeviceRecord:
    """In training 3 MiB up and 4 down, 1 and 2 of them layers; split points 1, 2, 3, 1, ..."""
    training = mode == "train"
    values: dict[str, Any] = {
        "split_point": 1 + number % 3,
        "num_steps": 20 if training else 4,
        "num_examples": 160,
        "num_tokens": 800,
        "num_missed": 2 if training else 0,
        "loss": 4.0 / (1 + server_round),
        "reference_loss": None,
        "left": "",
        "duration_s": 12.0,
        "edge_s": 2.0,
        "device_s": 1.0,
        "num_resumed": 0,
        "uplink_bytes": (3 if training else 1) << 20,
        "downlink_bytes": 4 << 20 if training else 0,
        "uplink_handover_bytes": 1 << 20 if training else 0,
        "downlink_handover_bytes": 2 << 20 if training else 0,
        "cloud_s": 3.0,
    }
    outcome = DeviceOutcome(**{**values, **changes})
    return DeviceRecord(
        server_round=server_round, node_id=100 + number, device=name, mode=mode, outcome=outcome, error=""
    )


def write_chain(
    path: Path, rounds: int, devices: list[str], failing: str = "", *, reference: bool = False, **config: Any
) -> RunFolder:
    """A run of SCCT: two epochs a round, then every device's part in it, and the evaluation of all of them."""
    folder = RunFolder(path)
    folder.write_config({"strategy": {"name": "SCCT", **config}, "versions": {"flwr": "1.41.0"}})
    without = {"reference_loss": 5.0} if reference else {}

    def evaluate(server_round: int) -> dict[str, float]:
        for number, name in enumerate(devices):
            folder.append_metrics(device(server_round, number, name, mode="evaluate").to_json())
        metrics = {
            "eval-exact_match": 5.0 * server_round,
            "eval-f1": 7.5 * server_round,
            "eval-loss": 5.0 - server_round,
        }
        folder.append_metrics({"kind": "evaluation", "server_round": server_round, **metrics})
        return metrics

    evaluate(0)
    for server_round in range(1, rounds + 1):
        for number in (1, 2):
            folder.append_metrics(epoch(server_round, number, **without).to_json())
        for number, name in enumerate(devices):
            record = device(server_round, number, name)
            if name == failing:
                record = replace(record, outcome=None, error="it left <b>without</b> a word")
            folder.append_metrics(record.to_json())
        metrics = {"train-loss": 4.0 / (1 + server_round), **evaluate(server_round)}
        folder.append_metrics({"kind": "round", "server_round": server_round, **metrics})
    return folder


def write_baseline(path: Path, rounds: int, *, epochs: bool = True) -> RunFolder:
    """A baseline of the chain: epochs of one process, or nothing but evaluations."""
    folder = RunFolder(path)
    folder.write_config({"run_config": {"rounds": rounds}})
    for server_round in range(rounds + 1):
        for number in (1, 2) if epochs and server_round else ():
            folder.append_metrics(epoch(server_round, number, num_missed=0, loss=2.0).to_json())
        metrics = {"eval-f1": 3.0 * server_round, "eval-loss": 4.0}
        folder.append_metrics({"kind": "evaluation", "server_round": server_round, **metrics})
    return folder
