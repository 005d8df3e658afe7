"""The device: its questions, and the first layers of its encoder."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flwr_splitkd import SCCTClient
from flwr_splitkd.clients import enrol
from flwr_splitkd.data.questions.score import scorer
from scct_app import device_only, task
from scct_app.config import read_config
from scct_app.models import load_llm_tokenizer, slm_builder

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Take part in a round."""
    config = read_config(context.run_config)
    if config.training == "device-only":
        return device_only.train(msg, context, config)
    data = task.round_batches(config, *task.partition_of(context), int(msg.content["config"]["server-round"]))
    client = SCCTClient(
        slm=slm_builder(config.slm, **config.model_options), data=data, step_timeout_s=config.answer_timeout_s
    )
    return client.train(msg, context)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Answer questions about modules that no device has."""
    config = read_config(context.run_config)
    if config.training == "device-only":
        return device_only.evaluate(msg, context, config)
    data = task.evaluation_batches(config)
    client = SCCTClient(
        slm=slm_builder(config.slm, **config.model_options),
        data=data,
        score=scorer(load_llm_tokenizer(config.llm_tokenizer), task.dataset_of(data)),
        step_timeout_s=config.answer_timeout_s,
    )
    return client.evaluate(msg, context)


@app.query()
def query(msg: Message, context: Context) -> Message:
    """Say who this device is, so that the order of the devices is the same in every run."""
    return enrol(msg, context)
