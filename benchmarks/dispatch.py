"""Idle time of the edge between two turns, against Flower's own round trip.

A deployment on loopback: a SuperLink, three SuperNodes and the demo app with small models. Turns last long enough that the
next device can get ready meanwhile. A gap lasts from the end of a turn, when its result was sent, until the first smashed
data of the next turn had arrived; the time that the layers take which are handed over in it is left out, and printed apart.
All of it is read from the run's ``metrics.jsonl``. Gaps within a round and between two rounds, where Flower's replies, the
evaluation and the calls of the next round come in, are told apart. Flower's round trip is measured in the same deployment
afterwards, with messages that hold next to nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _report import Row, report
from _step_processes import quartile_distance

from demo_command import raise_on_signals
from flower_run import Federation, Value, deployment
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import encode
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

# Median seconds of idle time between two turns of a round.
BOUND_S = 0.3
# A shorter turn does not give the next device the time to start.
SHORTEST_TURN_S = 6.0
NUM_DEVICES = 3
APP = Path(__file__).resolve().parents[1] / "apps" / "split_kd"
TOKENIZER = APP / "split_kd_app" / "tokenizer"
ROUND_TRIP_APP = Path(__file__).with_name("flower_messages_app")
ROUND_TRIP_WARMUP = 1
RATE_BYTES = 64 << 20
RATE_REPEATS = 5
TIMEOUT_S = 1200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What lies between two turns.

    Parameters
    ----------
    seconds
        From the end of the one until the first smashed data of the other.
    dispatch_s
        The part until the other turn began: the edge's own work and its wait for the device.
    device_s
        The rest: the plan and the layers travel, the device builds its half and computes a forward pass.
    handover_bytes
        Bytes of layers that the other device got in it.
    boundary
        Whether a round ended in between.
    """

    seconds: float
    dispatch_s: float
    device_s: float
    handover_bytes: int
    boundary: bool


def main() -> None:
    """Run the demo and Flower's round trips, print the table, write the JSON."""
    arguments = _arguments()
    raise_on_signals()  # so that Flower's processes end, whatever ends this
    rate = _rate_bps()
    with tempfile.TemporaryDirectory(prefix="dispatch-") as name:
        folder = Path(name)
        # One thread each: four processes compute or load on what may be two cores.
        environment = {"FLWR_SPLITKD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        with deployment(folder / "logs", supernodes=NUM_DEVICES, environment=environment) as federation:
            turns = _run_demo(federation, folder, arguments.rounds, arguments.epochs)
            round_trips = _round_trips(federation, folder, arguments.round_trips)
    gaps = gaps_between(turns)
    within = [gap for gap in gaps if not gap.boundary]
    between = [gap for gap in gaps if gap.boundary]
    rows = _rows(within, between, round_trips, rate)
    durations = [turn["duration_s"] for turn in turns]
    median_s = rows[0].value
    notes = [
        f"{len(turns)} turns of {min(durations):.1f} to {max(durations):.1f} s, {NUM_DEVICES} SuperNodes, "
        f"{arguments.rounds} rounds, one torch thread in each process; torch {torch.__version__}, flwr {version('flwr')}.",
        f"reference: Flower's round trip, median of {len(round_trips)} after {ROUND_TRIP_WARMUP} that does not count, "
        f"{min(round_trips):.2f} to {max(round_trips):.2f} s.",
        f"hand-over: bytes that the next device got within the gap, at the {rate / 8e6:,.0f} MB/s that the data plane "
        f"moves {RATE_BYTES >> 20} MiB with; left out of the idle time.",
        "gaps within a round, s: " + _seconds(within) + ". Between rounds, s: " + _seconds(between) + ".",
    ]
    if min(durations) < SHORTEST_TURN_S:
        notes.append(
            f"The shortest turn took {min(durations):.1f} s; expected at least {SHORTEST_TURN_S:g} s, so that the next "
            "device can start. Raise --epochs."
        )
    notes.append(f"{rows[0].name}: {median_s:.3f} s, bound {BOUND_S} s: {'met' if median_s < BOUND_S else 'missed'}")
    more = {"gaps": [{name: getattr(gap, name) for name in Gap.__slots__} for gap in gaps], "turns": turns}
    name = "dispatch" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, rows, notes=notes, json_path=arguments.json, more=more)


def gaps_between(turns: Sequence[Mapping[str, Any]]) -> list[Gap]:
    """Return the gaps between turns as ``metrics.jsonl`` has them; next to a turn that failed there is none."""
    return [
        Gap(
            seconds=after["started_s"] + after["first_forward_s"] - before["started_s"] - before["duration_s"],
            dispatch_s=after["started_s"] - before["started_s"] - before["duration_s"],
            device_s=after["first_forward_s"],
            handover_bytes=after["handover_downlink_bytes"],
            boundary=after["server_round"] != before["server_round"],
        )
        for before, after in pairwise(turns)
        if "error" not in before and "error" not in after
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 2 rounds of short turns, 1 round trip")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the demo app (5)")
    parser.add_argument("--epochs", type=int, default=8, help="local epochs of a turn (8)")
    parser.add_argument("--round-trips", type=int, default=7, help="Flower's round trips (7)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.epochs, arguments.round_trips = 2, 1, 1
    return arguments


def _run_demo(federation: Federation, folder: Path, rounds: int, epochs: int) -> list[dict[str, Any]]:
    """Run the demo app; return its turns as they stand in ``metrics.jsonl``."""
    settings: dict[str, Value] = {
        "teacher": _small_model(folder / "teacher", hidden_size=48, num_layers=2),
        "student": _small_model(folder / "student", hidden_size=32, num_layers=4),
        "run-dir": str(folder / "runs"),
        "cuts": "1,2,3",
        "sequence-length": 32,
        "max-batches": 100,
        "local-epochs": epochs,
        "num-server-rounds": rounds,
    }
    outcome = federation.run(APP, settings, timeout_s=TIMEOUT_S, on_line=lambda line: print(line, file=sys.stderr))
    if not outcome.completed:
        raise SystemExit(outcome.tail())
    (metrics,) = (folder / "runs").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "turn"]


def _small_model(folder: Path, *, hidden_size: int, num_layers: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _round_trips(federation: Federation, folder: Path, count: int) -> list[float]:
    """Return the seconds of messages that were pushed, answered by a ClientApp without torch, and pulled."""
    result = folder / "round-trips.json"
    number = json.dumps({"number": [[1], "float32"]})
    settings: dict[str, Value] = {
        "num-exchanges": count + ROUND_TRIP_WARMUP,
        "up": number,
        "down": number,
        "result": str(result),
    }
    outcome = federation.run(ROUND_TRIP_APP, settings, timeout_s=TIMEOUT_S)
    if not outcome.completed:
        raise SystemExit(outcome.tail())
    exchanges = json.loads(result.read_text(encoding="utf-8"))
    return [item["seconds"] for item in exchanges[ROUND_TRIP_WARMUP:]]


def _rate_bps() -> float:
    """Return the rate at which the data plane moves a large tensor to a device on this machine, median of some."""
    tensor = encode(torch.zeros(RATE_BYTES, dtype=torch.uint8))
    server = DataPlaneServer()
    server.start(model=pb.ModelFingerprint(), codecs=(pb.CODEC_NONE,))
    seconds = []
    try:
        session = server.expect(new_ticket(run_id=1, node_id=1, server_round=1, expires_s=monotonic() + TIMEOUT_S))
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            session_id=session.ticket.session_id,
            token=session.ticket.token,
            run_id=1,
            node_id=1,
            server_round=1,
            student=pb.ModelFingerprint(),
            codecs=[pb.CODEC_NONE],
        )
        with connect(server.address, hello) as device:
            if session.link is None:
                raise RuntimeError("The link to this machine did not come about.")
            for _ in range(RATE_REPEATS):
                start_s = monotonic()
                session.link.send(pb.Begin(), {"units": tensor})
                device.receive("Begin", TIMEOUT_S)
                seconds.append(monotonic() - start_s)
    finally:
        server.stop()
    return 8 * RATE_BYTES / statistics.median(seconds)


def _rows(within: list[Gap], between: list[Gap], round_trips: list[float], rate_bps: float) -> list[Row]:
    reference = statistics.median(round_trips)
    rows = []
    for where, gaps in (("within a round", within), ("between rounds", between)):
        idle = [gap.seconds - 8 * gap.handover_bytes / rate_bps for gap in gaps]
        rows.append(_row(f"idle between turns, {where}", idle, reference))
        rows.append(_row(f"  until the turn began, {where}", [gap.dispatch_s for gap in gaps], reference))
        rows.append(_row(f"  from then to its first Forward, {where}", [gap.device_s for gap in gaps], reference))
        rows.append(_row(f"hand-over, {where}", [8 * gap.handover_bytes / rate_bps for gap in gaps], reference))
    return rows


def _row(name: str, seconds: list[float], reference_s: float) -> Row:
    ratios = [second / reference_s for second in seconds]
    return Row(
        name=name,
        value=statistics.median(seconds),
        unit="s",
        reference=reference_s,
        ratio=statistics.median(ratios),
        spread=quartile_distance(ratios),
        n=len(ratios),
    )


def _seconds(gaps: list[Gap]) -> str:
    return ", ".join(f"{gap.seconds:.2f}" for gap in gaps)


if __name__ == "__main__":
    main()
