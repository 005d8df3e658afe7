"""Shapes of well-known models by name, and of any other by its config file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr_splitkd.costs.architectures import shape_from_config
from flwr_splitkd.costs.families import FAMILIES
from flwr_splitkd.costs.shape import ModelShape
from flwr_splitkd.errors import ConfigError

__all__ = ["CATALOG", "load_shape", "named_shape"]

_LLAMA_3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_QWEN_2: dict[str, Any] = {"model_type": "qwen2", "max_position_embeddings": 32768}

# From the config.json that each model is published with; what is not here is transformers' default.
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {**_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "llama-3.2-1b": {
        **_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        **_LLAMA_3, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        **_QWEN_2, "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        **_QWEN_2, "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    },
    "gpt2": {"model_type": "gpt2"},
    "gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "bert-base": {"model_type": "bert"},
    "distilbert-base": {"model_type": "distilbert"},
    "roberta-base": {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1},
    "roberta-large": {
        "model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1, "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
}  # fmt: skip

# Li et al., section V: a "LLaMA 3.2 8B" of 64 blocks, and a 1B of 12. Llama 3.2 has no 8B; the blocks are those of 3.1's.
_SAME_BLOCKS = {"llama-3.2-8b/64": ("llama-3.1-8b", 64), "llama-3.2-1b/12": ("llama-3.2-1b", 12)}

CATALOG: tuple[str, ...] = (*_CONFIGS, *_SAME_BLOCKS)
"""Names that `named_shape` knows. After a slash comes another number of blocks than the published one."""


def named_shape(name: str, *, task: str | None = None) -> ModelShape:
    """Return the shape of a well-known model.

    Parameters
    ----------
    name
        One of `CATALOG`, or one of them with another number of blocks, such as ``"llama-3.1-8b/16"``.
    task
        As for `shape_from_config`.

    Raises
    ------
    ConfigError
        If there is no such model, or it is not for this task.
    """
    base, slash, count = name.partition("/")
    if name in _SAME_BLOCKS:
        base, blocks = _SAME_BLOCKS[name]
    elif base in _CONFIGS and not slash:
        return shape_from_config(_CONFIGS[base], name=name, task=task)
    elif base in _CONFIGS and count.isdecimal() and int(count) > 0:
        blocks = int(count)
    else:
        raise ConfigError(
            f"There is no model {name!r}; expected one of {sorted(CATALOG)}, or one of them with '/' and a number of blocks. Give "
            "the path of any other model's config.json to `load_shape`."
        )
    config = _CONFIGS[base]
    layers = FAMILIES[config["model_type"]].names.get("num_hidden_layers", "num_hidden_layers")
    return shape_from_config({**config, layers: blocks}, name=name, task=task)


def load_shape(name_or_path: str | Path, *, task: str | None = None) -> ModelShape:
    """Return the shape of a well-known model, or of one with a config file.

    Parameters
    ----------
    name_or_path
        A name as for `named_shape`, a ``config.json``, or a folder with one, as ``save_pretrained`` writes it. A folder that
        is called like a model needs a path such as ``"./gpt2"``.
    task
        As for `shape_from_config`.

    Raises
    ------
    ConfigError
        If it is neither, or the file does not describe an architecture that is known.
    """
    text = str(name_or_path)
    path = Path(name_or_path)
    file = path / "config.json" if path.is_dir() else path
    if text.partition("/")[0] in _CONFIGS or text in _SAME_BLOCKS:
        return named_shape(text, task=task)
    if not file.is_file():
        raise ConfigError(
            f"The model is {text!r}, and there is no {file}; expected one of {sorted(CATALOG)}, or the path of a config.json or of "
            "a folder with one."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Expected a config.json of transformers.") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"{file} holds a {type(config).__name__}; expected an object, as in a config.json of transformers."
        )
    own = str(config.get("_name_or_path") or "")
    return shape_from_config(
        config, name=own or (file.parent if file.name == "config.json" else file).name or None, task=task
    )
