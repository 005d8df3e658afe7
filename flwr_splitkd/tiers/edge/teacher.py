"""The frozen teacher: its token embedding goes to the devices, the rest runs here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flwr_splitkd.distill import Head
from flwr_splitkd.models import HeadTap, find_head, token_embedding
from flwr_splitkd.split import EdgeHalf, find_layout
from flwr_splitkd.store.tensor_file import digest

__all__ = ["EdgeTeacher"]


class EdgeTeacher:
    """A whole teacher, fed with the token embeddings that a device computed.

    Parameters
    ----------
    model
        A transformers model with a token embedding. It is frozen and set to evaluation mode.
    has_head
        Whether its outputs are logits over a vocabulary, rather than classes.
    compute_device
        Where it runs.
    """

    def __init__(self, model: nn.Module, *, has_head: bool, compute_device: torch.device) -> None:
        self.model = model.to(compute_device).eval().requires_grad_(False)
        weight, scale = token_embedding(model)
        self.embedding: dict[str, Tensor] = {"weight/embedding": weight.detach()}
        self.embedding_scale = float(scale)
        self.embedding_version = digest(self.embedding)
        self.head: Head | None = find_head(model) if has_head else None
        self._half = EdgeHalf(model, 0, find_layout(model))
        self._device = compute_device

    @torch.no_grad()
    def outputs(
        self, embeddings: Float[Tensor, "batch sequence hidden"], inputs: Mapping[str, Tensor]
    ) -> Float[Tensor, ...]:
        """Final hidden states ``[batch, sequence, hidden]`` when the teacher has a head, else class logits."""
        embeddings = embeddings.to(self._device)
        with ExitStack() as stack:
            tap = stack.enter_context(HeadTap(self.model)) if self.head else None
            output = self._half(embeddings, inputs)
        hidden: Tensor = tap.hidden if tap else output.logits
        return hidden
