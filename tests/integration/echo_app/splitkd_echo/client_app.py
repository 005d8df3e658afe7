"""The device: answer with the process id and the partition."""

from __future__ import annotations

import os

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Reply with this process's id and this node's partition, or raise if the run config says so."""
    if context.run_config["fail"] == "client":
        raise ValueError("told to fail")
    print(f"echo from partition {context.node_config['partition-id']} in process {os.getpid()}")
    metrics = MetricRecord(
        {
            "pid": os.getpid(),
            "partition-id": int(context.node_config["partition-id"]),
            "num-partitions": int(context.node_config["num-partitions"]),
            "num-examples": 1,
        }
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
