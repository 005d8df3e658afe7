"""What is learned in the quality benchmark: two tasks made from the built-in corpus, with their models.

``lm``: next tokens. Each device has the text of other modules of the standard library.
``classification``: which of the library's largest packages a block of text is from. Most of a device's blocks are of
one package.

Nobody trains on the validation text, which chooses learning rates, nor on the held-out text, which is quoted.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "split_kd"))

from split_kd_app import task as app
from split_kd_app.teacher import TeacherRecipe, cached_teacher, llama_config, seeded_llama

from flwr_splitkd.data import DataConfig, Document, make_loader, split_documents, stdlib_documents, text_blocks
from flwr_splitkd.models import PretrainedModel

__all__ = ["Batch", "Samples", "Scale", "Task", "TaskKey", "dealt", "load_task", "pooled", "skewed"]

Batch = dict[str, Tensor]
Progress = Callable[[int, int, float], None]
TaskKey = Literal["lm", "classification"]

# Of the built-in corpus's held-out modules these choose learning rates; the figures are from the others.
VALIDATION_MODULES = ("argparse", "json", "pathlib", "tarfile")
# One block in so many of a device's text is not trained on and measures what the device's text costs later.
OWN_HELDOUT_EVERY = 8
OWN_CLASS_SHARE = 0.5
# At most so many blocks of each class; of 20 consecutive ones so many for each purpose.
CLASS_BLOCKS = 1000
CLASS_ROLES = {
    "teacher": range(0, 7),
    "devices": range(7, 14),
    "own": range(14, 16),
    "validation": range(16, 18),
    "heldout": range(18, 20),
}
EVALUATION_BATCH = 32
STUDENT_LAYERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run of the benchmark.

    Parameters
    ----------
    devices
        Also the number of classes of the classification.
    rounds, turn_steps
        Turns of each device, and optimiser steps in one; the total is the same for every arm.
    class_turn_steps
        The same for the classification.
    sequence_length, class_sequence_length, batch_size, class_batch_size
        Of every training batch.
    width
        Hidden size of the student language model.
    teacher, better_teacher
        The language model's teachers: the demo app's, and one trained longer on the same text.
    toy
        Whether these are kept in the run's own folder, instead of the app's cache.
    rates
        How many learning rates of the grid are tried, from the highest.
    class_teacher_steps
        Training of the classification's teacher.
    heldout_blocks, own_blocks
        Most blocks that an evaluation reads: of held-out and validation text, and of one device's own.
    """

    devices: int = 5
    rounds: int = 4
    turn_steps: int = 16
    class_turn_steps: int = 20
    sequence_length: int = 48
    class_sequence_length: int = 32
    batch_size: int = 8
    class_batch_size: int = 16
    width: int = 96
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    better_teacher: TeacherRecipe = field(default_factory=lambda: TeacherRecipe(steps=1500))
    toy: bool = False
    rates: int = 4
    class_teacher_steps: int = 400
    heldout_blocks: int = 512
    own_blocks: int = 64

    @classmethod
    def quick(cls) -> Scale:
        """Sizes of a smoke test."""
        recipe = TeacherRecipe(
            hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, sequence_length=32, batch_size=4, steps=20
        )
        return cls(
            devices=3,
            rounds=2,
            turn_steps=4,
            class_turn_steps=4,
            sequence_length=24,
            class_sequence_length=16,
            batch_size=2,
            class_batch_size=4,
            width=16,
            teacher=recipe,
            better_teacher=replace(recipe, steps=40),
            toy=True,
            rates=2,
            class_teacher_steps=20,
            heldout_blocks=32,
            own_blocks=8,
        )


class Samples(Dataset[Batch]):
    """Token blocks with labels: a label a token, or one a block."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> None:
        self.tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: int) -> Batch:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def take(self, index: Sequence[int]) -> Samples:
        """Return some samples, in the order of ``index``."""
        return Samples(**{name: tensor[list(index)] for name, tensor in self.tensors.items()})

    def spread(self, most: int) -> Samples:
        """Return at most ``most`` samples, evenly spaced."""
        return self if len(self) <= most else self.take([i * len(self) // most for i in range(most)])


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, models and the figure that counts.

    Parameters
    ----------
    key
        Which task.
    kind
        What the product calls it.
    train, own
        Each device's training samples, and samples of its own text that are not trained on.
    validation, heldout
        What chooses the learning rate, and what is quoted.
    student, teacher, better_teacher
        Builders; the student's takes the seed. There is a better teacher of the language model only, and it is trained
        when it is first built.
    turn_steps, batch_size
        As in `Scale`.
    """

    key: TaskKey
    kind: Literal["causal-lm", "classification"]
    train: list[Samples]
    own: list[Samples]
    validation: Samples
    heldout: Samples
    student: Callable[[int], nn.Module]
    teacher: Callable[[], nn.Module]
    better_teacher: Callable[[], nn.Module] | None = None
    turn_steps: int
    batch_size: int

    @property
    def lower_is_better(self) -> bool:
        """Perplexity, or accuracy in percent."""
        return self.kind == "causal-lm"

    @cached_property
    def all_text(self) -> Samples:
        """Every device's training samples."""
        return pooled(self.train)

    @cached_property
    def train_iid(self) -> list[Samples]:
        """The same samples, dealt to the same number of devices whatever they are about."""
        return [self.all_text.take(index) for index in dealt(len(self.all_text), len(self.train))]

    def loader(self, samples: Samples, seed: int, steps: int) -> DataLoader[Batch]:
        """Return ``steps`` training batches, drawn without replacement as long as they last."""
        return make_loader(samples, self.batch_size, shuffle=True, seed=seed, max_batches=steps)

    def figure(self, model: nn.Module, samples: Samples) -> float:
        """Perplexity of a language model, accuracy of a classifier in percent."""
        loader = make_loader(samples, EVALUATION_BATCH)
        if self.kind == "causal-lm":
            return app.evaluate(model, loader)["perplexity"]
        return 100.0 * _accuracy(model, loader)


def load_task(key: TaskKey, scale: Scale, folder: Path, progress: Progress = lambda *_: None) -> Task:
    """Make a task; its teacher is trained first unless it is in ``folder`` or in the app's cache."""
    tokenizer = app.load_tokenizer()
    return (
        _language_model(scale, folder, tokenizer, progress)
        if key == "lm"
        else _classes(scale, folder, tokenizer, progress)
    )


def pooled(parts: Sequence[Samples]) -> Samples:
    """Join the samples of several devices."""
    names = parts[0].tensors
    return Samples(**{name: torch.cat([part.tensors[name] for part in parts]) for name in names})


def dealt(count: int, devices: int, seed: int = 0) -> list[list[int]]:
    """Deal ``count`` samples to devices at random, evenly."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[device::devices] for device in range(devices)]


def skewed(counts: Sequence[int], own_share: float) -> list[list[tuple[int, int]]]:
    """Divide the samples of as many classes as there are devices, so that device i has most of class i.

    Parameters
    ----------
    counts
        Samples of each class.
    own_share
        Share of a class in [0, 1] that goes to its own device; the others get the same share of the rest.

    Returns
    -------
    list of list of tuple
        For each device the (class, index) of its samples.
    """
    devices = len(counts)
    parts: list[list[tuple[int, int]]] = [[] for _ in counts]
    for label, count in enumerate(counts):
        others = [device for device in range(devices) if device != label]
        own = round(own_share * count) if others else count
        for index in range(count):
            device = label if index < own else others[(index - own) % len(others)]
            parts[device].append((label, index))
    return parts


def _language_model(scale: Scale, folder: Path, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Task:
    config = DataConfig(sequence_length=scale.sequence_length)
    split = split_documents(config, scale.devices)

    def samples(documents: Iterable[Document]) -> Samples:
        blocks = text_blocks(documents, tokenizer, scale.sequence_length)
        return Samples(blocks.input_ids, blocks.attention_mask, blocks.labels)

    def teacher(recipe: TeacherRecipe) -> nn.Module:
        root = folder if scale.toy else None
        path = cached_teacher(split.teacher.documents, tokenizer, recipe=recipe, root=root, progress=progress)
        return PretrainedModel(path)()

    teacher(scale.teacher)
    devices = [samples(partition.documents) for partition in split.devices]
    choosing = [document for document in split.heldout.documents if document.module in VALIDATION_MODULES]
    quoted = [document for document in split.heldout.documents if document.module not in VALIDATION_MODULES]
    student = llama_config(tokenizer, scale.width, scale.width * 5 // 2, STUDENT_LAYERS, 4)
    return Task(
        key="lm",
        kind="causal-lm",
        train=[device.take([i for i in range(len(device)) if i % OWN_HELDOUT_EVERY]) for device in devices],
        own=[device.take(range(0, len(device), OWN_HELDOUT_EVERY)).spread(scale.own_blocks) for device in devices],
        validation=samples(choosing).spread(scale.heldout_blocks),
        heldout=samples(quoted).spread(scale.heldout_blocks),
        student=partial(seeded_llama, student),
        teacher=partial(teacher, scale.teacher),
        better_teacher=partial(teacher, scale.better_teacher),
        turn_steps=scale.turn_steps,
        batch_size=scale.batch_size,
    )


def _classes(scale: Scale, folder: Path, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Task:
    # The largest packages of the whole corpus; what the language model keeps apart for its teacher is no matter here.
    documents = stdlib_documents()
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.module] += document.num_bytes
    classes = []
    for label, (name, _) in enumerate(sizes.most_common(scale.devices)):
        chosen = [document for document in documents if document.module == name]
        blocks = text_blocks(chosen, tokenizer, scale.class_sequence_length).spread(CLASS_BLOCKS)
        classes.append(Samples(blocks.input_ids, blocks.attention_mask, torch.full((len(blocks),), label)))

    def role(name: str) -> list[Samples]:
        return [one.take([i for i in range(len(one)) if i % 20 in CLASS_ROLES[name]]) for one in classes]

    def devices(parts: list[Samples]) -> list[Samples]:
        where = skewed([len(part) for part in parts], OWN_CLASS_SHARE)
        offsets = [sum(len(part) for part in parts[:label]) for label in range(len(parts))]
        everything = pooled(parts)
        return [everything.take([offsets[label] + index for label, index in chosen]) for chosen in where]

    build = partial(_bert, tokenizer, scale.devices)
    path = folder / "classifier"
    if not path.exists():
        _train_classifier(build(128, 384, 0), pooled(role("teacher")), scale, progress).save_pretrained(path)
    return Task(
        key="classification",
        kind="classification",
        train=devices(role("devices")),
        own=devices(role("own")),
        validation=pooled(role("validation")),
        heldout=pooled(role("heldout")),
        student=partial(build, scale.width // 2, scale.width),
        teacher=partial(BertForSequenceClassification.from_pretrained, path),
        turn_steps=scale.class_turn_steps,
        batch_size=scale.class_batch_size,
    )


def _bert(tokenizer: PreTrainedTokenizerBase, classes: int, width: int, inner: int, seed: int) -> nn.Module:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=STUDENT_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=classes,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def _train_classifier(model: nn.Module, samples: Samples, scale: Scale, progress: Progress) -> nn.Module:
    steps = scale.class_teacher_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    per_pass = math.ceil(len(samples) / 16)
    model.train()
    for step in range(steps):
        if step % per_pass == 0:
            batches = iter(make_loader(samples, 16, shuffle=True, seed=step))
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        progress(step + 1, steps, loss.item())
    return model.train(False)


def _accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    was_training = model.training
    model.train(False)
    right, count = 0, 0
    with torch.inference_mode():
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            right += int((model(**inputs).logits.argmax(-1) == batch["labels"]).sum())
            count += len(batch["labels"])
    model.train(was_training)
    return right / count
