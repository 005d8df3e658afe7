"""Run folders as a run would leave them, written by the code that writes them."""

from __future__ import annotations

from pathlib import Path

from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.result import TurnRecord
from flwr_splitkd.tiers.edge import TurnOutcome


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


def write_run(path: Path, rounds: int, devices: list[str], failing: str = "", **config: object) -> RunFolder:
    folder = RunFolder(path)
    folder.write_config(
        {"strategy": {"loss": {"temperature": 1.0, "kd_ratio": 0.9}, **config}, "versions": {"flwr": "1.41.0"}}
    )
    folder.append_metrics({"kind": "evaluation", "server_round": 0, "loss": 6.0, "perplexity": 403.4})
    made = turns(rounds, devices, failing)
    for server_round in range(1, rounds + 1):
        for turn in made:
            if turn.server_round == server_round:
                folder.append_metrics(turn.to_json())
        folder.append_metrics(
            {"kind": "evaluation", "server_round": server_round, "loss": 4.0 / server_round, "perplexity": 54.6}
        )
        folder.append_metrics({"kind": "round", "server_round": server_round, "train-loss": 3.0 / server_round})
    return folder
