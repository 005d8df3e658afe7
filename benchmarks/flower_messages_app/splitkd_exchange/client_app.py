"""The device: takes the gradient at the cut, sends the next step's smashed data. It computes nothing."""

from __future__ import annotations

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from splitkd_exchange import tensors

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Answer one downlink with one uplink."""
    received = tensors.read(msg.content)
    content = RecordDict(
        {
            "arrays": tensors.make(str(context.run_config["up"])),
            "metrics": MetricRecord({"num-examples": 1, "down-bytes": received}),
        }
    )
    return Message(content=content, reply_to=msg)
