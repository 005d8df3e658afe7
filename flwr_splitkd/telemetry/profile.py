"""Seconds of each block of a model on this machine, and the profiles that a planner reads.

What is timed is a device's part of a training step: forward through what comes before the blocks and through every block,
then backward from a gradient that comes in at the top, as it comes from the edge. The head never runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flwr_splitkd.costs import BlockTimes, DeviceProfile, ServerProfile
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.split import Layout, find_layout, is_token_model
from flwr_splitkd.split.surgery import text_config
from flwr_splitkd.telemetry.machine import Machine, compute_device
from flwr_splitkd.telemetry.passes import clock_of, marks, own_randomness, place, reach_the_top, step

__all__ = ["BlockSamples", "count_block_flops", "device_profile", "edge_profile", "measure_blocks", "sample_blocks"]

# A backward pass counts as two forward passes, as in costs.turn: the planner multiplies by the same number.
_FORWARD_PASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSamples:
    """Every single time that was measured.

    Parameters
    ----------
    model
        What was measured.
    batch_size, sequence_length
        Of the batch.
    forward_s, backward_s
        Of each block in each pass. Shape ``[R, L]``.
    embedding_s
        Forward pass of what comes before the first block. Shape ``[R]``.
    forward_flops
        FLOPs of each block for the whole batch, see `count_block_flops`. Shape ``[L]``.
    """

    model: str
    batch_size: int
    sequence_length: int
    forward_s: Float
    backward_s: Float
    embedding_s: Float
    forward_flops: Float

    @property
    def num_blocks(self) -> int:
        """Blocks that were measured."""
        return len(self.forward_flops)

    @property
    def spread(self) -> Float:
        """Interquartile range of forward and backward together, as a share of their median. Shape ``[L]``."""
        seconds = self.forward_s + self.backward_s
        low, middle, high = np.percentile(seconds, (25, 50, 75), axis=0)
        return np.asarray((high - low) / middle, dtype=np.float64)

    @property
    def flops(self) -> float:
        """FLOPs a second in training: three forward passes' FLOPs over the medians of forward and backward."""
        seconds = np.median(self.forward_s, axis=0) + np.median(self.backward_s, axis=0)
        return float(_FORWARD_PASSES * self.forward_flops.sum() / seconds.sum())

    def times(self, alike: Sequence[Sequence[int]] | None = None) -> BlockTimes:
        """Medians over the passes.

        Parameters
        ----------
        alike
            To tell of more blocks than were measured: for each block of the whole model the measured ones that are like it. A
            block that was not measured is given the median of those.

        Raises
        ------
        ConfigError
            If a median is 0 s, because the clock is too coarse.
        """
        forward, backward = (np.median(samples, axis=0) for samples in (self.forward_s, self.backward_s))
        groups = [[index] for index in range(self.num_blocks)]
        groups += [list(group) for group in (alike or [])[self.num_blocks :]]
        return BlockTimes(
            model=self.model,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            forward_s=tuple(float(np.median(forward[group])) for group in groups),
            backward_s=tuple(float(np.median(backward[group])) for group in groups),
            embedding_s=float(np.median(self.embedding_s)),
        )


def measure_blocks(
    model: nn.Module,
    *,
    batch_size: int,
    sequence_length: int,
    repeats: int = 5,
    warmup: int = 2,
    device: str = "cpu",
    blocks: str | Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BlockTimes:
    """Measure each block of a model: the medians of what `sample_blocks` gives, which has the parameters and errors."""
    samples = sample_blocks(
        model,
        batch_size=batch_size,
        sequence_length=sequence_length,
        repeats=repeats,
        warmup=warmup,
        device=device,
        blocks=blocks,
        on_progress=on_progress,
    )
    return samples.times()


def sample_blocks(
    model: nn.Module,
    *,
    batch_size: int,
    sequence_length: int,
    repeats: int = 5,
    warmup: int = 2,
    device: str = "cpu",
    blocks: str | Sequence[str] | None = None,
    name: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> BlockSamples:
    """Time each block of a transformers model in whole forward and backward passes.

    It takes the memory of a device that holds every block: their weights, gradients, and what they keep for the backward pass.

    Parameters
    ----------
    model
        Reads tokens. What has no memory, because it is on the meta device, is given random weights, apart from the head. It is
        left on `device`, without gradients.
    batch_size, sequence_length
        Of the batch of random tokens, at least 1.
    repeats, warmup
        Passes that count, at least 1, and passes before them that do not.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.
    blocks
        As for `find_layout`.
    name
        What the model is called; its class when not given.
    on_progress
        Called with the passes that are done and all passes.

    Raises
    ------
    ConfigError
        If a number is out of range, the model reads no tokens, the device is not here, or its memory is too small.
    CutError
        If the model's blocks are not found.
    """
    _check(model, batch_size=batch_size, sequence_length=sequence_length, repeats=repeats, warmup=warmup)
    on = compute_device(device)
    layout = find_layout(model, blocks)
    clock = clock_of(on)
    was_training = model.training
    forward, backward, embedding = [], [], []
    try:
        with torch.cuda.device(on) if on.type == "cuda" else nullcontext(), own_randomness(on):
            place(model, layout, on)
            model.train()
            flops = count_block_flops(model, layout, sequence_length=sequence_length) * batch_size
            tokens = torch.randint(text_config(model).vocab_size, (batch_size, sequence_length), device=on)
            for done in range(warmup + repeats):
                up, down = step(model, layout, tokens, clock)
                if done >= warmup:
                    embedding.append(up[0])
                    forward.append(up[1:])
                    backward.append(down)
                if on_progress is not None:
                    on_progress(done + 1, warmup + repeats)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"A batch of {batch_size} x {sequence_length} tokens and {layout.num_blocks} blocks of {type(model).__name__} do not "
            f"fit into the memory of {on}; expected less. Lower one of them."
        ) from error
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return BlockSamples(
        model=name or type(model).__name__,
        batch_size=batch_size,
        sequence_length=sequence_length,
        forward_s=np.array(forward),
        backward_s=np.array(backward),
        embedding_s=np.array(embedding),
        forward_flops=flops,
    )


def count_block_flops(model: nn.Module, layout: Layout, *, sequence_length: int) -> Float:
    """Count the forward FLOPs of each block for one sample, as `ModelShape.block_flops` has them.

    A multiply-accumulate is two FLOPs, attention is that over all pairs of tokens, and only matrix products and convolutions
    count, by PyTorch's counter.

    Parameters
    ----------
    model
        Reads tokens; its blocks have memory.
    layout
        Of the model.
    sequence_length
        Tokens of the sample.

    Returns
    -------
    Float
        Shape ``[L]``.
    """
    where = next(model.get_submodule(layout.block_names[0]).parameters()).device
    tokens = torch.zeros((1, sequence_length), dtype=torch.int64, device=where)
    # The counter does not know every fused kernel, and those of attention skip what is masked.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), _plain_experts(model):
        with marks(model, layout, counter.get_total_flops) as (forward, _):
            reach_the_top(model, layout, tokens)
    return np.diff(np.array(forward, dtype=np.float64))


@contextmanager
def _plain_experts(model: nn.Module) -> Iterator[None]:
    """Let a mixture of experts run them one by one, in matrix products that the counter knows."""
    fused = getattr(getattr(model, "config", None), "_experts_implementation", None)
    switch = getattr(model, "set_experts_implementation", None)
    if fused is None or not callable(switch):
        yield
        return
    switch("eager")
    try:
        yield
    finally:
        switch(fused)


def device_profile(
    samples: BlockSamples,
    machine: Machine,
    *,
    alike: Sequence[Sequence[int]] | None = None,
    power_w: float = 0.0,
) -> DeviceProfile:
    """Describe this machine as a device.

    The planner uses the measured times of the blocks, and of the rest only products: ``frequency * cores * flops_per_cycle`` is
    the measured speed, ``power_coefficient * frequency^3`` is `power_w`. So where the clock is not known it is set to 1 Hz.

    Parameters
    ----------
    samples
        What was measured.
    machine
        Its memory has to be known.
    alike
        As for `BlockSamples.times`.
    power_w
        What it draws more while it computes than while it waits; 0 leaves energy out.

    Raises
    ------
    ConfigError
        If the memory is not known, or the power is below 0.
    """
    frequency = machine.max_frequency_hz or 1.0
    return DeviceProfile(
        name=machine.name,
        frequency_hz=frequency,
        cores=machine.cores,
        flops_per_cycle=samples.flops / (frequency * machine.cores),
        power_coefficient=power_w / frequency**3,
        memory_bytes=machine.known("memory_bytes"),
        blocks=samples.times(alike),
    )


def edge_profile(
    samples: BlockSamples, machine: Machine, *, power_w: float = 0.0, static_power_w: float = 0.0
) -> ServerProfile:
    """Describe this machine as the edge server.

    It is assumed to have run at its largest clock while it was measured, and to compute in proportion to its clock.

    Parameters
    ----------
    samples
        What was measured.
    machine
        Its largest clock and its memory have to be known. Its smallest clock is a tenth of the largest if it is not.
    power_w
        What it draws at the largest clock while it computes, apart from `static_power_w`; 0 leaves this energy out.
    static_power_w
        What it draws all the time.

    Raises
    ------
    ConfigError
        If what has to be known is not, the smallest clock is above the largest, or a power is below 0.
    """
    frequency = machine.known("max_frequency_hz")
    return ServerProfile(
        name=machine.name,
        max_frequency_hz=frequency,
        min_frequency_hz=machine.min_frequency_hz or 0.0,
        cores=machine.cores,
        flops_per_cycle=samples.flops / (frequency * machine.cores),
        power_coefficient=power_w / frequency**3,
        static_power_w=static_power_w,
        memory_bytes=machine.known("memory_bytes"),
    )


def _check(model: nn.Module, *, batch_size: int, sequence_length: int, repeats: int, warmup: int) -> None:
    numbers = {"batch_size": batch_size, "sequence_length": sequence_length, "repeats": repeats}
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"`{name}` is {value}; expected at least 1.")
    if warmup < 0:
        raise ConfigError(f"`warmup` is {warmup}; expected at least 0.")
    if not is_token_model(model):
        raise ConfigError(
            f"{type(model).__name__} does not read tokens; expected a model of transformers with `vocab_size` in its config. Only "
            "such a model can be measured, since a batch can be made up for it."
        )
    longest = getattr(text_config(model), "max_position_embeddings", None)
    if isinstance(longest, int) and sequence_length > longest:
        raise ConfigError(f"`sequence_length` is {sequence_length}; expected at most {longest} for this model.")
