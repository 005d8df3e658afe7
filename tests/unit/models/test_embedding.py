from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    XGLMConfig,
    XGLMForCausalLM,
)

from flwr_splitkd.errors import UncuttableModelError
from flwr_splitkd.models import build_skeleton, token_embedding

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
}


def gemma3() -> nn.Module:
    return Gemma3ForCausalLM(Gemma3TextConfig(**TINY, num_key_value_heads=2, head_dim=8))


def xglm() -> nn.Module:
    return XGLMForCausalLM(
        XGLMConfig(d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, vocab_size=96, scale_embedding=True)
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("build", "scale"), [(gemma3, 32**0.5), (xglm, 32**0.5), (gpt2, 1.0)])
def test_is_the_embedding_module_bit_for_bit(build: object, scale: float, dtype: torch.dtype) -> None:
    model = build().to(dtype)  # type: ignore[operator]
    weight, factor = token_embedding(model)
    ids = torch.randint(0, 96, (2, 7))
    assert factor == pytest.approx(scale, rel=1e-2)
    assert torch.equal(functional.embedding(ids, weight) * factor, model.get_input_embeddings()(ids))


@pytest.mark.parametrize("build", [gemma3, xglm, gpt2])
def test_a_skeleton_tells_the_same_scale(build: object) -> None:
    weight, factor = token_embedding(build_skeleton(build))  # type: ignore[arg-type]
    assert weight.is_meta
    assert factor == token_embedding(build())[1]  # type: ignore[operator]


class Shifted(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) + 1


def test_anything_else_is_refused() -> None:
    model = BertForMaskedLM(BertConfig(**TINY))
    model.set_input_embeddings(Shifted(96, 32))
    with pytest.raises(UncuttableModelError, match=r"BertForMaskedLM \(Shifted\) is not a scaled table look-up"):
        token_embedding(model)
    model.set_input_embeddings(nn.EmbeddingBag(96, 32).requires_grad_(False))
    model.get_input_embeddings().weight = nn.Parameter(torch.zeros(96))
    with pytest.raises(UncuttableModelError, match="EmbeddingBag without a"):
        token_embedding(model)
