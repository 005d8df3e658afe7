"""Models and data as small as they get: what is measured is everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["batches", "build_student", "build_teacher"]

_VOCABULARY, _BATCH_SIZE, _SEQUENCE_LENGTH = 64, 2, 16


def build_student() -> nn.Module:
    """Build two blocks of width 32."""
    return _build(hidden_size=32, num_blocks=2)


def build_teacher() -> nn.Module:
    """Build two blocks of width 48."""
    return _build(hidden_size=48, num_blocks=2)


def batches(partition: int) -> list[dict[str, Tensor]]:
    """Return one batch of random tokens, another one for each device."""
    generator = torch.Generator().manual_seed(partition)
    ids = torch.randint(_VOCABULARY, (_BATCH_SIZE, _SEQUENCE_LENGTH), generator=generator)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def _build(hidden_size: int, num_blocks: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config)
