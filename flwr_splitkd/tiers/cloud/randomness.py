"""What is drawn for a task: its projection's first weights, and dropout that depends on nothing but a key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flwr_splitkd.models.prefix import PrefixedLLM
from flwr_splitkd.tiers.cloud.settings import TaskSettings

__all__ = ["new_projection", "seeded"]


def new_projection(settings: TaskSettings, llm: PrefixedLLM) -> nn.Linear:
    """From the encoder's width to the LLM's, scaled so that outputs of unit variance become the size of embeddings."""
    embeddings: Tensor = llm.llm.get_input_embeddings().weight.detach()[:4096].float()
    size = float(embeddings.square().mean().sqrt())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        projection = nn.Linear(settings.slm_width, llm.width, dtype=torch.float32)
        nn.init.normal_(projection.weight, std=(size or 1.0) * settings.slm_width**-0.5)
        nn.init.zeros_(projection.bias)
    return projection.to(llm.device)


@contextmanager
def seeded(model: nn.Module, key: str) -> Iterator[None]:
    """Seed the generators that `model` draws from, by a text; they get their states back when the context ends."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it would reach devices whose states are not given back.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
