"""`flwr-splitkd plan`: where to cut, before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from flwr_splitkd.cli.plan_output import Planned, draw_plan, plan_json, print_devices, print_options, save_figure
from flwr_splitkd.cli.plan_scct import ChainOptions, show_chain_plan
from flwr_splitkd.costs import (
    RADIO_PRESETS,
    RUNTIME_BYTES,
    DeviceProfile,
    Fleet,
    Link,
    ModelShape,
    Workload,
    cut_terms,
    fleet_from_json,
    link_from_json,
    load_device,
    load_server,
    load_shape,
)
from flwr_splitkd.costs.radio import los_probability
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import evaluate_options, plan_cut_and_frequency

__all__ = ["plan"]

_TYPICAL_DISTANCE_M = 50.0
# What `--help` groups options by, and what does nothing in the other mode.
_KD, _CHAIN = "Split knowledge distillation", "The chain (--scct)"
_OF_KD = (
    *("student", "teacher", "device", "server", "link", "distance", "sequence_length", "batches", "microbatches"),
    *("local_epochs", "causal", "max_delay", "min_cut", "codecs", "frequency", "battery"),
)
_OF_CHAIN = (
    *("slm", "positions", "iterations", "epochs", "mechanism", "split_point", "draws", "edge_memory"),
    "paper_algorithms",
)


class Dtype(str, Enum):
    """Of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Frequency(str, Enum):
    """How the server's clock is chosen."""

    optimal = "optimal"
    max = "max"
    nominal = "nominal"


class Mechanisms(str, Enum):
    """The paper's names of who decides in the chain."""

    SCCTT = "SCCTT"
    SCCTL = "SCCTL"
    SCCTS = "SCCTS"


def plan(
    ctx: typer.Context,
    student: Annotated[
        str,
        typer.Option(help="A model's name such as gpt2, its config.json, or a folder with one.", rich_help_panel=_KD),
    ] = "llama-3.2-1b",
    teacher: Annotated[str, typer.Option(help="The same; 'none' without one.", rich_help_panel=_KD)] = "llama-3.1-8b",
    device: Annotated[
        Optional[list[str]],  # noqa: UP045  # typer reads the annotations, also on Python 3.10
        typer.Option(
            help="1 to 10 or a name of the paper's table II, 'generic', or a profile's file; more than once for more.",
            rich_help_panel=_KD,
        ),
    ] = None,
    server: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="'RTX 4090', 'generic', or a profile's file.", rich_help_panel=_KD),
    ] = None,
    link: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="good, normal, poor, wired-100m and the like, an object of JSON, or a file with one.",
            rich_help_panel=_KD,
        ),
    ] = None,
    fleet: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A file with server, devices and links, in place of these three options; with --scct a chain's."
        ),
    ] = None,
    distance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Metres of a device that stands still in a radio's cell, without shadowing and with a line of sight where that "
            f"is likelier than not; {_TYPICAL_DISTANCE_M:g} for a radio by name when not given.",
            rich_help_panel=_KD,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of what is random in a radio, and of a chain's speeds and channels.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 8,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sample.", rich_help_panel=_KD)] = 512,
    batches: Annotated[int, typer.Option(help="Batches in one pass over a device's data.", rich_help_panel=_KD)] = 50,
    microbatches: Annotated[
        int,
        typer.Option(
            help="Parts that a batch goes through in: more of them take less of the server's memory.",
            rich_help_panel=_KD,
        ),
    ] = 2,
    local_epochs: Annotated[int, typer.Option(help="Passes in a turn.", rich_help_panel=_KD)] = 1,
    dtype: Annotated[
        Dtype, typer.Option(help="Of weights and activations; with --scct float32 when not given.")
    ] = Dtype.bfloat16,
    moments: Annotated[
        int, typer.Option(help="Values that the optimiser keeps, and hands over, for each weight: 2 for AdamW.")
    ] = 0,
    causal: Annotated[bool, typer.Option(help="Whether attention skips what is masked.", rich_help_panel=_KD)] = True,
    max_delay: Annotated[float, typer.Option(help="Seconds that a turn may take.", rich_help_panel=_KD)] = math.inf,
    min_cut: Annotated[int, typer.Option(help="At least so many blocks stay on the device.", rich_help_panel=_KD)] = 1,
    codecs: Annotated[
        str, typer.Option(help="To choose from, with commas: none, float16, bfloat16, int8.", rich_help_panel=_KD)
    ] = "none",
    frequency: Annotated[Frequency, typer.Option(help="The server's clock.", rich_help_panel=_KD)] = Frequency.optimal,
    battery: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0, help="Joules left in the device; what its profile says when not given.", rich_help_panel=_KD
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[Optional[Path], typer.Option(help="A picture, such as plan.png, of every cut or device.")] = None,  # noqa: UP045
    scct: Annotated[
        bool,
        typer.Option(
            "--scct",
            help="Plan the chain device - edge - cloud: split points for a round, shares and subcarriers for an epoch.",
            rich_help_panel=_CHAIN,
        ),
    ] = False,
    slm: Annotated[
        str,
        typer.Option(help="The devices' encoder: a name, a config.json, or a folder with one.", rich_help_panel=_CHAIN),
    ] = "roberta-large/12",
    positions: Annotated[
        int, typer.Option(help="Tokens in a sample, as the encoder sees it.", rich_help_panel=_CHAIN)
    ] = 384,
    iterations: Annotated[int, typer.Option(help="Batches of a device in an epoch.", rich_help_panel=_CHAIN)] = 60,
    epochs: Annotated[int, typer.Option(help="Epochs in a round.", rich_help_panel=_CHAIN)] = 60,
    mechanism: Annotated[
        Mechanisms,
        typer.Option(
            help="SCCTT decides on both timescales, SCCTL divides the edge equally, SCCTS has one split point for all.",
            rich_help_panel=_CHAIN,
        ),
    ] = Mechanisms.SCCTT,
    split_point: Annotated[int, typer.Option(help="Of SCCTS.", rich_help_panel=_CHAIN)] = 1,
    draws: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Epochs that split points are decided on; what the fleet says, or 50, when not given.",
            rich_help_panel=_CHAIN,
        ),
    ] = None,
    edge_memory: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="GiB of the edge, in place of the fleet's.", rich_help_panel=_CHAIN),
    ] = None,
    paper_algorithms: Annotated[
        bool,
        typer.Option(
            "--paper-algorithms",
            help="The paper's Algorithms 1 and 2 in place of ours: minutes, fewer with fewer `--draws`.",
            rich_help_panel=_CHAIN,
        ),
    ] = False,
) -> None:
    """Say what a turn takes with every cut, and which cut and server's clock take the least energy within the bounds.

    Without options it is the paper's case: Llama-3.1-8B teaches Llama-3.2-1B on device 1, in a normal channel. The exit code is
    1 if some device has no feasible cut; the message says what would help.

    With --scct it plans the chain device - edge - cloud: a split point for each device, its share of the edge and its subcarriers.
    Without a fleet these are 30 devices in the cell of the paper's table III.
    """
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    _refuse_other_mode(given, scct=scct)
    if plot is not None and find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed, which `--plot` needs; pip install 'flwr_splitkd[report]'.")
    if scct:
        options = ChainOptions(
            fleet=fleet,
            slm=slm,
            batch_size=batch_size,
            positions=positions,
            iterations=iterations,
            epochs=epochs,
            value_bytes=4.0 if "dtype" not in given or dtype is Dtype.float32 else 2.0,
            moments=moments,
            mechanism=mechanism.value,
            split_point=split_point,
            literal=paper_algorithms,
            draws=draws,
            edge_memory=edge_memory,
            seed=seed,
        )
        show_chain_plan(options, as_json=as_json, plot=plot)
        return
    if fleet is not None and (device or server is not None or link is not None or distance is not None):
        raise ConfigError(
            "`--fleet` names devices, server and links; leave out --device, --server, --link, --distance."
        )
    item_bytes = 4.0 if dtype is Dtype.float32 else 2.0
    workload = Workload(
        batch_size=batch_size,
        sequence_length=sequence_length,
        num_batches=batches,
        local_epochs=local_epochs,
        activation_bytes=item_bytes,
        weight_bytes=item_bytes,
        moments=moments,
        causal=causal,
        num_microbatches=microbatches,
        pipeline_depth=microbatches,  # what it may become, where turns choose it
        runtime_bytes=RUNTIME_BYTES,
    )
    rng = np.random.default_rng(seed)
    everybody = (
        _fleet(device or ["1"], server or "RTX 4090", link or "normal", distance, rng)
        if fleet is None
        else fleet_from_json(fleet, rng=rng)
    )
    models = (load_shape(student), None if teacher == "none" else load_shape(teacher))
    names = list(dict.fromkeys([*everybody.devices, *everybody.links]))
    if not names:
        raise ConfigError(f"{fleet} has no devices; expected at least one to plan for. Add it to `devices`.")
    bounds: dict[str, Any] = {"max_delay_s": max_delay, "min_cut": min_cut, "frequency": frequency.value}
    words = [word.strip() for word in codecs.split(",") if word.strip()]
    planned = [_plan(name, everybody, models, workload, words, bounds, battery) for name in names]
    if plot is not None:
        save_figure(draw_plan(planned), plot)
    if as_json:
        typer.echo(json.dumps(plan_json(planned), indent=2, allow_nan=False))
    elif fleet is None:
        for one in planned:
            print_options(one, models, workload)
    else:
        print_devices(planned, models, workload)
    if plot is not None:
        typer.echo(f"\n{plot}", err=as_json)
    if impossible := [one.infeasible for one in planned if one.infeasible]:
        raise InfeasibleError(" ".join(impossible))


def _refuse_other_mode(given: set[str], *, scct: bool) -> None:
    """Refuse options that would do nothing."""
    for name in _OF_KD if scct else _OF_CHAIN:
        if name in given:
            option = f"`--{name.replace('_', '-')}`"
            raise ConfigError(
                f"{option} is of split knowledge distillation; expected none of its options with `--scct`. Leave it out."
                if scct
                else f"{option} is of the chain; expected `--scct` with it. Add that, or leave {option} out."
            )


def _plan(
    name: str,
    fleet: Fleet,
    models: tuple[ModelShape, ModelShape | None],
    workload: Workload,
    codecs: Sequence[str],
    bounds: dict[str, Any],
    battery_j: float | None,
) -> Planned:
    device, radio = fleet.device(name), fleet.link(name)
    link = radio.at(0.0)
    terms = cut_terms(*models, workload, device, codecs=codecs)
    parts: dict[str, Any] = {"device": device, "server": fleet.server, "link": link, **bounds}
    parts["battery_j"] = device.battery_j if battery_j is None else battery_j
    options = evaluate_options(terms, **parts)
    decision, infeasible = None, ""
    try:
        decision = plan_cut_and_frequency(terms, **parts)
    except InfeasibleError as error:
        infeasible = str(error)
    return Planned(
        name=name,
        device=device,
        server=fleet.server,
        link=link,
        radio=radio,
        options=options,
        decision=decision,
        infeasible=infeasible,
    )


def _fleet(devices: Sequence[str], server: str, link: str, distance_m: float | None, rng: np.random.Generator) -> Fleet:
    """Every device on its own link of the same description."""
    profiles: dict[str, DeviceProfile] = {}
    links: dict[str, Link] = {}
    for number, text in enumerate(devices, start=1):
        profile = load_device(text)
        name = profile.name if profile.name not in profiles else f"{profile.name} ({number})"
        profiles[name] = profile
        links[name] = link_from_json(_link(link, distance_m), rng=rng)
    return Fleet(server=load_server(server), devices=profiles, links=links)


def _link(text: str, distance_m: float | None) -> str | dict[str, Any]:
    """A link's description, with its radio where `distance_m` says."""
    described: Any = text
    if text.lstrip().startswith("{") or text.endswith(".json"):
        described = _json(text)
        if not isinstance(described, dict):
            raise ConfigError(f"`--link` is {described!r}; expected an object with a 'kind'.")
    elif text in RADIO_PRESETS:
        described = {"kind": "radio", "preset": text}
        distance_m = _TYPICAL_DISTANCE_M if distance_m is None else distance_m
    if distance_m is None:
        return described  # type: ignore[no-any-return]  # a name, or an object that link_from_json will check
    if not isinstance(described, dict) or described.get("kind") != "radio":
        raise ConfigError(f"`--distance` is {distance_m:g} with the link {text!r}; expected a radio. Leave it out.")
    if not (math.isfinite(distance_m) and distance_m >= 0):
        raise ConfigError(f"`--distance` is {distance_m:g}; expected at least 0 m.")
    place = {"way_points": [[0.0, distance_m]], "speed_mps": 0.0}
    sight = "los" if float(los_probability(distance_m)) >= 0.5 else "nlos"
    return {"shadowing": False, "los": sight, **described, **place}


def _json(text: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        return json.loads(Path(text).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"`--link` is {text!r}, which cannot be read: {error}. Expected an object of JSON."
        ) from error
