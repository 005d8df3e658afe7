"""The models of `device_memory.py`: shapes of published ones, random weights, one value a tensor where only size matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen2Config,
)

from flwr_splitkd.models import set_tied_embeddings

__all__ = [
    "BATCH_SEED",
    "STUDENTS",
    "TEACHER_WIDTH",
    "VOCABULARY",
    "batches",
    "build_student",
    "build_teacher",
    "state_like",
]

VOCABULARY, BATCH_SEED = 128_256, 0
TEACHER_WIDTH = 3_072
"""Of Llama-3.2-3B, whose embedding the device holds."""


def _llama(num_blocks: int = 16) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=num_blocks,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    )


def _qwen(num_blocks: int = 24) -> PretrainedConfig:
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=num_blocks,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


def _gpt2(num_blocks: int = 12) -> PretrainedConfig:
    return GPT2Config(n_layer=num_blocks)


STUDENTS: Mapping[str, Callable[..., PretrainedConfig]] = {
    "llama-3.2-1b": _llama,
    "qwen2.5-0.5b": _qwen,
    "gpt2": _gpt2,
}
"""By their names in the catalog of `flwr_splitkd.costs`."""


def build_student(num_blocks: int | None = None, *, name: str = "llama-3.2-1b") -> nn.Module:
    """Build a student's shape in float32, its embedding tied and frozen."""
    model: nn.Module = AutoModelForCausalLM.from_config(STUDENTS[name](*(() if num_blocks is None else (num_blocks,))))
    set_tied_embeddings(model, "freeze")
    return model


def build_teacher() -> nn.Module:
    """Build two of the 28 blocks of Llama-3.2-3B's shape, the fewest that can be cut: devices see the embedding alone."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEACHER_WIDTH,
        intermediate_size=8_192,
        num_hidden_layers=2,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def batches(count: int, batch_size: int, sequence_length: int, vocabulary: int) -> list[dict[str, Tensor]]:
    """Return batches of random tokens."""
    generator = torch.Generator().manual_seed(BATCH_SEED)
    drawn = [torch.randint(vocabulary, (batch_size, sequence_length), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in drawn]


def state_like(skeleton: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor of a skeleton's state values; those of one shape share their memory, which is the sender's own."""
    generator = torch.Generator().manual_seed(BATCH_SEED)
    made: dict[tuple[int, ...], Tensor] = {}
    for tensor in skeleton.values():
        shape = tuple(tensor.shape)
        if shape not in made:
            is_norm = tensor.dim() == 1
            made[shape] = torch.ones(shape) if is_norm else torch.randn(shape, generator=generator).mul_(0.02)
    return {name: made[tuple(tensor.shape)] for name, tensor in skeleton.items()}
