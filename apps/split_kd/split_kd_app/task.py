"""The app's task: its tokenizer, its models, its data and its evaluation.

Models are named in the run config: ``builtin``, or a name or path that ``from_pretrained`` takes. Student and
teacher must share one tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flwr_splitkd import data
from flwr_splitkd.data import DataConfig
from flwr_splitkd.models import PretrainedModel
from split_kd_app.teacher import (
    Progress,
    cached_teacher,
    llama_config,
    log_progress,
    next_token_loss,
    seeded_llama,
)

BUILTIN = "builtin"

# Part of the app rather than trained where it runs: Python versions document themselves differently, and
# every device of a federation must mean the same token by the same id. Made on Python 3.11 by
# train_tokenizer(split_documents(DataConfig(), 10).teacher.documents, 1024).save_pretrained("tokenizer").
_TOKENIZER_FOLDER = Path(__file__).parent / "tokenizer"
_STUDENT_SEED = 1


def load_tokenizer(name: str = BUILTIN, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; ``options`` go to ``from_pretrained``."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        _TOKENIZER_FOLDER if name == BUILTIN else name, **options
    )
    return tokenizer


def build_student() -> nn.Module:
    """Return the built-in student: a Llama of 8 layers with the same random weights in every process."""
    return seeded_llama(
        llama_config(load_tokenizer(), hidden_size=128, intermediate_size=320, num_layers=8, num_heads=4),
        _STUDENT_SEED,
    )


def build_teacher(progress: Progress = log_progress) -> nn.Module:
    """Return the built-in teacher, trained in the first run and read from the cache later."""
    documents = data.split_documents(DataConfig(), num_partitions=1).teacher.documents
    folder = cached_teacher(documents, load_tokenizer(), progress=progress)
    return PretrainedModel(folder)()


def student_builder(name: str = BUILTIN, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds the student; ``options`` go to ``from_pretrained``."""
    return build_student if name == BUILTIN else PretrainedModel(name, **options)


def teacher_builder(name: str = BUILTIN, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds the teacher; ``options`` go to ``from_pretrained``."""
    return build_teacher if name == BUILTIN else PretrainedModel(name, **options)


def load_partition(
    partition_id: int,
    num_partitions: int,
    *,
    config: DataConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 4,
    max_batches: int | None = 24,
    seed: int = 0,
) -> DataLoader[dict[str, Tensor]]:
    """Return the batches of one device.

    Parameters
    ----------
    partition_id, num_partitions
        Which partition, of how many.
    config
        The data set, by default the built-in corpus.
    tokenizer
        The student's tokenizer, by default the built-in one.
    batch_size
        Blocks per batch.
    max_batches
        Most batches per pass, drawn anew in every pass; None for all.
    seed
        Seed of the order. A caller that builds the loader anew for every turn passes another seed each time.
    """
    blocks = data.load_partition(
        config or DataConfig(),
        tokenizer or load_tokenizer(),
        partition_id=partition_id,
        num_partitions=num_partitions,
    )
    return data.make_loader(blocks, batch_size, shuffle=True, seed=seed, max_batches=max_batches)


def heldout_loader(
    *,
    config: DataConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
    max_blocks: int = 64,
) -> DataLoader[dict[str, Tensor]]:
    """Return batches of at most ``max_blocks`` blocks, from all over the text that nobody trains on."""
    blocks = data.load_heldout(config or DataConfig(), tokenizer or load_tokenizer())
    return data.make_loader(blocks.spread(max_blocks), batch_size)


def evaluate(model: nn.Module, loader: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean ``loss`` per predicted token in nats, and its exponential, the ``perplexity``."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in loader:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            total += next_token_loss(model, batch, reduction="sum").item()
            tokens += int((batch["labels"][:, 1:] != data.IGNORED_LABEL).sum())
    model.train(was_training)
    loss = total / max(tokens, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
