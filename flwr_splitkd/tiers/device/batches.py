"""A device's data: batches, their labels as the loss wants them, and micro-batches in optimiser steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from flwr_splitkd.errors import DataError
from flwr_splitkd.tiers.seeds import data_seed
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Batch", "DeviceData", "as_batch", "check_token_ids", "count_labels", "split_labels"]

Batch = Mapping[str, Tensor]
"""Tensors by the names of the model's inputs, with ``labels``."""


class DeviceData:
    """A device's data set as the turn uses it.

    Parameters
    ----------
    batches
        Sized and iterable more than once, such as a `torch.utils.data.DataLoader`; yields what `as_batch` takes.

    Raises
    ------
    DataError
        If it is empty, or has no length.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if not isinstance(batches, Sized):
            raise DataError(
                f"`data` is a {type(batches).__name__} without a length; expected a DataLoader or a list of batches, "
                "because the edge plans with the number of batches."
            )
        self._batches = batches
        self.num_batches = len(batches)
        if self.num_batches == 0:
            raise DataError(
                "`data` has 0 batches; expected at least 1. Give this device a partition with samples, or lower "
                "`batch_size` if the loader drops the last batch."
            )
        self.num_examples = _pass_examples(batches) or self._count()

    def epoch(self, plan: pb.Begin, epoch: int, data_input: str) -> Iterator[list[Batch]]:
        """One pass over the data: the micro-batches of each optimiser step.

        `data_input` names the model's argument for the data.
        """
        one_pass = self.one_pass(plan.seed, plan.order_step, epoch, data_input)
        batches = itertools.islice(one_pass, plan.max_batches or None)
        while group := list(itertools.islice(batches, max(plan.gradient_accumulation_steps, 1))):
            yield group

    def one_pass(self, seed: int, order_step: int, epoch: int, data_input: str) -> Iterator[Batch]:
        """The batches of one pass, in the order that these three numbers seed; see `data_seed`."""
        # A loader that shuffles draws its order from torch's generator when its iterator is made.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data_seed(seed, order_step, epoch))
            iterator = iter(self._batches)
            first = next(iterator, None)
        if first is None:
            return
        for batch in itertools.chain([first], iterator):
            yield as_batch(batch, data_input)

    def _count(self) -> int:
        return sum(len(next(iter(as_batch(batch, "inputs").values()))) for batch in self._batches)


def _pass_examples(batches: Iterable[Any]) -> int:
    """Samples in one pass over a loader, which may draw only some of its data set; 0 if it does not tell."""
    if not isinstance(dataset := getattr(batches, "dataset", None), Sized):
        return 0
    batch_size = getattr(batches, "batch_size", None)
    if not (isinstance(batches, Sized) and isinstance(batch_size, int)):  # a batch sampler of the user's own
        return len(dataset)
    sampler = getattr(batches, "sampler", None)
    return min(len(sampler if isinstance(sampler, Sized) else dataset), len(batches) * batch_size)


def split_labels(batch: Batch, task: int, ignore_index: int) -> tuple[dict[str, Tensor], Tensor]:
    """Separate a batch into the model's inputs and the labels that line up with its outputs.

    For a causal language model the label of a position is the next token: labels are shifted left by one here, on
    the device. Without ``labels`` they are the token ids themselves, left out where the attention mask is 0.

    Raises
    ------
    DataError
        If labels are missing for another task, or do not fit the inputs.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch.get("labels")
    if labels is None:
        if task != pb.TASK_CAUSAL_LM or "input_ids" not in inputs:
            raise DataError(f"A batch has {sorted(batch)}; expected `labels` among them.")
        labels = inputs["input_ids"]
        if "attention_mask" in inputs:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, ignore_index)
    if labels.dtype != torch.int64:
        raise DataError(f"`labels` are {labels.dtype}; expected torch.int64 class or token ids.")
    if task == pb.TASK_CAUSAL_LM:
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    return inputs, labels


def check_token_ids(inputs: Mapping[str, Tensor], student: nn.Module) -> None:
    """Check token ids against the student's table, beyond which torch's own words name neither the id nor the bound.

    Raises
    ------
    DataError
        If there is no entry for one.
    """
    ids, num_tokens = inputs.get("input_ids"), _num_embeddings(student)
    if ids is None or num_tokens is None or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_tokens:
        raise DataError(
            f"`input_ids` has {low if low < 0 else high}; expected 0..{num_tokens - 1}, the student's vocabulary. "
            "Tokenize with the tokenizer that belongs to the student."
        )


def _num_embeddings(model: nn.Module) -> int | None:
    """Entries of a model's token embedding, or None for a model without one."""
    getter = getattr(model, "get_input_embeddings", None)
    weight = getattr(getter() if callable(getter) else None, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def count_labels(labels: Int[Tensor, ...], ignore_index: int) -> int:
    """Labels that count in the loss."""
    return int((labels != ignore_index).sum())


def as_batch(batch: Any, data_input: str) -> Batch:
    """A batch as loaders give it, under the names of the model's arguments.

    Parameters
    ----------
    batch
        A mapping of tensors, or a pair of data and labels. In a mapping, labels may be called ``label`` too; if the model's
        argument is not among the names, the only tensor beside the labels is meant for it. (Token ids have their own name
        everywhere, so this is for models of other data.)
    data_input
        Name of the model's argument for the data.

    Raises
    ------
    DataError
        If it is something else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2:
        batch = {data_input: batch[0], "labels": batch[1]}
    if not isinstance(batch, Mapping) or not batch:
        raise DataError(
            f"A batch is a {type(batch).__name__}; expected a pair of data and labels, or a mapping of tensors such as "
            "{'input_ids': ..., 'attention_mask': ..., 'labels': ...}."
        )
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f"`{name}` of a batch is a {type(value).__name__}; expected a tensor. Leave this column out of the data set, "
                "or turn it into tensors where batches are made."
            )
    named = {"labels" if name == "label" and "labels" not in batch else name: value for name, value in batch.items()}
    others = [name for name in named if name != "labels"]
    if data_input not in named and len(others) == 1 and data_input != "input_ids":
        named[data_input] = named.pop(others[0])
    return named
