"""The device: its questions, and the first layers of its encoder."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flwr_splitkd import SCCTClient
from flwr_splitkd.clients import enrol
from flwr_splitkd.errors import DataError
from scct_app import task
from scct_app.config import read_config
from scct_app.models import load_llm_tokenizer, load_slm_tokenizer, slm_builder

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Take part in a round."""
    config = read_config(context.run_config)
    data = task.load_partition(
        _partition(context, "partition-id"),
        _partition(context, "num-partitions"),
        config=config.questions,
        encoding=config.encoding,
        batch_size=config.batch_size,
        seed=config.seed,
        slm_tokenizer=load_slm_tokenizer(config.slm_tokenizer),
        llm_tokenizer=load_llm_tokenizer(config.llm_tokenizer),
    )
    return SCCTClient(slm=slm_builder(config.slm, **config.model_options), data=data).train(msg, context)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Answer questions about modules that no device has."""
    config = read_config(context.run_config)
    tokenizer = load_llm_tokenizer(config.llm_tokenizer)
    data = task.heldout_loader(
        config=config.questions,
        encoding=config.encoding,
        batch_size=config.batch_size,
        max_questions=config.heldout_questions,
        slm_tokenizer=load_slm_tokenizer(config.slm_tokenizer),
        llm_tokenizer=tokenizer,
    )
    client = SCCTClient(slm=slm_builder(config.slm, **config.model_options), data=data, score=task.scorer(tokenizer))
    return client.evaluate(msg, context)


@app.query()
def query(msg: Message, context: Context) -> Message:
    """Say who this device is, so that the order of the devices is the same in every run."""
    return enrol(msg, context)


def _partition(context: Context, key: str) -> int:
    if key not in context.node_config:
        raise DataError(
            f"The node config has the keys {sorted(context.node_config)}; expected `{key}` among them. Start the SuperNode "
            "with --node-config 'partition-id=0 num-partitions=2'."
        )
    return int(context.node_config[key])
