"""The device: its data, and the first layers of the student."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flwr_splitkd.clients import SplitKDClient, enrol
from flwr_splitkd.errors import DataError
from split_kd_app import task
from split_kd_app.config import read_config

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Take a turn."""
    return _client(msg, context).train(msg, context)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the student on this device's data."""
    return _client(msg, context).evaluate(msg, context)


@app.query()
def query(msg: Message, context: Context) -> Message:
    """Say who this device is, to policies that choose by names or costs."""
    return enrol(msg, context)


def _client(msg: Message, context: Context) -> SplitKDClient:
    config = read_config(context.run_config)
    server_round = int(msg.content["config"]["server-round"])
    data = task.load_partition(
        _partition(context, "partition-id"),
        _partition(context, "num-partitions"),
        config=config.text,
        tokenizer=task.load_tokenizer(config.tokenizer),
        batch_size=config.batch_size,
        max_batches=config.max_batches or None,
        seed=config.seed * 1_000_003 + server_round,  # every round in another order
    )
    return SplitKDClient(
        student=task.student_builder(config.student, **config.model_options),
        data=data,
        max_restarts=config.max_restarts,
    )


def _partition(context: Context, key: str) -> int:
    if key not in context.node_config:
        raise DataError(
            f"The node config has the keys {sorted(context.node_config)}; expected `{key}` among them. Start the SuperNode "
            "with --node-config 'partition-id=0 num-partitions=2'."
        )
    return int(context.node_config[key])
