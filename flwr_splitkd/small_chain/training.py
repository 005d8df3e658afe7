"""The small chain's training in one process: several devices' encoders, one language model with a module, and the module alone.

Training is real; devices, edge and cloud are not: every encoder is whole and in the same process as the language model.
Split and in three processes the same steps give the same weights (tests/integration/chain), so where encoders are split, and who
gets which share of the edge, changes how long a step takes and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.data import make_loader
from flwr_splitkd.data.questions import (
    EncodingConfig,
    QuestionConfig,
    QuestionDataset,
    encode_questions,
    heldout_questions,
    partition_questions,
)
from flwr_splitkd.data.questions.score import scorer
from flwr_splitkd.models import PretrainedModel
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.processes import worker_processes
from flwr_splitkd.small_chain.curve import Curve, Training
from flwr_splitkd.small_chain.models import load_tokenizer
from flwr_splitkd.tiers.cloud import CloudLLM, CloudTask, TaskSettings
from flwr_splitkd.tiers.optimizer import OptimizerSettings, set_learning_rate, warmup_schedule

__all__ = ["TrainingSettings", "train", "train_all"]

_Batch = Mapping[str, Tensor]
_Batches = Iterator[_Batch]

_TASK = "questions"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How long, on what, and how fast; the defaults are those of ``apps/scct``.

    Parameters
    ----------
    devices
        Each with an encoder and questions of its own.
    rounds, epochs, iterations
        Rounds, epochs in a round, iterations in an epoch. An iteration is one batch of every device, and one step of the module.
    batch_size, max_positions, max_answer_tokens
        Questions in a batch, tokens of context and question, and of an answer, at most; longer ones are left out.
    heldout
        Held-out questions that an evaluation asks, in equal parts by every device.
    slm_learning_rate, module_learning_rate, weight_decay, warmup_steps, max_grad_norm, bottleneck
        Of encoders and module.
    data
        The questions.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    devices: int = 3
    rounds: int = 5
    epochs: int = 2
    iterations: int = 20
    batch_size: int = 8
    max_positions: int = 192
    max_answer_tokens: int = 48
    heldout: int = 128
    slm_learning_rate: float = 5e-4
    module_learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 10
    max_grad_norm: float = 1.0
    bottleneck: int = 64
    data: QuestionConfig = field(default_factory=QuestionConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("devices", "rounds", "epochs", "iterations", "batch_size"):
            check_number(name, getattr(self, name), minimum=1)
        check_number("heldout", self.heldout, minimum=self.devices)


def train(
    training: Training,
    models: Path,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curve:
    """Train along the chain, or the module of the language model alone, on the same batches in the same order.

    Parameters
    ----------
    training
        ``"chain"``, or ``"cloud-only"``: the paper's CloudO, from the questions' tokens.
    models
        Folder with the pretrained ``slm`` and ``llm``, as `models_folder` returns it.
    settings
        How long, and on what.
    seed
        Of the module's weights and the order of the questions. The small models have no dropout.
    on_progress
        Told how many iterations of how many are done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        questions = _Questions(settings, seed)
        learner = (_Chain if training == "chain" else _CloudOnly)(models, settings, seed)
        total = settings.rounds * settings.epochs * settings.iterations
        losses: list[float] = []
        scores = [_evaluate(learner, questions)]
        for server_round in range(1, settings.rounds + 1):
            batches = questions.of_round(server_round)
            for _ in range(settings.epochs):
                nats, tokens = 0.0, 0
                for _ in range(settings.iterations):
                    loss, count = learner.iterate([next(one) for one in batches])
                    nats, tokens = nats + loss, tokens + count
                    on_progress(learner.steps, total)
                losses.append(nats / max(tokens, 1))
            scores.append(_evaluate(learner, questions))
    heldout_loss, f1, exact_match = (tuple(column) for column in zip(*scores, strict=True))
    return Curve(
        training=training, seed=seed, loss=tuple(losses), heldout_loss=heldout_loss, f1=f1, exact_match=exact_match
    )


def train_all(
    cases: Sequence[tuple[Training, int]],
    models: Path,
    settings: TrainingSettings,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Curve]:
    """Do several trainings, each in a process and on a thread of its own, so that the machine's cores do not change the result.

    Parameters
    ----------
    cases
        Training and seed of each; curves come in this order.
    models, settings
        As in `train`.
    on_progress
        Told how many trainings of how many are done.
    """
    curves: list[Curve] = []
    with worker_processes(_alone) as pool:
        for curve in pool.map(partial(_train, models, settings), cases):
            curves.append(curve)
            on_progress(len(curves), len(cases))
    return curves


def _alone() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of every small model that is loaded


def _train(models: Path, settings: TrainingSettings, case: tuple[Training, int]) -> Curve:
    training, seed = case
    return train(training, models, settings, seed=seed)


class _Questions:
    """Every device's questions, and those that nobody trains on."""

    def __init__(self, settings: TrainingSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.tokenizer = load_tokenizer()
        self._parts = [
            self._encoded(partition_questions(settings.data, device, settings.devices))
            for device in range(settings.devices)
        ]
        self.heldout = self._encoded(heldout_questions(settings.data)).spread(settings.heldout)

    def of_round(self, server_round: int) -> list[_Batches]:
        """Batches without end for each device; every round has another order."""
        return [_endless(self._loader(part, self._seed * 1_000_003 + server_round)) for part in self._parts]

    def asked(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of held-out questions, always in the same order."""
        return make_loader(self.heldout, self._settings.batch_size, collate=self.heldout.collate)

    def _loader(self, part: QuestionDataset, seed: int) -> DataLoader[dict[str, Tensor]]:
        return make_loader(part, self._settings.batch_size, shuffle=True, seed=seed, collate=part.collate)

    def _encoded(self, questions: Sequence[Any]) -> QuestionDataset:
        encoding = EncodingConfig(
            max_positions=self._settings.max_positions,
            max_answer_tokens=self._settings.max_answer_tokens,
            on_long="skip",
            reference=True,
        )
        return encode_questions(questions, self.tokenizer, self.tokenizer, encoding)


class _CloudOnly:
    """The module of the language model, from the questions' tokens."""

    def __init__(self, models: Path, settings: TrainingSettings, seed: int) -> None:
        self._settings = settings
        self._task: CloudTask = CloudLLM(PretrainedModel(models / "llm")()).add_task(
            _TASK,
            TaskSettings(
                slm_width=self._width(models),
                peft=SerialAdapterConfig(bottleneck=settings.bottleneck),
                optimizer=OptimizerSettings(
                    learning_rate=settings.module_learning_rate, weight_decay=settings.weight_decay
                ),
                max_grad_norm=settings.max_grad_norm,
                max_new_tokens=settings.max_answer_tokens,
                seed=seed,
            ),
        )

    @property
    def steps(self) -> int:
        """Iterations that are done."""
        return self._task.next_step

    def iterate(self, batches: Sequence[_Batch]) -> tuple[float, int]:
        """Train on one batch of each device; the sum of their losses in nats, and the number of tokens."""
        keys = [(device, self.steps) for device in range(len(batches))]
        pairs = [self._differentiate(key, batch) for key, batch in zip(keys, batches, strict=True)]
        self._task.step(keys)
        return sum(loss * count for loss, count in pairs), sum(count for _, count in pairs)

    def evaluate(self, device: int, batch: _Batch) -> tuple[float, int, Tensor]:
        """Nats and tokens of the right answers, and the answers that are given."""
        tokens = _tokens(batch)
        return *self._task.evaluate_tokens(tokens, batch["labels"]), self._task.generate_tokens(tokens)

    def _width(self, models: Path) -> int:
        return 1  # nothing goes through the projection

    def _differentiate(self, key: tuple[int, int], batch: _Batch) -> tuple[float, int]:
        return self._task.differentiate_tokens(_tokens(batch), batch["labels"], key=key)


class _Chain(_CloudOnly):
    """The same module behind the devices' encoders, which train as well."""

    def __init__(self, models: Path, settings: TrainingSettings, seed: int) -> None:
        self._encoders: list[nn.Module] = [
            PretrainedModel(models / "slm", task="encoder")() for _ in range(settings.devices)
        ]
        optimizer = OptimizerSettings(learning_rate=settings.slm_learning_rate, weight_decay=settings.weight_decay)
        self._optimizers = [optimizer.build(one.parameters()) for one in self._encoders]
        self._schedule = warmup_schedule(
            "constant_with_warmup", num_warmup_steps=settings.warmup_steps, num_training_steps=0
        )
        super().__init__(models, settings, seed)

    def evaluate(self, device: int, batch: _Batch) -> tuple[float, int, Tensor]:
        """As of the language model alone."""
        encoder = self._encoders[device].eval()
        with torch.no_grad():
            hidden = _hidden(encoder, batch)
        encoder.train()
        mask = batch["attention_mask"]
        return *self._task.evaluate(hidden, mask, batch["labels"]), self._task.generate(hidden, mask)

    def _width(self, models: Path) -> int:
        config: Any = self._encoders[0].config
        return int(config.hidden_size)

    def _differentiate(self, key: tuple[int, int], batch: _Batch) -> tuple[float, int]:
        device, step = key
        encoder, optimizer = self._encoders[device], self._optimizers[device]
        hidden = _hidden(encoder, batch)
        found = self._task.differentiate(hidden.detach(), batch["attention_mask"], batch["labels"], key=key)
        hidden.backward(found.gradient.to(hidden.dtype))  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(encoder.parameters(), self._settings.max_grad_norm)
        set_learning_rate(optimizer, self._settings.slm_learning_rate * self._schedule(step))
        optimizer.step()
        optimizer.zero_grad()
        return found.loss, found.num_tokens


def _evaluate(learner: _CloudOnly, questions: _Questions) -> tuple[float, float, float]:
    """Loss, F1 and exact match: the devices take turns with the batches."""
    rate = scorer(questions.tokenizer, questions.heldout)
    nats, tokens, rated, sums = 0.0, 0, 0, {"f1": 0.0, "exact_match": 0.0}
    for position, batch in enumerate(questions.asked()):
        loss, count, said = learner.evaluate(position % learner._settings.devices, batch)
        nats, tokens, rated = nats + loss, tokens + count, rated + len(said)
        for name, value in rate([[t for t in row if t >= 0] for row in said.tolist()], batch).items():
            sums[name] += value * len(said)
    return nats / max(tokens, 1), sums["f1"] / rated, sums["exact_match"] / rated


def _hidden(encoder: nn.Module, batch: _Batch) -> Tensor:
    hidden: Tensor = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return hidden


def _tokens(batch: _Batch) -> dict[str, Tensor]:
    """The language model's own tokens of context and question."""
    return {name: batch[f"reference_{name}"] for name in ("input_ids", "attention_mask")}


def _endless(loader: DataLoader[dict[str, Tensor]]) -> _Batches:
    """Pass after pass, without touching torch's generator."""
    while True:
        with torch.random.fork_rng(devices=[]):  # each for itself: a suspended `with` would restore it much later
            batches = iter(loader)
        while True:
            with torch.random.fork_rng(devices=[]):
                batch = next(batches, None)
            if batch is None:
                break
            yield batch
