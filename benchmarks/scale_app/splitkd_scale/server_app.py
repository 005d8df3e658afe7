"""The edge: one round of all devices, with a look at the clock and at this process's memory after each of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from flwr_splitkd import SplitKD
from flwr_splitkd.callbacks import Callback
from flwr_splitkd.strategies.result import TurnRecord
from splitkd_scale.task import build_student, build_teacher

app = ServerApp()

_POLL_S = 0.02
# A message at work and the next one, as the strategy has them.
_WINDOW = 2
_TIMEOUT_S = 600.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve every device once; write when each was done, and what this process held then."""
    config = context.run_config
    count = int(config["devices"])
    nodes = _all_nodes(grid, count)
    notes = Notes()
    if config["kind"] == "messages":
        _exchange(grid, nodes, notes)
    else:
        strategy = SplitKD(
            student=build_student,
            teacher=build_teacher,
            cut=1,
            min_train_nodes=count,
            min_available_nodes=count,
            run_folder=Path(str(config["run-dir"])) / str(context.run_id),
            callbacks=[notes],
        )
        strategy.start(grid=grid, initial_arrays=ArrayRecord(), num_rounds=1)
    Path(str(config["result"])).write_text(json.dumps(notes.content()), encoding="utf-8")


class Notes(Callback):
    """When each device was done, and the resident memory of this process then."""

    def __init__(self) -> None:
        self.begin_s, self.begin_bytes = time.monotonic(), _resident_bytes()
        self.done: list[dict[str, float]] = []
        self.failures: list[str] = []

    def note(self, compute_s: float = 0.0, duration_s: float = 0.0) -> None:
        """Note that one more device is done.

        Parameters
        ----------
        compute_s, duration_s
            Of its turn, if it had one.
        """
        now = {"at_s": time.monotonic() - self.begin_s, "bytes": _resident_bytes()}
        self.done.append(now | {"compute_s": compute_s, "duration_s": duration_s})

    def on_turn(self, turn: TurnRecord) -> None:
        """A turn is over."""
        if turn.outcome is None:
            self.failures.append(str(turn.error))
            return
        self.note(turn.outcome.device_s + turn.outcome.edge_s, turn.outcome.duration_s)

    def content(self) -> dict[str, object]:
        """All of it."""
        return {
            "begin_bytes": self.begin_bytes,
            "done": self.done,
            "failures": self.failures,
            "total_s": time.monotonic() - self.begin_s,
        }


def _all_nodes(grid: Grid, count: int) -> list[int]:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{len(nodes)} nodes after {_TIMEOUT_S:g} s; expected {count}.")
        time.sleep(0.2)
    return nodes


def _exchange(grid: Grid, nodes: list[int], notes: Notes) -> None:
    """One train message to each node, two at a time."""
    waiting, asked = list(nodes), set[str]()
    while waiting or asked:
        if waiting and len(asked) < _WINDOW:
            content = RecordDict({"config": ConfigRecord({"server-round": 1})})
            message = Message(content=content, message_type="train", dst_node_id=waiting.pop())
            asked.update(grid.push_messages([message]))
            continue
        replies = list(grid.pull_messages(list(asked)))
        for reply in replies:
            asked.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                notes.failures.append(str(reply.error))
            else:
                notes.note()
        if not replies:
            time.sleep(_POLL_S)


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS; expected a Linux kernel.")
