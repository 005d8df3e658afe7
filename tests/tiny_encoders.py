"""Tiny encoders of the families that the chain device - edge - cloud is tested with, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS, VOCAB, PAD, WIDTH = 4, 96, 1, 32
SPLIT_POINTS = (1, LAYERS // 2, LAYERS - 1, LAYERS)
# ModernBERT's families of layers alternate, and ELECTRA projects its embeddings.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "distilbert": {"hidden_dim": 48},
    "modernbert": {"local_attention": 4, "cls_token_id": 2, "sep_token_id": 3},
    "electra": {"embedding_size": 16},
}
_DROPOUT = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "dropout",
    "embedding_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
)


def encoder_config(name: str, **settings: Any) -> Any:
    """Config of a tiny encoder with dropout of 0.1 wherever the family has any."""
    sizes = {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = CONFIG_MAPPING[name](**{**sizes, **ENCODERS.get(name, {}), **settings})
    for attribute in _DROPOUT:
        if hasattr(config, attribute):
            setattr(config, attribute, 0.1)
    return config


def tiny_encoder(name: str, **settings: Any) -> nn.Module:
    """The same weights at every call; no bias is zero and no scale is one, which would hide mistakes."""
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(encoder_config(name, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def padded_tokens(step: int = 0) -> dict[str, Tensor]:
    """Three sequences of 10 tokens, two of them padded, one with a padding token within its text."""
    ids = torch.randint(4, VOCAB, (3, 10), generator=torch.Generator().manual_seed(step))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 9:] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    ids[0, 4] = PAD
    return {"input_ids": ids, "attention_mask": mask}
