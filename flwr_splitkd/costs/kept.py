"""What a block keeps for its backward pass, term by term: values for each token, and for each pair of tokens.

What torch's autograd saves on a processor, in a block of width d with queries of width q, keys of width k and an MLP of width f:

- norms: 3 d for an RMSNorm before a part (its input, normalised, and scaled), 2 d for a LayerNorm, which is one kernel, or for a
  norm after a part, whose scaled values nobody asks for
- attention: queries, keys, values and the output, ``2 q + 2 k``; where one projection makes the first three, and queries and keys
  are rotated, ``q + k`` more; norms of queries and keys keep once more (LayerNorm) or twice more (RMSNorm) what they read
- a gated MLP: the gate before and after its activation, the other projection and their product, ``4 f``; a plain one: before and
  after its activation, ``2 f``; `ACTIVATION_VALUES` f more where the activation is no single kernel
- dropout: d for each. On a processor torch keeps what it multiplies by as values; a GPU's kernel keeps one byte for each
- attention maps, `attention_maps` for each head and pair of tokens: none where attention is one kernel, as it is on a processor
  without dropout. With maps, keys that queries share are repeated: ``2 (q - k)`` more
- left out: one value for each pair of tokens in a block, and such repeated keys, where samples are padded, so that there is a mask;
  and what norms and attention keep of a whole token or head

On a GPU fused attention keeps no maps even with dropout, so that maps and masks are an upper bound there.
"""

from __future__ import annotations

import numpy as np

from flwr_splitkd.costs.shape import Float

__all__ = ["ACTIVATION_VALUES", "attention_maps", "llama_kept", "plain_kept"]

ACTIVATION_VALUES: dict[str, int] = {
    # Only the output, which the next projection keeps, too.
    "relu": -1,
    "sigmoid": -1,
    "tanh": -1,
    "linear": -1,
    # Elementary functions, each with its own input or output.
    "gelu_10": 1,
    "quick_gelu": 1,
    "gelu_python": 2,
    "gelu_new": 3,
    "gelu_accurate": 3,
    "gelu_python_tanh": 3,
    "gelu_fast": 6,
}
"""Values that an activation of transformers keeps beside its input and its output, for each of its values.

What is not here is one kernel, which keeps its input: ``gelu``, ``gelu_pytorch_tanh``, ``silu`` and others.
"""


def llama_kept(flops_per_token: Float | float, flops_per_pair: Float | float, hidden_size: int) -> Float:
    """Values per token that blocks like Llama's keep, from their FLOPs alone. Shape as given.

    With two RMSNorms and a gated MLP::

        kept = p + f + 6 d,    p = 2 q + 2 k + 3 f

    where p is half of the block's FLOPs per token over d, 2 q half of its FLOPs per pair of tokens, and f is taken as
    ``(p - 2 q) / 3``: keys are narrow where queries share them. Counted on Llama in float32: 24.6 d where this gives 24.7 d.
    """
    projections = np.asarray(flops_per_token) / 2 / hidden_size
    queries = np.asarray(flops_per_pair) / 2
    return np.asarray(projections + np.maximum(projections - queries, 0) / 3 + 6 * hidden_size, dtype=np.float64)


def plain_kept(hidden_size: int, queries: int, keys: int, mlp: int, norms: int) -> float:
    """Values per token that a block with LayerNorms and an MLP without a gate keeps: ``2 d norms + 2 q + 2 k + 2 f``."""
    return 2.0 * (norms * hidden_size + queries + keys + mlp)


def attention_maps(*, dropout: bool, eager: bool, softcap: bool) -> int:
    """Values kept for each head and pair of tokens.

    Parameters
    ----------
    dropout
        Whether weights of attention are dropped, for which torch has no single kernel on a processor: the weights, what they are
        multiplied by, and their product.
    eager
        Whether attention is made of elementary functions anyway: the weights.
    softcap
        Whether eager attention bounds its scores: their tanh.
    """
    return (3 if dropout else int(eager)) + (eager and softcap)
