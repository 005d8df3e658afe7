"""Sizes of transformers' architectures, worked out from their configs alone: nothing is built and nothing is loaded.

Every part is made of linear layers and norms. A linear layer from a to b has ``a b`` parameters, and b more with a bias; it
takes ``2 a b`` FLOPs a token. Attention takes ``4 heads head_width`` FLOPs for each pair of tokens: scores, and their product
with the values; Kaplan et al., "Scaling Laws for Neural Language Models", 2020, table 1, without its approximations. What a block
keeps for its backward pass is in `flwr_splitkd.costs.kept`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flwr_splitkd.costs.families import FAMILIES, Switch
from flwr_splitkd.costs.kept import ACTIVATION_VALUES, attention_maps, llama_kept, plain_kept
from flwr_splitkd.costs.shape import ModelShape
from flwr_splitkd.errors import ConfigError

__all__ = ["shape_from_config"]

_TASKS = ("causal-lm", "masked-lm", "sequence-classification")
# How class names of transformers end, and the head that such a model has; "" is the one that the architecture usually has.
_TASK_BY_ENDING = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForPreTraining": "",
    "Model": "",
}
_MISSING = object()


def shape_from_config(
    config: Mapping[str, Any] | object, *, name: str | None = None, task: str | None = None
) -> ModelShape:
    """Work out a model's shape from its transformers config.

    Mixture-of-experts blocks have the parameters of all experts and the FLOPs of those that a token goes through. A sliding
    window is counted as full attention, which is what eager attention computes. What a classifier computes once a sample,
    and the projection of a narrower token embedding, is counted as no FLOPs. What blocks keep is that of training on a processor,
    with attention that is one kernel where torch has one, unless a config object asks for eager attention.

    Parameters
    ----------
    config
        A config object, or the content of a ``config.json``; settings that are left out have transformers' defaults.
    name
        For messages and tables; the config's own name or type when not given.
    task
        ``"causal-lm"``, ``"masked-lm"`` or ``"sequence-classification"``. When not given, the config's ``architectures``
        says; without any, the language model that the architecture usually is.

    Raises
    ------
    ConfigError
        If the architecture or its head is unknown, a size is missing or no number, or a dropout is no probability.
    """
    settings = _Settings(config)
    family = settings.family
    d, layers = settings.size("hidden_size"), settings.size("num_hidden_layers")
    blocks = [_block(settings, index) for index in range(layers)]
    heads, width = _heads(settings)
    maps = _maps(settings)
    embedding_width = settings.optional(family.embedding_width, d) if family.embedding_width else d
    task = _task(settings, task)
    tied = task != "sequence-classification" and bool(settings.get("tie_word_embeddings"))
    head = _head(settings, d, embedding_width, task, tied)
    return ModelShape(
        name=name or _own_name(settings),
        hidden_size=d,
        embedding_width=embedding_width,
        vocab_size=settings.size("vocab_size"),
        block_parameters=np.array([block.parameters for block in blocks], dtype=np.float64),
        block_flops_per_token=np.array([block.flops for block in blocks], dtype=np.float64),
        block_flops_per_pair=np.full(layers, 4.0 * heads * width),
        embedding_parameters=_embedding(settings, d, embedding_width),
        head_parameters=head.parameters,
        head_flops_per_token=float(head.flops),
        tied=tied,
        block_kept_per_token=np.array([_kept(settings, i, block.flops) for i, block in enumerate(blocks)]),
        block_kept_per_pair=np.full(layers, float(maps * heads)),
    )


class _Part(NamedTuple):
    """Parameters of a part, and its FLOPs a token."""

    parameters: int
    flops: int = 0


def _sum(*parts: _Part) -> _Part:
    return _Part(sum(part.parameters for part in parts), sum(part.flops for part in parts))


def _linear(inputs: int, outputs: int, *, bias: bool = False) -> _Part:
    return _Part(inputs * outputs + bias * outputs, 2 * inputs * outputs)


class _Settings:
    """A config under the usual names, with the defaults of its family."""

    def __init__(self, config: Mapping[str, Any] | object) -> None:
        self._config = config
        kind = self._raw("model_type")
        if kind is _MISSING and not isinstance(config, Mapping):
            raise ConfigError(
                f"The config is a {type(config).__name__} without `model_type`; expected a config of transformers, or the content "
                "of a config.json."
            )
        if not isinstance(kind, str) or kind not in FAMILIES:
            shown = None if kind is _MISSING else kind
            raise ConfigError(
                f"`model_type` of the config is {shown!r}; expected one of {sorted(FAMILIES)}. Measure any other model with "
                "flwr_splitkd.models.measured_shape."
            )
        self.kind, self.family = kind, FAMILIES[kind]
        if self.get("add_cross_attention", False):
            raise ConfigError(
                "`add_cross_attention` of the config is True; expected a model without cross-attention. Measure it with "
                "flwr_splitkd.models.measured_shape."
            )

    def _raw(self, name: str) -> Any:
        if isinstance(self._config, Mapping):
            return self._config.get(name, _MISSING)
        return getattr(self._config, name, _MISSING)

    def get(self, name: str, default: Any = None) -> Any:
        """A setting under its usual name; the family's default, then `default`, if the config leaves it out."""
        own = self.family.names.get(name, name)
        for candidate in (own, name):
            if (value := self._raw(candidate)) is not _MISSING:
                return value
        return self.family.defaults.get(own, default)

    def optional(self, name: str, default: int) -> int:
        """A size that may be None, which means `default`."""
        return default if self.get(name) is None else self.size(name)

    def size(self, name: str) -> int:
        """A size of at least 1."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"`{self.family.names.get(name, name)}` of the {self.kind} config is {value!r}; expected an integer of at least 1."
            )
        return value

    def is_dropped(self, name: str) -> bool:
        """Whether a dropout drops anything."""
        value = self.get(name)
        if value is None:
            return False
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(
                f"`{self.family.names.get(name, name)}` of the {self.kind} config is {value!r}; expected a number of 0 to 1."
            )
        return value > 0

    def items(self, name: str) -> Sequence[Any]:
        """A list that may be None, which means an empty one."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise ConfigError(f"`{name}` of the {self.kind} config is {value!r}; expected a list.")
        return value

    def is_on(self, switch: Switch) -> bool:
        """Whether a part is there: a constant of the family, or a setting of the config."""
        return bool(self.get(switch)) if isinstance(switch, str) else switch

    def norm(self, width: int) -> _Part:
        """A norm of so many values."""
        on = self.is_on(self.family.norm_weights)
        return _Part(on * width * (1 + self.is_on(self.family.norm_bias)))


def _heads(settings: _Settings) -> tuple[int, int]:
    """Heads, and the width of each."""
    heads = settings.size("num_attention_heads")
    width = settings.optional("head_dim", settings.size("hidden_size") // heads)
    if width < 1:
        raise ConfigError(
            f"The {settings.kind} config has {heads} heads for a width of {settings.size('hidden_size')}; expected no more heads "
            "than that."
        )
    return heads, width


def _widths(settings: _Settings) -> tuple[int, int]:
    """Widths of all queries and of all keys of a token."""
    heads, width = _heads(settings)
    return heads * width, settings.optional("num_key_value_heads", heads) * width


def _has_qk_norm(settings: _Settings) -> bool:
    return settings.family.qk_norm != "none" and settings.is_on(settings.family.qk_norm_switch)


def _norms(settings: _Settings, index: int) -> int:
    """Norms in a block that are as wide as the hidden states."""
    family = settings.family
    if index == 0 and family.first_block_norms is not None:
        return family.first_block_norms
    return family.block_norms


def _block(settings: _Settings, index: int) -> _Part:
    d = settings.size("hidden_size")
    mlp = _experts(settings, d) if _is_sparse(settings, index) else _mlp(settings, d, _mlp_width(settings, d))
    return _sum(_attention(settings, d), mlp, *[settings.norm(d)] * _norms(settings, index))


def _kept(settings: _Settings, index: int, flops: int) -> float:
    """Values per token that a block with so many FLOPs per token keeps for its backward pass."""
    family, d, norms = settings.family, settings.size("hidden_size"), _norms(settings, index)
    queries, keys = _widths(settings)
    if _is_sparse(settings, index):
        mlp = settings.size(family.expert_width) * settings.size("num_experts_per_tok")
    else:
        mlp = _mlp_width(settings, d)
    if family.gated:
        # A third norm and a fourth come after their parts.
        kept = float(llama_kept(flops, 4 * queries, d)) + 2 * (norms - 2) * d
    else:
        kept = plain_kept(d, queries, keys, mlp, norms)
    kept += ACTIVATION_VALUES.get(str(settings.get("hidden_act")), 0) * mlp
    if _has_qk_norm(settings):
        kept += (2 if family.gated else 1) * (queries + keys)
    if settings.is_dropped("hidden_dropout"):
        kept += family.dropouts * d
    if _maps(settings):
        kept += 2 * (queries - keys)
    elif family.rotated_copies:
        kept += queries + keys
    return kept


def _maps(settings: _Settings) -> int:
    """Attention maps that a head keeps for its backward pass."""
    eager = not settings.family.fused_attention or settings.get("_attn_implementation") == "eager"
    softcap = settings.get("attn_logit_softcapping") is not None
    return attention_maps(dropout=settings.is_dropped("attention_dropout"), eager=eager, softcap=softcap)


def _attention(settings: _Settings, d: int) -> _Part:
    family = settings.family
    queries, keys = _widths(settings)
    bias = settings.is_on(family.qkv_bias)
    parts = [
        _linear(d, queries, bias=bias),
        _linear(d, keys, bias=bias),
        _linear(d, keys, bias=bias),
        _linear(queries, d, bias=settings.is_on(family.output_bias)),
    ]
    if _has_qk_norm(settings):
        _, width = _heads(settings)
        one_head = family.qk_norm == "head"
        parts += [settings.norm(width if one_head else queries), settings.norm(width if one_head else keys)]
    return _sum(*parts)


def _mlp_width(settings: _Settings, d: int) -> int:
    ratio = settings.family.mlp_ratio
    return settings.size("intermediate_size") if ratio is None else settings.optional("intermediate_size", ratio * d)


def _mlp(settings: _Settings, d: int, width: int) -> _Part:
    bias = settings.is_on(settings.family.mlp_bias)
    up = _linear(d, width, bias=bias)
    return _sum(*[up] * (2 if settings.family.gated else 1), _linear(width, d, bias=bias))


def _is_sparse(settings: _Settings, index: int) -> bool:
    if not settings.family.experts:
        return False
    # Qwen's way to keep some blocks dense; others leave the settings out.
    step = settings.optional("decoder_sparse_step", 1)
    return index not in settings.items("mlp_only_layers") and (index + 1) % step == 0


def _experts(settings: _Settings, d: int) -> _Part:
    count, active = settings.size(settings.family.experts), settings.size("num_experts_per_tok")
    if active > count:
        raise ConfigError(
            f"`num_experts_per_tok` of the {settings.kind} config is {active}; expected at most its {count} experts."
        )
    expert = _mlp(settings, d, settings.size(settings.family.expert_width))
    return _sum(_linear(d, count), _Part(count * expert.parameters, active * expert.flops))


def _embedding(settings: _Settings, d: int, width: int) -> int:
    """Parameters of all that comes before the first block."""
    family = settings.family
    count = settings.size("vocab_size") * width
    if family.positions:
        # OPT embeds positions in the width of the blocks, the encoders in that of the tokens.
        count += (settings.size(family.positions) + family.extra_positions) * (width if family.encoder else d)
    if family.token_types:
        count += settings.size("type_vocab_size") * width
    if family.embedding_norm:
        count += settings.norm(width).parameters
    if width != d:
        count += _linear(width, d, bias=family.projection_bias).parameters
    return count


def _head(settings: _Settings, d: int, width: int, task: str, tied: bool) -> _Part:
    """All that comes after the last block, but for a matrix that is the embedding's."""
    family, parts = settings.family, []
    # OPT has none where its blocks are normalised at their ends.
    if (
        family.final_norm
        and settings.get("do_layer_norm_before", True)
        and not settings.get("_remove_final_layer_norm")
    ):
        parts.append(settings.norm(d))
    if task == "sequence-classification":
        return _sum(*parts, *_classifier(settings, d, width))
    if family.transform:
        parts += [_linear(d, width, bias=settings.is_on(family.transform_bias)), settings.norm(width)]
    elif width != d:
        parts.append(_linear(d, width))
    vocab = settings.size("vocab_size")
    projection = _linear(width, vocab)
    shared = width * vocab if tied else 0
    biases = vocab * settings.is_on(family.vocab_bias) * (2 if family.spare_bias and not tied else 1)
    return _sum(*parts, _Part(projection.parameters - shared + biases, projection.flops))


def _classifier(settings: _Settings, d: int, width: int) -> list[_Part]:
    family, labels = settings.family, _num_labels(settings)
    if family.classifier == "token":
        narrowed = [_linear(d, width)] if width != d else []
        return [*narrowed, _linear(width, labels)]
    normed = family.classifier == "normed"
    dense = _linear(d, d, bias=settings.is_on(family.transform_bias))
    once = [dense, _linear(d, labels, bias=True), *([settings.norm(d)] if normed else [])]
    return [_Part(part.parameters) for part in once]


def _num_labels(settings: _Settings) -> int:
    # A config.json has names of labels where the object has their number.
    labels = settings.get("id2label")
    if settings.get("num_labels") is None:
        return len(labels) if isinstance(labels, Mapping) and labels else 2
    return settings.size("num_labels")


def _task(settings: _Settings, task: str | None) -> str:
    usual = "masked-lm" if settings.family.encoder else "causal-lm"
    if task is not None:
        possible = [known for known in _TASKS if known != "masked-lm" or settings.family.encoder]
        if task not in possible:
            raise ConfigError(f"`task` is {task!r}; expected one of {possible} for {settings.kind}.")
        return task
    for architecture in settings.items("architectures"):
        for ending, found in _TASK_BY_ENDING.items():
            if str(architecture).endswith(ending):
                return found or usual
        raise ConfigError(
            f"`architectures` of the config names {architecture!r}; expected a class that ends in one of "
            f"{sorted(_TASK_BY_ENDING)}. Pass `task`, one of {list(_TASKS)}."
        )
    return usual


def _own_name(settings: _Settings) -> str:
    return str(settings.get("_name_or_path") or "") or settings.kind
