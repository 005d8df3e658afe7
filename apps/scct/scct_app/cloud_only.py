"""The baseline that has no devices: the module of the language model, from the questions' tokens (CloudO of the paper).

All questions are in this process, with which training in the cloud alone begins. Everything else is as in the chain: in each
iteration one batch of each device's questions, in the same order, and one step of the module over the sum of their losses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from flwr.app import MetricRecord
from torch import Tensor

from flwr_splitkd.data.questions.score import scorer
from flwr_splitkd.errors import DataError
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies import EpochRecord, SCCTResult
from flwr_splitkd.tiers.cloud import CloudLLM, CloudTask, build_llm
from flwr_splitkd.tiers.device.batches import Batch
from scct_app import task
from scct_app.config import AppConfig
from scct_app.models import llm_builder, load_llm_tokenizer
from scct_app.module import module_settings

_log = logging.getLogger("flwr")


def train_cloud_only(config: AppConfig, folder: RunFolder) -> SCCTResult:
    """Train for as many rounds as the chain would, with the questions of `min_available_nodes` devices."""
    built: Any = build_llm(llm_builder(config.llm, **config.model_options), config.cloud_compute_device or None)
    _log.info("Cloud only: the language model is on %s", next(built.parameters()).device)
    window: int | None = getattr(built.config.get_text_config(), "max_position_embeddings", None)
    llm = CloudLLM(built)
    # Nothing goes through the projection: any width will do.
    one = llm.add_task(config.task, module_settings(config, slm_width=1))
    result = SCCTResult(run_folder=folder.path)
    within = partial(_within, window, config)
    _evaluate(one, config, within(task.evaluation_batches(config)), 0, result, folder)
    for server_round in range(1, config.num_server_rounds + 1):
        nodes = config.min_available_nodes
        loaders = [within(task.round_batches(config, device, nodes, server_round)) for device in range(nodes)]
        batches = [_endless(loader) for loader in loaders]
        for epoch in range(1, config.epochs + 1):
            record = _epoch(one, config, server_round, epoch, batches)
            result.epochs.append(record)
            folder.append_metrics(record.to_json())
            _log.info("Round %d epoch %d, cloud only: loss %.4f", server_round, epoch, record.loss)
        _evaluate(one, config, within(task.evaluation_batches(config)), server_round, result, folder)
    return result


def _within(window: int | None, config: AppConfig, loader: task.Loader) -> task.Loader:
    """Refuse what the language model cannot read: left out, it would be missing here, and trained on in the chain."""
    data = task.dataset_of(loader)
    longest = max(len(data[number]["reference_input_ids"]) for number in range(len(data)))
    if window is not None and longest + config.max_answer_tokens > window:
        raise DataError(
            f"a question is {longest} tokens of the language model's with its context, and an answer up to "
            f"{config.max_answer_tokens}; expected at most {window} together, its window. Lower `max-positions`, for every "
            "training that is to be compared."
        )
    return loader


def _epoch(
    one: CloudTask, config: AppConfig, server_round: int, epoch: int, batches: list[Iterator[Batch]]
) -> EpochRecord:
    began_s, total, num_tokens = time.monotonic(), 0.0, 0
    for _ in range(config.iterations):
        keys = [(device, one.next_step) for device in range(len(batches))]
        for key, device in zip(keys, batches, strict=True):
            batch = next(device)
            loss, count = one.differentiate_tokens(_tokens(batch), batch["labels"], key=key)
            total, num_tokens = total + loss * count, num_tokens + count
        stepped = one.step(keys)
    return EpochRecord(
        server_round=server_round,
        epoch=epoch,
        num_iterations=config.iterations,
        loss=total / max(num_tokens, 1),
        reference_loss=None,
        seconds=time.monotonic() - began_s,
        num_missed=0,
        module_step=one.next_step,
        learning_rate=stepped.learning_rate,
        grad_norm=stepped.grad_norm,
    )


def _evaluate(
    one: CloudTask, config: AppConfig, loader: task.Loader, server_round: int, result: SCCTResult, folder: RunFolder
) -> None:
    rate = scorer(load_llm_tokenizer(config.llm_tokenizer), task.dataset_of(loader))
    sums: dict[str, float] = {}
    nats, num_tokens, num_questions = 0.0, 0, 0
    for batch in loader:
        loss, count = one.evaluate_tokens(_tokens(batch), batch["labels"])
        nats, num_tokens = nats + loss, num_tokens + count
        answers = [[t for t in row if t >= 0] for row in one.generate_tokens(_tokens(batch)).tolist()]
        for name, value in rate(answers, batch).items():
            sums[name] = sums.get(name, 0.0) + value * len(answers)
        num_questions += len(answers)
    metrics = {
        "eval-loss": nats / max(num_tokens, 1),
        **{f"eval-{name}": value / num_questions for name, value in sums.items()},
    }
    _log.info("Round %d, evaluation: %s", server_round, {name: round(value, 3) for name, value in metrics.items()})
    result.evaluate_metrics_clientapp[server_round] = MetricRecord(metrics)
    folder.append_metrics({"kind": "evaluation", "server_round": server_round, **metrics})


def _tokens(batch: Batch) -> dict[str, Tensor]:
    """The language model's own tokens of context and question."""
    return {name: batch[f"reference_{name}"] for name in ("input_ids", "attention_mask")}


def _endless(loader: task.Loader) -> Iterator[Batch]:
    """A device's batches of a round, pass after pass, as it would take them itself."""
    while True:
        with torch.random.fork_rng(devices=[]):
            yield from loader
