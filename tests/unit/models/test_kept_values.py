"""What the cost model says that blocks keep for the backward pass, beside what autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.costs.memory import kept_values
from flwr_splitkd.models import measured_shape

BATCH, LENGTH, WIDTH = 2, 32, 64


def _llama(blocks: int, *, intermediate: int = 256, groups: int = 1) -> nn.Module:
    sizes = {"vocab_size": 100, "hidden_size": WIDTH, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, intermediate_size=intermediate, num_key_value_heads=groups, num_hidden_layers=blocks)
    return LlamaForCausalLM(config)


def _wide_llama(blocks: int) -> nn.Module:
    return _llama(blocks, intermediate=512)


def _llama_without_groups(blocks: int) -> nn.Module:
    return _llama(blocks, groups=4)


def _gpt2(blocks: int) -> nn.Module:
    tokens = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**tokens, n_embd=WIDTH, n_layer=blocks, n_head=4))


def _bert(blocks: int) -> nn.Module:
    sizes = {"vocab_size": 100, "hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 256}
    return BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=blocks))


def _saved_bytes(model: nn.Module) -> int:
    """Memory that autograd holds after a forward pass, but for the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(input_ids=torch.zeros((BATCH, LENGTH), dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize(
    ("build", "least", "most"),
    [
        (_llama, 0.95, 1.1),
        (_wide_llama, 0.95, 1.1),
        (_llama_without_groups, 0.95, 1.1),
        # Masks of dropout and a GELU made of elementary functions, which the docstring names as what is left out.
        (_bert, 0.75, 1.0),
        (_gpt2, 0.5, 0.8),
    ],
)
def test_against_what_autograd_saves(
    build: Callable[[int], nn.Module], least: float, most: float, covered: Callable[[str, Any], None]
) -> None:
    """Of two blocks more, so that embedding and head do not count."""
    measured = (_saved_bytes(build(4)) - _saved_bytes(build(2))) / 2 / (BATCH * LENGTH * 4)
    predicted = kept_values(measured_shape(lambda: build(2)))[0]
    assert least < predicted / measured < most
