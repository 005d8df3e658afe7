"""The edge: one train message a step, and a clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from splitkd_exchange import tensors

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Exchange with the first node that comes; write the seconds of each exchange."""
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    exchanges = [
        _exchange(grid, nodes[0], step, str(context.run_config["down"]))
        for step in range(int(context.run_config["num-exchanges"]))
    ]
    Path(str(context.run_config["result"])).write_text(json.dumps(exchanges), encoding="utf-8")


def _exchange(grid: Grid, node: int, step: int, down: str) -> dict[str, Any]:
    start_s = time.monotonic()
    content = RecordDict({"arrays": tensors.make(down), "config": ConfigRecord({"server-round": step + 1})})
    message = Message(content=content, message_type="train", dst_node_id=node)
    (reply,) = grid.send_and_receive([message], timeout=120)
    if reply.has_error():
        raise RuntimeError(f"Exchange {step} failed: {reply.error}")
    up_bytes = tensors.read(reply.content)
    seconds = time.monotonic() - start_s
    down_bytes = reply.content.metric_records["metrics"]["down-bytes"]
    return {"seconds": seconds, "up_bytes": up_bytes, "down_bytes": down_bytes}
