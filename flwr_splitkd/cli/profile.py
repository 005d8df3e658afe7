"""`flwr-splitkd profile`: how fast this machine is at each block of a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from flwr_splitkd.costs import DeviceProfile, ServerProfile, to_json
from flwr_splitkd.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from torch import nn

    from flwr_splitkd.telemetry import BlockSamples, Machine

__all__ = ["profile"]


class Role(str, Enum):
    """Whose profile it is."""

    device = "device"
    edge = "edge"


class Dtype(str, Enum):
    """Of the model's parameters."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="A config.json or a folder with one, 'package.module:function' that builds the model, or a name on the "
            "Hugging Face hub. No weights are read."
        ),
    ],
    role: Annotated[Role, typer.Option(help="Whose profile it is.")] = Role.device,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch, as in training.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sample, as in training.")] = 128,
    dtype: Annotated[
        Optional[Dtype],  # noqa: UP045  # typer reads the annotations, also on Python 3.10
        typer.Option(help="Of the parameters; float32, or what the function chooses, when not given."),
    ] = None,
    compute_device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<index>.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Passes whose median counts.")] = 5,
    warmup: Annotated[int, typer.Option(help="Passes before them.")] = 2,
    layers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Measure only so many layers, which takes less memory; the others are taken to be like them."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile.")] = Path("profile.json"),
    frequency: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Clock in Hz, such as 1.3e9; an edge's largest. As the machine tells when not given."),
    ] = None,
    min_frequency: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="An edge's smallest clock in Hz; as the machine tells or a tenth of the largest when not given."
        ),
    ] = None,
    cores: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Cores; torch's threads or the GPU's multiprocessors when not given."),
    ] = None,
    power: Annotated[
        float, typer.Option(min=0, help="Watts that computing adds at that clock; 0 leaves it out.")
    ] = 0.0,
    static_power: Annotated[float, typer.Option(min=0, help="Watts that an edge draws all the time.")] = 0.0,
    memory: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="GiB that a turn may take; all of the machine's when not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile instead of the table.")] = False,
) -> None:
    """Measure how fast this machine is at each block of a model, and write a profile for the planner.

    The model has its real shape and random weights. Each block is timed forward and backward in whole training steps of a
    device, apart from the optimizer. What a machine does not tell, such as its power, is yours to give.
    """
    _refuse_unwritable(output)
    if role is Role.device and (min_frequency is not None or static_power):
        raise ConfigError("`--min-frequency` and `--static-power` are of an edge; expected `--role edge` with them.")
    if ":" in model and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where a function that builds a model is most likely to lie
    import torch

    from flwr_splitkd import telemetry
    from flwr_splitkd.telemetry.machine import compute_device as find_device
    from flwr_splitkd.telemetry.source import alike_blocks

    machine = telemetry.read_machine(find_device(compute_device)).told(
        cores=cores,
        min_frequency_hz=min_frequency,
        max_frequency_hz=frequency,
        memory_bytes=None if memory is None else memory * 2**30,
    )
    for name in ("memory_bytes", "max_frequency_hz") if role is Role.edge else ("memory_bytes",):
        machine.known(name)  # asked for now rather than after the measurement
    source = telemetry.find_source(model)
    built = source.skeleton(dtype=None if dtype is None else getattr(torch, dtype.value), layers=layers)
    alike = None if layers is None else alike_blocks(source, layers)
    _refuse_too_large(built, machine)
    with _progress(f"{source.name} on {machine.name}") as on_progress:
        samples = telemetry.sample_blocks(
            built,
            batch_size=batch_size,
            sequence_length=sequence_length,
            repeats=repeats,
            warmup=warmup,
            device=compute_device,
            name=source.name,
            on_progress=on_progress,
        )
    found: DeviceProfile | ServerProfile
    if role is Role.edge:
        found = telemetry.edge_profile(samples, machine, power_w=power, static_power_w=static_power)
    else:
        found = telemetry.device_profile(samples, machine, alike=alike, power_w=power)
    text = json.dumps(to_json(found), indent=2) + "\n"
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"`--output` is {output}, which cannot be written: {error}.") from error
    if as_json:
        typer.echo(text, nl=False)
        return
    parameter = next(built.parameters())
    where = f"{machine.name}, {compute_device}" + (
        f", {torch.get_num_threads()} threads" if compute_device == "cpu" else ""
    )
    typer.echo(f"{source.name}, {batch_size} x {sequence_length} tokens, {parameter.dtype}".replace("torch.", ""))
    typer.echo(f"{where}\n")
    _print_table(samples, alike)
    _print_notes(found, has_power=power > 0)
    typer.echo(f"\n{output}")


def _print_table(samples: BlockSamples, alike: Sequence[Sequence[int]] | None) -> None:
    times = samples.times()
    typer.echo(f"{'block':>9}  {'forward ms':>10}  {'backward ms':>11}  {'spread':>6}")
    typer.echo(f"{'embedding':>9}  {1e3 * times.embedding_s:>10.3f}")
    for index, spread in enumerate(samples.spread):
        typer.echo(
            f"{index:>9}  {1e3 * times.forward_s[index]:>10.3f}  {1e3 * times.backward_s[index]:>11.3f}  {spread:>6.1%}"
        )
    if alike is not None and len(alike) > samples.num_blocks:
        typer.echo(
            f"\nBlocks {samples.num_blocks} to {len(alike) - 1} were not measured: each is given the median of the measured ones "
            "of its kind."
        )
    typer.echo(
        f"\nThe blocks train at {samples.flops / 1e9:.2f} GFLOP/s; spread is that of the middle half of the passes."
    )


def _print_notes(found: DeviceProfile | ServerProfile, *, has_power: bool) -> None:
    if isinstance(found, ServerProfile):
        clock = f"{found.min_frequency_hz / 1e9:.3g} to {found.max_frequency_hz / 1e9:.3g} GHz"
    else:
        clock = f"{found.frequency_hz / 1e9:.3g} GHz" if found.frequency_hz > 1 else "unknown"
    typer.echo(f"Clock: {clock}; cores: {found.cores}; memory: {found.memory_bytes / 2**30:.1f} GiB.")
    if not has_power:
        typer.echo("Its power is not known, so its computing counts as 0 J; give `--power`.")


def _refuse_unwritable(output: Path) -> None:
    """Find out before minutes of measuring rather than after."""
    folder = output.parent
    if output.is_dir() or not folder.is_dir() or not os.access(output if output.exists() else folder, os.W_OK):
        raise StoreError(f"`--output` is {output}, which cannot be written; expected a file in a folder that exists.")


def _refuse_too_large(model: nn.Module, machine: Machine) -> None:
    needed = 2 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    limit = machine.known("memory_bytes")
    if needed > limit:
        raise ConfigError(
            f"The weights and their gradients take {needed / 2**30:.1f} GiB; expected less than the {limit / 2**30:.1f} GiB of "
            "memory. Measure fewer `--layers`, or choose another `--dtype`."
        )


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show passes on the standard error while they go on."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
