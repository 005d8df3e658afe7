"""What the configs of transformers' architectures leave unsaid: which parts a block has, and what a missing setting means.

One entry for each ``model_type``; the formulas are in `flwr_splitkd.costs.architectures`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["FAMILIES", "Family"]

# Whether a part has a bias: always, never, or as a setting of the config says.
Switch = bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The parts of an architecture. A switch is a boolean, or the name of the config's setting that decides.

    Parameters
    ----------
    defaults
        Values of settings that a config may leave out, under the config's own names.
    names
        The config's own names of settings where they differ from the usual ones.
    norm_bias
        Whether a norm has a bias beside its weight.
    norm_weights
        Whether norms have parameters at all.
    block_norms
        Norms in a block, as wide as the hidden states.
    first_block_norms
        The same of the first block.
    qk_norm
        Norms of queries and keys: none, one for the width of a head, or one for all heads together.
    qk_norm_switch
        Whether they are there.
    qkv_bias, output_bias, mlp_bias
        Biases of the projections of attention and of the MLP.
    rotated_copies
        Whether queries and keys are rotated that come out of one projection with the values, so that both forms are kept.
    gated
        Whether the MLP multiplies two projections up, instead of one.
    dropouts
        Dropouts in a block, as wide as the hidden states, that the setting ``hidden_dropout`` is for.
    fused_attention
        Whether torch computes attention in one kernel where it has one; otherwise it is eager always.
    mlp_ratio
        Width of the MLP over the hidden size, where the config does not give it.
    experts
        The config's setting for the number of experts; empty for a dense MLP.
    expert_width
        The config's setting for an expert's width.
    positions
        The config's setting for the number of learned positions; empty without them.
    extra_positions
        Rows of the position table beyond that number.
    token_types
        Whether there is a table of token types.
    embedding_norm
        Whether the embeddings are normalised before the first block.
    embedding_width
        The config's setting for the width of the token embedding, if it can differ from the hidden size.
    projection_bias
        Bias of the projection from that width to the hidden size.
    final_norm
        Whether there is a norm after the last block.
    encoder
        Whether a masked-LM head is what the architecture usually has; a causal LM's otherwise.
    transform
        Whether a dense layer and a norm come before the projection to the vocabulary.
    transform_bias
        Bias of that dense layer.
    vocab_bias
        Whether the projection to the vocabulary has a bias.
    spare_bias
        Whether there is another copy of that bias, unused, in a model that ties nothing.
    classifier
        A classifier's form: a projection of every token, or a dense layer and a projection of one vector a sample.
    """

    defaults: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    norm_bias: Switch = False
    norm_weights: Switch = True
    block_norms: int = 2
    first_block_norms: int | None = None
    qk_norm: Literal["none", "head", "all"] = "none"
    qk_norm_switch: Switch = True
    qkv_bias: Switch = False
    output_bias: Switch = False
    mlp_bias: Switch = False
    rotated_copies: bool = False
    gated: bool = True
    dropouts: int = 0
    fused_attention: bool = True
    mlp_ratio: int | None = None
    experts: str = ""
    expert_width: str = "intermediate_size"
    positions: str = ""
    extra_positions: int = 0
    token_types: bool = False
    embedding_norm: bool = False
    embedding_width: str = ""
    projection_bias: bool = False
    final_norm: bool = True
    encoder: bool = False
    transform: bool = False
    transform_bias: Switch = True
    vocab_bias: Switch = False
    spare_bias: bool = False
    classifier: Literal["token", "pooled", "normed"] = "token"


def _sizes(
    vocab: int, hidden: int, intermediate: int, layers: int, heads: int, groups: int | None = None, **others: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
        **others,
    }


_UNBIASED = {"attention_bias": False, "mlp_bias": False}
_TIED = {"tie_word_embeddings": True}
_BERT_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}

_LLAMA = Family(
    defaults=_sizes(32000, 4096, 11008, 32, 32, **_UNBIASED),
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
)
_MISTRAL = Family(defaults=_sizes(32000, 4096, 14336, 32, 32, 8))
_QWEN3 = Family(
    defaults=_sizes(151936, 4096, 22016, 32, 32, 32, head_dim=128, attention_bias=False),
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
)
_GEMMA2 = Family(
    defaults=_sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, attention_bias=False)
    | {"attn_logit_softcapping": 50.0}
    | _TIED,
    names={"hidden_act": "hidden_activation"},
    block_norms=4,
    fused_attention=False,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
)
_BERT = Family(
    defaults=_sizes(30522, 768, 3072, 12, 12, max_position_embeddings=512, type_vocab_size=2) | _BERT_DROPOUT | _TIED,
    names={"hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"},
    norm_bias=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    gated=False,
    dropouts=2,
    positions="max_position_embeddings",
    token_types=True,
    embedding_norm=True,
    final_norm=False,
    encoder=True,
    transform=True,
    vocab_bias=True,
    spare_bias=True,
    classifier="pooled",
)
_ROBERTA = replace(_BERT, defaults={**_BERT.defaults, "vocab_size": 50265})

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "mistral": _MISTRAL,
    "mixtral": replace(
        _MISTRAL,
        defaults=_MISTRAL.defaults | {"num_local_experts": 8, "num_experts_per_tok": 2},
        experts="num_local_experts",
    ),
    "smollm3": replace(_LLAMA, defaults=_sizes(128256, 2048, 11008, 36, 16, 4, **_UNBIASED) | _TIED),
    "olmo2": replace(_LLAMA, defaults=_sizes(50304, 4096, 11008, 32, 32, **_UNBIASED), qk_norm="all", mlp_bias=False),
    "qwen2": Family(defaults=_sizes(151936, 4096, 22016, 32, 32, 32), qkv_bias=True),
    "qwen3": _QWEN3,
    "qwen3_moe": replace(
        _QWEN3,
        defaults=_sizes(
            151936,
            2048,
            6144,
            24,
            32,
            4,
            moe_intermediate_size=768,
            num_local_experts=128,
            num_experts_per_tok=8,
            decoder_sparse_step=1,
            mlp_only_layers=None,
            attention_bias=False,
        ),
        # Published configs have the usual name, those that transformers 5 writes the other one.
        names={"num_experts": "num_local_experts"},
        experts="num_experts",
        expert_width="moe_intermediate_size",
    ),
    "gemma": replace(
        _GEMMA2,
        defaults=_sizes(256000, 3072, 24576, 28, 16, 16, head_dim=256, attention_bias=False) | _TIED,
        names={},
        block_norms=2,
        fused_attention=True,
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2,
        defaults={**_GEMMA2.defaults, "vocab_size": 262208, "attn_logit_softcapping": None},
        qk_norm="head",
        fused_attention=True,
    ),
    "phi": Family(
        defaults=_sizes(51200, 2048, 8192, 24, 32, qk_layernorm=False, hidden_act="gelu_new"),
        names={"hidden_dropout": "resid_pdrop"},
        norm_bias=True,
        block_norms=1,
        qk_norm="head",
        qk_norm_switch="qk_layernorm",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        dropouts=2,
        vocab_bias=True,
    ),
    "phi3": Family(
        defaults=_sizes(32064, 3072, 8192, 32, 32),
        names={"hidden_dropout": "resid_pdrop"},
        rotated_copies=True,
        dropouts=2,
    ),
    "starcoder2": Family(
        defaults=_sizes(49152, 3072, 12288, 30, 24, 2, use_bias=True) | _TIED,
        names={"hidden_dropout": "residual_dropout"},
        norm_bias=True,
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        dropouts=2,
    ),
    "gpt_neox": Family(
        defaults=_sizes(50432, 6144, 24576, 44, 64, attention_bias=True),
        norm_bias=True,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias=True,
        rotated_copies=True,
        gated=False,
        dropouts=2,
    ),
    "gpt2": Family(
        defaults={"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None}
        | {"activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1}
        | _TIED,
        names={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "hidden_act": "activation_function",
            "hidden_dropout": "resid_pdrop",
            "attention_dropout": "attn_pdrop",
        },
        norm_bias=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        dropouts=2,
        mlp_ratio=4,
        positions="max_position_embeddings",
    ),
    "opt": Family(
        defaults={
            **_sizes(50272, 768, 3072, 12, 12, max_position_embeddings=2048, ffn_dim=3072, word_embed_proj_dim=None),
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "activation_function": "relu",
            "dropout": 0.1,
        }
        | _TIED,
        names={"intermediate_size": "ffn_dim", "hidden_act": "activation_function", "hidden_dropout": "dropout"},
        norm_bias=True,
        norm_weights="layer_norm_elementwise_affine",
        qkv_bias="enable_bias",
        output_bias="enable_bias",
        mlp_bias="enable_bias",
        gated=False,
        dropouts=2,
        positions="max_position_embeddings",
        extra_positions=2,
        embedding_width="word_embed_proj_dim",
    ),
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _BERT,
    "electra": replace(
        _BERT,
        defaults=_sizes(30522, 256, 1024, 12, 4, max_position_embeddings=512, type_vocab_size=2, embedding_size=128)
        | _BERT_DROPOUT
        | _TIED,
        embedding_width="embedding_size",
        projection_bias=True,
        spare_bias=False,
    ),
    "distilbert": replace(
        _BERT,
        defaults={
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "n_layers": 6,
            "n_heads": 12,
            "dim": 768,
            "hidden_dim": 3072,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        }
        | _TIED,
        names={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout": "dropout",
        },
        dropouts=1,
        token_types=False,
        spare_bias=False,
    ),
    "modernbert": Family(
        defaults=_sizes(
            50368,
            768,
            1152,
            22,
            12,
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
            decoder_bias=True,
            classifier_bias=False,
        )
        | _TIED,
        # One dropout, as wide as the MLP, which is 1.5 times the hidden states: not quite two as wide as these.
        names={"hidden_act": "hidden_activation", "hidden_dropout": "mlp_dropout"},
        dropouts=2,
        rotated_copies=True,
        norm_bias="norm_bias",
        first_block_norms=1,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        embedding_norm=True,
        encoder=True,
        transform=True,
        transform_bias="classifier_bias",
        vocab_bias="decoder_bias",
        classifier="normed",
    ),
}
"""Architectures that `shape_from_config` knows, by ``model_type``."""
