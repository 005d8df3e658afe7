from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.models import Fingerprint, build_skeleton, fingerprint
from flwr_splitkd.split import find_layout

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
}


def llama(**changes: object) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**TINY, "tie_word_embeddings": False, **changes}))


def taken(model: nn.Module) -> Fingerprint:
    return fingerprint(model, find_layout(model))


def test_says_what_must_agree() -> None:
    found = taken(llama())
    assert (found.architecture, found.num_blocks, found.hidden_size, found.vocab_size, found.dtype) == (
        "LlamaForCausalLM", 2, 32, 96, "float32",
    )  # fmt: skip


def test_equal_for_other_weights_and_for_the_skeleton() -> None:
    assert taken(llama()) == taken(llama()) == taken(build_skeleton(llama))


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 97},
        {"num_attention_heads": 2, "num_key_value_heads": 2},
        {"intermediate_size": 47},
        {"num_hidden_layers": 3},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"pad_token_id": 5},
    ],
)
def test_differs_with_what_changes_the_model(changes: dict[str, object]) -> None:
    assert taken(llama(**changes)).digest != taken(llama()).digest


def test_differs_with_the_dtype() -> None:
    found = taken(llama().to(torch.bfloat16))
    assert found.dtype == "bfloat16"
    assert found.digest != taken(llama()).digest


def test_equal_in_another_process() -> None:
    code = (
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from flwr_splitkd.models import fingerprint\n"
        "from flwr_splitkd.split import find_layout\n"
        f"m = LlamaForCausalLM(LlamaConfig(**{TINY!r}, tie_word_embeddings=False))\n"
        "print(fingerprint(m, find_layout(m)).digest)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split()[-1] == taken(llama()).digest


def test_a_module_without_a_config() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = fingerprint(model, find_layout(model, ""))
    assert (found.architecture, found.num_blocks, found.hidden_size, found.vocab_size) == (
        "Sequential",
        2,
        0,
        0,
    )
