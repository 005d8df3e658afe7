"""Dropout that does not depend on where a layer runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flwr_splitkd.split.layout import Layout

__all__ = ["DropoutSeeds", "seed_dropout"]


class DropoutSeeds:
    """Where in training the next forward pass stands; made by :func:`seed_dropout`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0
        self._microbatch = 0

    def at(self, step: int, microbatch: int = 0, *, seed: int | None = None) -> None:
        """Place the next forward pass at `step` of the whole run and `microbatch`, both from 0; `seed` takes the run's place."""
        self._step = step
        self._microbatch = microbatch
        if seed is not None:
            self._seed = seed

    def _start(self, part: int) -> None:
        key = f"{self._seed}/{self._step}/{self._microbatch}/{part}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def seed_dropout(model: nn.Module, layout: Layout, seed: int) -> Iterator[DropoutSeeds]:
    """Draw the same dropout masks in the whole model and in its halves.

    Torch's generator is re-seeded by (seed, step, microbatch, part) at the start of every forward pass and at
    the end of every block, where the next block - or the head - begins. A half's stubs count as blocks, so
    each layer sees the same stream wherever it runs. Seeding at a block's *end* is what makes this right
    under gradient checkpointing: the checkpoint saves the generator before the block and its recomputation
    starts from there, whatever micro-batch is current by then.

    Parameters
    ----------
    model
        A whole model, or the ``.model`` of a half; enter the context after the halves are made.
    layout
        The model's layout.
    seed
        Seed of the run.

    Yields
    ------
    DropoutSeeds
        Call ``.at(step, microbatch)`` before each forward pass. The generators get their former states back
        when the context ends.
    """
    seeds = DropoutSeeds(seed)

    def at_start(_module: nn.Module, _args: Any) -> None:
        seeds._start(0)

    def after_block(part: int) -> Any:
        def hook(_module: nn.Module, _args: Any, _output: Any) -> None:
            seeds._start(part)

        return hook

    handles = [model.register_forward_pre_hook(at_start)]
    for index, name in enumerate(layout.block_names):
        handles.append(model.get_submodule(name).register_forward_hook(after_block(index + 1)))
    with torch.random.fork_rng():
        try:
            yield seeds
        finally:
            for handle in handles:
                handle.remove()
