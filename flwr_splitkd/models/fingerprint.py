"""Whether two sides hold the same model, told without sending it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import nn

from flwr_splitkd.split.layout import Layout
from flwr_splitkd.split.surgery import text_config

__all__ = ["Fingerprint", "fingerprint"]

# Settings that change what a model computes without changing any tensor's name or shape, and that every
# transformers version writes alike. The config as a whole differs between versions.
_SETTINGS = ("num_attention_heads", "num_key_value_heads", "hidden_act", "pad_token_id")


@dataclass(frozen=True)
class Fingerprint:
    """What must agree before tensors flow; equal for a model and for its skeleton.

    Parameters
    ----------
    architecture
        Class name of the model.
    num_blocks
        Number of blocks.
    hidden_size, vocab_size
        From the config; 0 for a module without one.
    dtype
        Of the first parameter, e.g. ``"bfloat16"``.
    digest
        SHA-256 over names, shapes and dtypes of the state dict, the layout and a few settings, in
        hexadecimal.
    """

    architecture: str
    num_blocks: int
    hidden_size: int
    vocab_size: int
    dtype: str
    digest: str


def fingerprint(model: nn.Module, layout: Layout) -> Fingerprint:
    """Fingerprint of a whole model or skeleton, the same in every process.

    Take it before the model is cut.
    """
    config = text_config(model)
    lines = [
        f"{type(model).__name__}",
        *layout.block_names,
        *(f"shared {name}" for name in sorted(layout.shared)),
    ]
    lines += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in sorted(model.state_dict().items())]
    lines += [f"{name}={getattr(config, name, None)!r}" for name in _SETTINGS]
    parameter = next(model.parameters(), None)
    return Fingerprint(
        architecture=type(model).__name__,
        num_blocks=layout.num_blocks,
        hidden_size=int(getattr(config, "hidden_size", 0) or 0),
        vocab_size=int(getattr(config, "vocab_size", 0) or 0),
        dtype=str(parameter.dtype).removeprefix("torch.") if parameter is not None else "",
        digest=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    )
