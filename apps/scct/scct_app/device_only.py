"""The baseline that has no edge and no cloud: every device its own encoder, with a head that points at the answer.

An encoder alone cannot write, so it is asked where the answer is, as is usual for question answering with encoders. Each
device trains on the batches that it would have in the chain, in the same order. Between rounds its model is in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from flwr_splitkd import OptimizerSettings
from flwr_splitkd.clients.enrolment import device_name
from flwr_splitkd.data import make_loader
from flwr_splitkd.data.questions import Question, reading_prompt
from flwr_splitkd.data.questions.score import score
from flwr_splitkd.errors import StoreError
from flwr_splitkd.store import RunFolder
from flwr_splitkd.store.cache import cache_root
from flwr_splitkd.strategies import SCCTResult
from flwr_splitkd.tiers.optimizer import set_learning_rate, warmup_schedule
from scct_app import task
from scct_app.config import AppConfig
from scct_app.models import BUILTIN, load_slm_tokenizer, slm_folder

_log = logging.getLogger("flwr")

_OTHER_RUNS = 2
"""Runs besides the present one whose models a device keeps, as `SCCTClient` does its encoders."""

# ---- on the server


class DeviceOnly(FedAvg):
    """Rounds as Flower's FedAvg calls them, without weights: every device keeps its own."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the metrics."""
        contents = []
        for reply in replies:
            if reply.has_error():
                _log.warning("Round %d: a device replied with an error: %s", server_round, reply.error.reason)
            else:
                contents.append(reply.content)
        return None, self.train_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None


def run_device_only(grid: Grid, config: AppConfig, folder: RunFolder) -> SCCTResult:
    """Run the rounds; every device trains, and answers the held-out questions before the first and after each."""
    nodes = config.min_available_nodes
    strategy = DeviceOnly(
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=nodes,
    )
    found = SCCTResult(run_folder=folder.path)
    asked = strategy.configure_evaluate(0, ArrayRecord(), ConfigRecord(), grid)
    at_start = strategy.aggregate_evaluate(0, grid.send_and_receive(asked))
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(), num_rounds=config.num_server_rounds)
    found.train_metrics_clientapp = result.train_metrics_clientapp
    found.evaluate_metrics_clientapp = result.evaluate_metrics_clientapp
    if at_start is not None:
        found.evaluate_metrics_clientapp[0] = at_start
    for server_round, metrics in sorted(found.evaluate_metrics_clientapp.items()):
        folder.append_metrics({"kind": "evaluation", "server_round": server_round, **dict(metrics)})
    return found


# ---- on the device


def train(msg: Message, context: Context, config: AppConfig) -> Message:
    """Train this device's model for a round."""
    server_round = int(msg.content["config"]["server-round"])
    own = _Own(context, config)
    loader = make_loader(
        task.questions_of(task.round_batches(config, *task.partition_of(context), server_round)),
        config.batch_size,
        shuffle=True,
        seed=task.round_seed(config, server_round),
        collate=partial(Places, tokenizer=own.tokenizer),
    )
    schedule = warmup_schedule("constant_with_warmup", num_warmup_steps=config.warmup_steps, num_training_steps=0)
    own.model.train()
    total, count = 0.0, 0
    partition, _ = task.partition_of(context)
    for batch in islice(chain.from_iterable(repeat(loader)), config.epochs * config.iterations):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(dropout_seed(config.seed, partition, own.step))
            loss = own.model(**batch.inputs, start_positions=batch.first, end_positions=batch.last).loss
        loss.backward()
        if config.max_grad_norm:
            nn.utils.clip_grad_norm_(own.model.parameters(), config.max_grad_norm)
        set_learning_rate(own.optimizer, config.slm_learning_rate * schedule(own.step))
        own.optimizer.step()
        own.optimizer.zero_grad(set_to_none=True)
        own.step += 1
        total, count = total + float(loss.detach()) * len(batch), count + len(batch)
    own.save()
    return _reply(msg, {"train-loss": total / count}, count)


def evaluate(msg: Message, context: Context, config: AppConfig) -> Message:
    """Answer the held-out questions with this device's model."""
    own = _Own(context, config)
    own.model.eval()
    questions = task.questions_of(task.evaluation_batches(config))
    answers: list[str] = []
    total = 0.0
    for batch in make_loader(questions, config.batch_size, collate=partial(Places, tokenizer=own.tokenizer)):
        with torch.no_grad():
            output = own.model(**batch.inputs, start_positions=batch.first, end_positions=batch.last)
        total += float(output.loss) * len(batch)
        answers += batch.answers(output.start_logits, output.end_logits, config.max_answer_tokens)
    scores = score(answers, [question.answers for question in questions])
    metrics = {"eval-loss": total / len(questions), **{f"eval-{name}": value for name, value in scores.items()}}
    return _reply(msg, metrics, len(questions))


def dropout_seed(seed: int, partition: int, step: int) -> int:
    """Return the seed of what dropout draws in one step: the same in every run, and of no other device or step."""
    digest = hashlib.blake2b(f"device-only/{seed}/{partition}/{step}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def model_file(context: Context) -> Path:
    """Return where this device keeps its model of this run."""
    name = re.sub(r"[^\w-]", "_", device_name(context))  # it comes from outside
    return cache_root() / "device-only" / name / f"{context.run_id}.pt"


class _Own:
    """The device's model and optimiser, as of the last round of this run."""

    def __init__(self, context: Context, config: AppConfig) -> None:
        self.tokenizer = load_slm_tokenizer(config.slm_tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # of the new head
            self.model: Any = AutoModelForQuestionAnswering.from_pretrained(
                slm_folder() if config.slm == BUILTIN else config.slm, **config.model_options
            )
        settings = OptimizerSettings(learning_rate=config.slm_learning_rate, weight_decay=config.weight_decay)
        self.optimizer = settings.build(self.model.parameters())
        self.step = 0
        self._file = model_file(context)
        self._load()

    def _load(self) -> None:
        if not self._file.exists():
            return
        kept = torch.load(self._file, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]

    def save(self) -> None:
        """Keep it; the file of the round before is whole until this one is. Those of the newest three runs stay."""
        part = Path(f"{self._file}.part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save({"step": self.step, **state}, part)
            os.replace(part, self._file)
            others = [path for path in self._file.parent.glob("*.pt") if path != self._file]
            for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[_OTHER_RUNS:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._file} cannot be written: {error}. Free some disk space.") from error


class Places:
    """A batch of questions as tokens that know where in the text they stand."""

    def __init__(self, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> None:
        self._questions = questions
        encoded: Any = tokenizer(
            [reading_prompt(question) for question in questions],
            padding=True,
            return_offsets_mapping=True,
            return_tensors="pt",
            verbose=False,
        )
        self._offsets = encoded["offset_mapping"]
        self.inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        found = [self._span(row, question) for row, question in enumerate(questions)]
        self.first, self.last = (torch.tensor(column) for column in zip(*found, strict=True))

    def __len__(self) -> int:
        return len(self._questions)

    def _span(self, row: int, question: Question) -> tuple[int, int]:
        start = question.context.find(question.answer)
        end = start + len(question.answer)
        begins, ends = self._offsets[row].unbind(-1)
        places = ((begins < end) & (ends > start) & (begins < ends)).nonzero().flatten()
        return int(places[0]), int(places[-1])

    def answers(self, first: Tensor, last: Tensor, longest: int) -> list[str]:
        """The text between the likeliest pair of places of the context that is not longer than `longest` tokens."""
        said = []
        for row, question in enumerate(self._questions):
            begins, ends = self._offsets[row].unbind(-1)
            outside = (ends > len(question.context)) | (begins >= ends)
            scores = first[row].masked_fill(outside, -torch.inf)[:, None] + last[row].masked_fill(outside, -torch.inf)
            ahead = torch.ones_like(scores, dtype=torch.bool)
            scores = scores.masked_fill(~(ahead.triu() & ahead.tril(longest - 1)), -torch.inf)
            a, b = divmod(int(scores.argmax()), scores.shape[1])
            said.append(question.context[int(begins[a]) : int(ends[b])])
        return said


def _reply(msg: Message, metrics: dict[str, float], num_examples: int) -> Message:
    record = MetricRecord({**metrics, "num-examples": num_examples})
    return Message(content=RecordDict({"arrays": ArrayRecord(), "metrics": record}), reply_to=msg)
