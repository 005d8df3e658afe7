"""The server: one message to every node, and the answers into a file."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the nodes, ask each of them once, write what they said."""
    started = time.time()
    expected = int(context.run_config["num-nodes"])
    while len(nodes := list(grid.get_node_ids())) < expected:
        time.sleep(0.2)
    joined = time.time()
    if context.run_config["fail"] == "server":
        raise ValueError("told to fail")
    asked = time.monotonic()
    messages = [
        Message(content=RecordDict({"config": ConfigRecord({"n": i})}), message_type="train", dst_node_id=node)
        for i, node in enumerate(nodes)
    ]
    replies = list(grid.send_and_receive(messages, timeout=60))
    answer = {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "started": started,
        "joined_s": joined - started,
        "round_trip_s": time.monotonic() - asked,
        "errors": [str(reply.error) for reply in replies if reply.has_error()],
        "replies": [dict(reply.content["metrics"]) for reply in replies if not reply.has_error()],
    }
    print(f"{len(replies)} of {expected} nodes answered")
    time.sleep(float(context.run_config["sleep-s"]))
    runs = Path(str(context.run_config["run-dir"]))
    (runs / "echo").mkdir(parents=True)
    (runs / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
    (runs / "echo" / "summary.txt").write_text("summary of the echo\n", encoding="utf-8")
