"""An iteration of the chain with one slow device: with a quorum, against waiting for every device.

Cloud, edge and three devices, each a process of its own on this machine. One device takes ten times as long for a batch as
an iteration of all takes without it being slow: it sleeps where it draws its data. Rounds with a quorum of 0.6, which is two
of the three, alternate with rounds that wait for all. The straggler's batches count in both, with a quorum in the iteration
in which they arrive.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, cast

import torch
from _report import Row, report
from _step_processes import quartile_distance
from _straggler_worker import ANSWER, BATCH, LAYERS, TIMEOUT_S, TOKENS, WIDTH, build_encoder, build_llm

from flwr_splitkd.tiers.cloud import TaskSettings
from flwr_splitkd.tiers.cloud.embedded import EmbeddedCloud
from flwr_splitkd.tiers.edge.chain import (
    ChainEdge,
    ChainSettings,
    ChainSetup,
    CloudAccess,
    CloudLink,
    DevicePlan,
    Iterations,
)
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

QUORUM, SLOWER, DEVICES = 0.6, 10.0, 3
SPLIT_POINT = LAYERS // 2
STRAGGLER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round took.

    Parameters
    ----------
    iterations_s
        Seconds of each iteration but the first, for which the devices came.
    seconds
        Of all of it, hand-over of layers and the straggler's last batch included.
    straggler_steps
        Batches of the straggler that counted.
    """

    iterations_s: list[float]
    seconds: float
    straggler_steps: int


class Arm:
    """An edge with its settings, and the folders of its devices.

    Parameters
    ----------
    edge
        Open.
    num_iterations
        In a round.
    folder
        Where its devices keep their encoders.
    """

    def __init__(self, edge: ChainEdge, num_iterations: int, folder: Path) -> None:
        self._edge, self._num_iterations, self._folder = edge, num_iterations, folder
        self._server_round = 0

    def round(self, devices: Sequence[subprocess.Popen[str]], straggler_s: float) -> Round:
        """Serve a round in which the straggler takes so many seconds more for each batch."""
        self._server_round += 1
        started_s = monotonic()
        iterations = self._edge.iterations(range(DEVICES))
        threads = []
        for position, device in enumerate(devices):
            session = self._edge.expect(run_id=1, node_id=position, server_round=self._server_round)
            self._call(device, session, straggler_s if position == STRAGGLER else 0.0)
            threads.append(threading.Thread(target=self._serve, args=(session, position, iterations), daemon=True))
            threads[-1].start()
        taken, steps = [], 0
        for _ in range(self._num_iterations):
            closed = iterations.close_next()
            if closed is None:
                raise SystemExit("no device is left; its traceback is above")
            taken.append(closed.seconds)
            steps += STRAGGLER in closed.answers
        iterations.end()
        for thread in threads:
            thread.join(TIMEOUT_S)
        for device in devices:
            _expect(device, "done")
        self._edge.cloud.end_round("straggler", self._server_round)
        return Round(iterations_s=taken[1:], seconds=monotonic() - started_s, straggler_steps=steps)

    def _call(self, device: subprocess.Popen[str], session: Session, seconds: float) -> None:
        ticket = session.ticket
        job = {
            "address": self._edge.server.address,
            "session_id": ticket.session_id,
            "token": ticket.token.hex(),
            "run_id": ticket.run_id,
            "node_id": ticket.node_id,
            "server_round": ticket.server_round,
            "folder": str(self._folder / str(ticket.node_id)),
            "seconds": seconds,
        }
        line = cast(IO[str], device.stdin)
        line.write(json.dumps(job) + "\n")
        line.flush()

    def _serve(self, session: Session, position: int, iterations: Iterations) -> None:
        try:
            with self._edge.server.changed:
                self._edge.server.changed.wait_for(lambda: session.connected, TIMEOUT_S)
            plan = DevicePlan(position=position, server_round=self._server_round, split_point=SPLIT_POINT)
            self._edge.serve(session, plan, iterations)
        finally:
            iterations.leave(position)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one pair of short rounds")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of each kind (3)")
    parser.add_argument("--iterations", type=int, default=16, help="iterations in a round (16)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.iterations = 1, 4
    with tempfile.TemporaryDirectory(prefix="straggler-") as name:
        usual_s, everybody, quorum = _measure(Path(name), arguments.pairs, arguments.iterations)
    _report(usual_s, everybody, quorum, arguments)


def _measure(folder: Path, pairs: int, num_iterations: int) -> tuple[float, list[Round], list[Round]]:
    """Seconds of an iteration without a straggler; rounds that wait for everybody, and rounds with a quorum."""
    torch.set_num_threads(1)
    quorums = {"everybody": 1.0, "quorum": QUORUM}
    tasks = {name: TaskSettings(slm_width=WIDTH) for name in quorums}
    with ExitStack() as stack:
        cloud = EmbeddedCloud(llm=build_llm, tasks=tasks)
        address, edge_name, token = stack.enter_context(cloud.running(folder / "cloud"))
        devices = [stack.enter_context(_device()) for _ in range(DEVICES)]
        for device in devices:
            _expect(device, "ready")
        arms = {}
        for name, quorum in quorums.items():
            access = CloudAccess(address=address, edge=edge_name, token=token, task=name)
            edge = _open(access, quorum, num_iterations)
            stack.callback(edge.close)
            arms[name] = Arm(edge, num_iterations, folder / name)
        for arm in arms.values():  # code, caches, and the first hand-over
            arm.round(devices, 0.0)
        usual_s = statistics.median(arms["everybody"].round(devices, 0.0).iterations_s)
        rounds: dict[str, list[Round]] = {name: [] for name in arms}
        for _ in range(pairs):
            for name, arm in arms.items():
                rounds[name].append(arm.round(devices, (SLOWER - 1) * usual_s))
    return usual_s, rounds["everybody"], rounds["quorum"]


def _open(access: CloudAccess, quorum: float, num_iterations: int) -> ChainEdge:
    def reach(width: int) -> CloudLink:
        link = CloudLink(access, encoder_width=width)
        link.open(pb.TASK_START_FRESH)
        return link

    setup = ChainSetup(
        slm=build_encoder,
        settings=ChainSettings(num_iterations=num_iterations, quorum=quorum, straggler_timeout_s=0.0),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
    )
    return setup.open(reach, ticket_lifetime_s=TIMEOUT_S)


@contextmanager
def _device() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("_straggler_worker.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _expect(device: subprocess.Popen[str], word: str) -> None:
    line = cast(IO[str], device.stdout).readline().strip()
    if line != word:
        raise SystemExit(f"A device said {line!r}; expected {word!r}. Its traceback is above.")


def _report(usual_s: float, everybody: list[Round], quorum: list[Round], arguments: argparse.Namespace) -> None:
    def medians(rounds: list[Round]) -> list[float]:
        return [statistics.median(one.iterations_s) for one in rounds]

    rows = [
        _row("iteration", medians(quorum), medians(everybody)),
        _row("round, its end included", [one.seconds for one in quorum], [one.seconds for one in everybody]),
    ]
    steps = [sum(one.straggler_steps for one in rounds) for rounds in (quorum, everybody)]
    total = arguments.iterations * len(quorum)
    report(
        "straggler" + (" (quick: a smoke test, not a measurement)" if arguments.quick else ""),
        rows,
        notes=[
            f"Quorum {QUORUM:g} against 1; {DEVICES} devices, one of them {SLOWER:g} times slower than an iteration of "
            f"{usual_s * 1e3:.0f} ms without a straggler; {arguments.iterations} iterations a round.",
            f"RoBERTa {LAYERS} x {WIDTH}, split point {SPLIT_POINT}, batch {BATCH} x {TOKENS} tokens, answers of {ANSWER}; Llama "
            f"{LAYERS} x {2 * WIDTH} with serial adapters; one thread in each process, loopback, torch {torch.__version__}.",
            f"Batches of the straggler that counted: {steps[0]} of {total} with the quorum, {steps[1]} of {total} without.",
        ],
        json_path=arguments.json,
        more={"usual_s": usual_s, "straggler_steps": {"quorum": steps[0], "everybody": steps[1]}},
    )


def _row(name: str, values: list[float], references: list[float]) -> Row:
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    return Row(
        name=f"{name}, with a quorum",
        value=statistics.median(values),
        unit="s",
        reference=statistics.median(references),
        ratio=statistics.median(ratios),
        spread=quartile_distance(ratios) if len(ratios) > 1 else None,
        n=len(ratios),
    )


if __name__ == "__main__":
    main()
