"""The built-in teacher: trained once on built-in text, then read from a cache on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from flwr_splitkd.data import Document, documents_digest, make_loader, text_blocks
from flwr_splitkd.store import cache_root

Progress = Callable[[int, int, float], None]

_log = logging.getLogger("flwr")
_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecipe:
    """Everything that decides the teacher's weights, apart from its text and its tokenizer.

    Parameters
    ----------
    hidden_size, intermediate_size, num_layers, num_heads
        Dimensions of the Llama architecture.
    sequence_length
        Tokens per block.
    batch_size
        Blocks per step.
    steps
        Optimiser steps: the length of training is counted in steps, not in seconds, so that it is the same on
        every machine.
    learning_rate
        Peak rate of AdamW, reached after ``warmup_steps`` and lowered along a half cosine.
    warmup_steps
        Steps of linear warm-up.
    seed
        Seed of the initial weights and of the order of the blocks.
    num_threads
        Threads of torch while training, at most the machine's number of cores. On a busy machine the threads
        of so small a model wait for each other: on two busy cores a step took five times as long with two
        threads as with one.
    """

    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    sequence_length: int = 128
    batch_size: int = 8
    steps: int = 600
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    seed: int = 0
    num_threads: int = 1

    def model(self, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
        """Return the untrained teacher."""
        config = llama_config(tokenizer, self.hidden_size, self.intermediate_size, self.num_layers, self.num_heads)
        return seeded_llama(config, self.seed)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warmup * (0.05 + 0.95 * cosine)


def llama_config(
    tokenizer: PreTrainedTokenizerBase,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
) -> LlamaConfig:
    """Return the config of a small Llama with grouped heads and untied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def seeded_llama(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Build a model whose weights depend on the seed alone; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def log_progress(step: int, steps: int, loss: float) -> None:
    """Log a tenth of the training at a time, in the words of Flower's log."""
    if step == 1 or step * 10 // steps != (step - 1) * 10 // steps:
        done = step * 10 // steps
        _log.info("teacher [%s%s] step %d/%d, loss %.2f", "#" * done, "." * (10 - done), step, steps, loss)


def cached_teacher(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    recipe: TeacherRecipe | None = None,
    root: Path | None = None,
    progress: Progress = log_progress,
) -> Path:
    """Return the folder of the trained teacher; train it first if the cache has none for the same recipe.

    Parameters
    ----------
    documents
        The teacher's own text.
    tokenizer
        The tokenizer that it shares with the student.
    recipe
        How to train it.
    root
        The cache folder, by default `cache_root`.
    progress
        Called after every step with the step (from 1), the number of steps and the loss.

    Returns
    -------
    folder
        A Hugging Face model folder.
    """
    recipe = recipe or TeacherRecipe()
    description = _describe(recipe, documents, tokenizer)
    folder = (root or cache_root()) / f"teacher-{_sha256(description.encode())[:16]}"
    if folder.exists():
        if _is_intact(folder, description):
            return folder
        _log.warning("the cached teacher in %s is damaged; it is trained again", folder)
    _log.info("training the built-in teacher: %d steps, once; it is kept in %s", recipe.steps, folder)
    model = _train(recipe, documents, tokenizer, progress)
    _store(folder, model, description)
    return folder


def _describe(recipe: TeacherRecipe, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return everything that decides the weights, as JSON."""
    return json.dumps(
        {
            "recipe": dataclasses.asdict(recipe),
            "text": documents_digest(documents),
            "tokenizer": _sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()),
        },
        indent=2,
    )


def _is_intact(folder: Path, description: str) -> bool:
    try:
        stored = json.loads((folder / _RECIPE_FILE).read_text(encoding="utf-8"))
        if stored["description"] != json.loads(description):
            return False
        files: dict[str, str] = stored["files"]
        return bool(files) and all(_sha256((folder / name).read_bytes()) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _store(folder: Path, model: LlamaForCausalLM, description: str) -> None:
    """Write the folder beside its place and move it there, so that no reader ever sees half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        written = Path(scratch) / "teacher"
        model.save_pretrained(written)
        files = {path.name: _sha256(path.read_bytes()) for path in sorted(written.iterdir())}
        stored = {"description": json.loads(description), "files": files}
        (written / _RECIPE_FILE).write_text(json.dumps(stored, indent=2), encoding="utf-8")
        try:
            written.rename(folder)
        except OSError:
            # A damaged teacher is in the way, or an equal one that another process has just finished.
            if not _is_intact(folder, description):
                folder.rename(Path(scratch) / "damaged")
                written.rename(folder)


def _train(
    recipe: TeacherRecipe,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
) -> LlamaForCausalLM:
    blocks = text_blocks(documents, tokenizer, recipe.sequence_length)
    loader = make_loader(blocks, recipe.batch_size, shuffle=True, seed=recipe.seed)
    model = recipe.model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    model.train()
    with _threads(min(recipe.num_threads, os.cpu_count() or 1)):
        for step, batch in zip(range(recipe.steps), _forever(loader), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            loss = next_token_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress(step + 1, recipe.steps, loss.item())
    model.train(False)
    return model


def next_token_loss(model: nn.Module, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """Return the cross entropy of every token given those before it; ignored labels do not count."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), reduction=reduction)


def _forever(loader: torch.utils.data.DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
