"""A device without Flower whose machine is a recorded tree: reads a JSON ticket a line from stdin, takes a turn for each."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tiny_models import batches, llama_student

from flwr_splitkd.clients import SplitKDClient, split_kd
from flwr_splitkd.clients.job import Identity
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.telemetry.sensors import find_sensors


class SlowBatches:
    """Batches that take their time, so that a turn does."""

    def __init__(self, number: int, pause_s: float) -> None:
        self._batches, self._pause_s = batches(0, number), pause_s

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            time.sleep(self._pause_s)
            yield batch


def main(machine: str, cache: str) -> None:
    torch.set_num_threads(1)
    split_kd.find_sensors = functools.partial(find_sensors, Path(machine))  # type: ignore[attr-defined]
    client = SplitKDClient(
        student=llama_student, data=SlowBatches(6, 0.1), cache_folder=Path(cache), measure_energy=True
    )
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        ticket = TurnTicket(**{**given, "token": bytes.fromhex(given["token"]), "root_certificate": b""})
        report = client.take_turn(ticket, Identity(run_id=7, node_id=1, name="board"))
        print(json.dumps({"num_examples": report.num_examples}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
