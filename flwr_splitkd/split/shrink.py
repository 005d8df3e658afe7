"""A tiny model of the same architecture, to try a cut on before a real model is touched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import UncuttableModelError
from flwr_splitkd.split import surgery

__all__ = ["build_tiny", "probe_inputs", "run_forward", "shrink_config"]

_MOST_BLOCKS = 8

# Upper bounds by attribute name. Head sizes are not among them: rotary tables, partial rotary factors and
# long-context factors are written for a head size, and two heads of any usual size are small enough.
_BOUNDS = {
    "vocab_size": 160,
    "entity_vocab_size": 16,
    "max_position_embeddings": 512,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "hidden_dim": 48,
    "n_inner": 48,
    "sliding_window": 4,
    "window_size": 4,
    "local_attention": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_top_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_window_layers": 1,
    "first_k_dense_replace": 1,
}


def _bound(config: Any, name: str, bound: int) -> None:
    value = getattr(config, name, None)
    if isinstance(value, int) and not isinstance(value, bool) and value > bound:
        setattr(config, name, bound)


def _blocks_to_keep(config: Any, layers: int) -> int:
    """Keep enough blocks to see every kind of layer, and three cuts if possible."""
    wanted = 4
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == layers:
            kinds = [str(item) for item in value]
            wanted = max(wanted, max(kinds.index(kind) for kind in set(kinds)) + 2)
        elif name in ("global_attn_every_n_layers", "sliding_window_pattern", "full_attention_interval"):
            wanted = max(wanted, (value if isinstance(value, int) else 0) + 1)
    return min(layers, wanted, _MOST_BLOCKS)


def _shrink_width(config: Any) -> None:
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads <= 0:
        return
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    groups = getattr(config, "num_key_value_heads", None)
    if isinstance(groups, int):
        config.num_key_value_heads = min(groups, 2 if groups == heads else 1)
    config.num_attention_heads = min(heads, 2)
    width = min(hidden, config.num_attention_heads * head_dim)
    config.hidden_size = width
    for name, value in list(vars(config).items()):
        if value == hidden and name.endswith(("_size", "_dim", "_width")):
            setattr(config, name, width)  # e.g. DeBERTa's pooler_hidden_size, OPT's word_embed_proj_dim
        elif name in ("embedding_size", "word_embed_proj_dim") and isinstance(value, int):
            # Never by chance the width: models leave out the projection between equal widths.
            setattr(config, name, min(value, 24) if min(value, 24) != width else max(1, width // 2))


def _shrink_token_ids(config: Any) -> None:
    vocab = getattr(config, "vocab_size", None)
    if not isinstance(vocab, int):
        return
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # a decoder that classifies refuses a batch of two without one
    free = iter(range(1, vocab))
    for name, value in list(vars(config).items()):
        if name.endswith(("token_id", "token_index")):
            if isinstance(value, int) and value >= vocab:
                setattr(config, name, next(free))
            elif isinstance(value, list) and any(isinstance(v, int) and v >= vocab for v in value):
                setattr(config, name, [next(free)])


def shrink_config(config: Any) -> Any:
    """Copy a transformers config with the same structure and tiny sizes; no size grows.

    Layer patterns, activation functions, scales, soft caps and options stay; lists with an entry per layer
    are cut to the number of layers that is kept.
    """
    whole = copy.deepcopy(config)
    text = whole.get_text_config() if callable(getattr(whole, "get_text_config", None)) else whole
    layers = text.num_hidden_layers
    kept = _blocks_to_keep(text, layers)
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(text, name, value[:kept])
    text.num_hidden_layers = kept
    _shrink_width(text)
    for name, bound in _BOUNDS.items():
        _bound(text, name, bound)
    _shrink_token_ids(text)
    if "flash" in str(getattr(whole, "_attn_implementation", "")):
        whole._attn_implementation = "sdpa"  # flash kernels need a GPU; the cut does not depend on the kernel
    return whole


def build_tiny(model: nn.Module, seed: int = 0) -> nn.Module:
    """Build a tiny float32 model of `model`'s class from its shrunken config, on the CPU.

    No parameter keeps its initial value: zero biases and unit scales would hide differences.

    Raises
    ------
    UncuttableModelError
        The class cannot be built from a shrunken config.
    """
    name = type(model).__name__
    try:
        config = shrink_config(model.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tiny: nn.Module = type(model)(config).float()
            _leave_out_pooler(tiny, model)
            with torch.no_grad():
                for parameter in tiny.parameters():
                    parameter.requires_grad_(True)
                    if parameter.dim() >= 2:
                        parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
                    else:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
    except Exception as error:
        raise UncuttableModelError(
            f"{name} cannot be probed: building it from a shrunken copy of its config failed with "
            f"{type(error).__name__}: {error}. Pass a Layout made by hand, and check it with "
            "verify_cut(model, layout, inputs=batch)."
        ) from error
    return tiny


def _leave_out_pooler(tiny: nn.Module, model: nn.Module) -> None:
    """Base models have a pooler unless their builder was told otherwise, which the config does not say."""
    if "pooler" in tiny._modules and getattr(model, "pooler", tiny) is None:
        tiny._modules["pooler"] = None


def probe_inputs(tiny: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Two sequences of tokens, the second padded at its end with the model's padding token."""
    generator = torch.Generator().manual_seed(seed)
    config = surgery.text_config(tiny)
    vocab = config.vocab_size
    ids = torch.randint(3, vocab, (2, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    pad = surgery.pad_token_id(tiny) or 0
    ids = torch.where(ids == pad, (ids + 1) % vocab, ids).masked_fill(mask == 0, pad)
    return {"input_ids": ids, "attention_mask": mask}


def output_tensors(output: Any) -> dict[str, Tensor]:
    """Floating-point tensors of a model's output by name, without per-layer records and caches."""
    if isinstance(output, Tensor):
        return {"output": output}
    items = output.items() if hasattr(output, "items") else enumerate(output)
    return {str(k): v for k, v in items if isinstance(v, Tensor) and v.is_floating_point()}


def run_forward(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """Call a whole model the way that its halves are called: without a key-value cache or labels."""
    arguments: dict[str, Any] = dict(inputs)
    if surgery.accepts(model, "use_cache"):
        arguments["use_cache"] = False
    return model(**arguments)
