"""Tiny causal language models for tests of what runs in the cloud."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB, WIDTH = 96, 32
BOS, EOS = 1, 2

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
_GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}

LLMS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2, vocab_size=VOCAB, bos_token_id=BOS, eos_token_id=EOS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, **_SLIDING)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=8)),
}


def tiny_llm(name: str = "llama", seed: int = 0) -> nn.Module:
    """With weights large enough that answers differ."""
    torch.manual_seed(seed)
    model = LLMS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model
