"""The device: a turn of one step, or an answer without one."""

from __future__ import annotations

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_splitkd import SplitKDClient
from splitkd_scale.task import batches, build_student

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Take a turn, or say that the message has come."""
    if context.run_config["kind"] == "messages":
        return Message(content=RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=msg)
    torch.set_num_threads(1)
    data = batches(int(context.node_config["partition-id"]))
    return SplitKDClient(student=build_student, data=data).train(msg, context)
