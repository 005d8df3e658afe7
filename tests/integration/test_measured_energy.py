"""Joules of real turns, from files of sensors to ``metrics.jsonl``: the device is a process, the way between a gRPC stream.

The device's machine is an Orin Nano at 6 W, the edge's a processor at 50 W whose counter starts anew in the first turn.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from relay import Relay, relayed
from tiny_models import llama_student

from flwr_splitkd import DistillationLoss, FixedCut, SplitKD
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.strategies import replies, split_kd
from flwr_splitkd.telemetry.sensors import find_sensors
from flwr_splitkd.tiers.edge import EdgeService

HERE = Path(__file__).parent
DEVICE_W, EDGE_W, AWAY_S = 6.0, 50.0, 0.6
RANGE_UJ = 262_143_328_850
TIMEOUT_S = 120.0


def write(root: Path, path: str, text: str) -> None:
    """Write a file of a tree in one go: whoever reads finds the old or the new one."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}")
    new.write_text(f"{text}\n")
    os.replace(new, file)


def orin_nano(root: Path) -> Path:
    chip = "sys/class/hwmon/hwmon1"
    write(root, "sys/devices/soc0/family", "Tegra")
    write(root, f"{chip}/name", "ina3221")
    for index, (label, milliamperes) in enumerate((("VDD_IN", 1200), ("VDD_CPU_GPU_CV", 400), ("VDD_SOC", 280)), 1):
        write(root, f"{chip}/in{index}_label", label)
        write(root, f"{chip}/in{index}_input", "5000")
        write(root, f"{chip}/curr{index}_input", f"{milliamperes}")
    return root


@contextmanager
def processor(root: Path) -> Iterator[Path]:
    """A package whose counter rises as long as the block runs, 10 J below its range at first."""
    zone, began_s, stop = "sys/class/powercap/intel-rapl:0", time.monotonic(), threading.Event()
    write(root, f"{zone}/name", "package-0")
    write(root, f"{zone}/max_energy_range_uj", f"{RANGE_UJ}")

    def count() -> None:
        while True:
            spent_uj = round(1e6 * EDGE_W * (time.monotonic() - began_s))
            write(root, f"{zone}/energy_uj", f"{(RANGE_UJ - 10_000_000 + spent_uj) % RANGE_UJ}")
            ready.set()
            if stop.wait(0.005):
                return

    ready = threading.Event()
    thread = threading.Thread(target=count)
    thread.start()
    ready.wait()
    try:
        yield root
    finally:
        stop.set()
        thread.join()


class Board:
    """The grid of a device in a process of its own, whose connection is cut in its second turn."""

    def __init__(self, folder: Path) -> None:
        self.run = SimpleNamespace(run_id=7)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "energy_device.py"), str(orin_nano(folder / "board")), str(folder / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=HERE,
        )
        self._replies: dict[str, Any] = {}
        self._turns: list[threading.Thread] = []
        self._read()

    def get_node_ids(self) -> list[int]:
        return [1]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        (message,) = messages
        message_id = f"message {len(self._turns)}"
        self._turns.append(threading.Thread(target=self._take_turn, args=(message_id, message)))
        self._turns[-1].start()
        return [message_id]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()
        for turn in self._turns:
            turn.join(10)

    def _take_turn(self, message_id: str, message: Any) -> None:
        ticket = TurnTicket.from_content(message.content)
        with relayed(ticket.address) as relay:
            given = {**asdict(ticket), "address": relay.address, "token": ticket.token.hex()}
            assert self._process.stdin
            self._process.stdin.write(json.dumps({**given, "root_certificate": ""}) + "\n")
            self._process.stdin.flush()
            if message_id != "message 0":
                lose_for_a_while(relay)
            num_examples = self._read()["num_examples"]
        self._replies[message_id] = SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=message_id, src_node_id=1),
            has_error=lambda: False,
            content=RecordDict({"metrics": MetricRecord({"num-examples": num_examples})}),
        )

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the device's process died; its traceback is above"
        answer: dict[str, Any] = json.loads(line)
        return answer


def lose_for_a_while(relay: Relay) -> None:
    """Cut the connection after the first smashed data, and take no new one for some time."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while relay.uplink_bytes < 4096 and time.monotonic() < deadline_s:
        time.sleep(0.005)
    time.sleep(0.2)
    relay.refusing = True
    relay.cut()
    time.sleep(AWAY_S)
    relay.refusing = False


@pytest.mark.slow  # a process that loads everything anew
def test_joules_from_the_sensors_files_to_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_kd, "Message", lambda **fields: SimpleNamespace(**fields))  # Flower's own needs a run
    monkeypatch.setattr(replies, "_POLL_S", 0.01)
    closed: list[EdgeService] = []
    close = EdgeService.close

    def break_while_closing(edge: EdgeService) -> None:
        """The port's end fails: the meter's thread ends all the same."""
        stop = edge.server.stop

        def broken() -> None:
            stop()
            raise RuntimeError("the port broke")

        monkeypatch.setattr(edge.server, "stop", broken)
        closed.append(edge)
        close(edge)

    monkeypatch.setattr(EdgeService, "close", break_while_closing)
    board: Any = Board(tmp_path)
    try:
        with processor(tmp_path / "edge") as machine:
            monkeypatch.setattr(split_kd, "find_sensors", functools.partial(find_sensors, machine))
            strategy = SplitKD(
                student=llama_student,
                loss=DistillationLoss(kd_ratio=0.0),
                cut=FixedCut(2),
                run_folder=tmp_path / "run",
                callbacks=[],
                compute_device="cpu",
                measure_energy=True,
            )
            with pytest.raises(RuntimeError, match="the port broke"):
                strategy.start(board, ArrayRecord(llama_student().state_dict()), num_rounds=2)
    finally:
        board.close()
    assert len(closed) == 1 and "flwr-splitkd-energy" not in {thread.name for thread in threading.enumerate()}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    turns = [line for line in lines if line["kind"] == "turn"]
    assert [turn["server_round"] for turn in turns] == [1, 2]
    for turn in turns:
        assert turn["num_steps"] == 6
        assert (turn["measured_device_parts"], turn["measured_edge_parts"]) == (["VDD_IN"], ["package-0"])
        device_j, edge_j = turn["measured_device_j"], turn["measured_edge_j"]
        # The device's span lies in the turn, and has its work in it.
        assert DEVICE_W * turn["device_s"] <= device_j <= DEVICE_W * turn["duration_s"]
        assert edge_j == pytest.approx(EDGE_W * turn["duration_s"], abs=0.3 * EDGE_W)
        assert turn["measured_device_j_per_step"] == pytest.approx(device_j / 6)
        assert turn["measured_edge_j_per_step"] == pytest.approx(edge_j / 6)
    whole, cut = turns
    assert (whole["num_resumed"], cut["num_resumed"]) == (0, 1)
    # A turn that goes on over another connection is one turn: the time in between is in its joules, on both sides.
    assert cut["measured_device_j"] >= DEVICE_W * (6 * 0.1 + AWAY_S / 2)
    assert cut["duration_s"] >= AWAY_S
