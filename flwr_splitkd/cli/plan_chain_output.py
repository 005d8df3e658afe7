"""What `flwr-splitkd plan --scct` shows: tables, JSON, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from flwr_splitkd.cli.plan_chain import Compared, PlannedChain
from flwr_splitkd.cli.plan_output import finite_json, short_number
from flwr_splitkd.costs import CellDevice

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

__all__ = ["chain_json", "draw_chain", "print_chain"]

# Of a table, in characters.
_WIDEST = 400
_STAGES = (
    ("device_s", "device", "#0072b2"),
    ("uplink_s", "uplink", "#56b4e9"),
    ("edge_s", "edge", "#d55e00"),
    ("downlink_s", "downlink", "#e69f00"),
)


def print_chain(planned: PlannedChain, batch: tuple[int, int]) -> None:
    """Print who gets what, what that takes, and what other mechanisms would; `batch` is samples and positions."""
    from rich.console import Console

    console = Console(markup=False)
    for line in _heading(planned, batch):
        console.print(line, highlight=False, soft_wrap=True)
    _print_whole(console, _devices(planned))
    for line in _notes(planned):
        console.print(line, highlight=False, soft_wrap=True)
    _print_whole(console, _seconds(planned))
    console.print(
        f"Iteration, epoch, round: on average over {planned.fleet.num_draws} draws of speeds and channels.",
        highlight=False,
        soft_wrap=True,
    )
    _print_whole(console, _mechanisms(planned))
    for name, why in planned.impossible.items():
        console.print(f"{name} is not possible. {why}", highlight=False, soft_wrap=True)
    console.print(f"> {planned.chosen.decision.reason}.", highlight=False, soft_wrap=True)
    console.print(
        f"> {planned.epoch.explain(planned.fleet.devices)}, in the typical epoch.", highlight=False, soft_wrap=True
    )


def chain_json(planned: PlannedChain, batch: tuple[int, int]) -> dict[str, Any]:
    """Everything that the tables show; `batch` is samples and positions."""
    decision, latency, fleet = planned.chosen.decision, planned.epoch.latency, planned.fleet
    up, down = planned.rates_bps
    columns: dict[str, Any] = {
        "device": fleet.devices,
        "flops": fleet.typical.device_flops.tolist(),
        "distance_m": [fleet.cell.device(name).distance_m for name in fleet.devices],
        "los": [fleet.cell.device(name).los for name in fleet.devices],
        "gain_db": [fleet.cell.device(name).gain_db for name in fleet.devices],
        "memory_bytes": fleet.device_bytes,
        "uplink_bps": up.tolist(),
        "downlink_bps": down.tolist(),
        "split_point": decision.split_points.tolist(),
        "highest_split_point": planned.highest,
        "share": planned.epoch.shares.tolist(),
        "subcarriers": planned.epoch.subcarriers.tolist(),
        **{stage: getattr(latency, stage).tolist() for stage, _, _ in _STAGES},
        "iteration_s": latency.each_s.tolist(),
        "alone_s": planned.alone_s.tolist(),
        "handover_s": planned.handover_s.tolist(),
        "reason": list(planned.reasons()),
    }
    rows = zip(*columns.values(), strict=True)
    found: dict[str, Any] = {
        "slm": planned.slm.name,
        "num_layers": planned.workload.num_layers,
        "batch_size": batch[0],
        "positions": batch[1],
        "iterations_per_epoch": planned.workload.iterations_per_epoch,
        "epochs": planned.workload.epochs,
        "edge": {"name": fleet.edge, "flops": fleet.cell.edge_flops, "memory_bytes": fleet.edge_bytes},
        "num_subcarriers": fleet.cell.num_subcarriers,
        "num_draws": fleet.num_draws,
        "drawn_devices": _is_drawn(planned),
        "mechanism": planned.chosen.name,
        "reason": decision.reason,
        "typical_epoch_reason": planned.epoch.explain(fleet.devices),
        "typical_iteration_s": float(latency.slowest_s),
        "cloud_link_s": latency.cloud_link_s,
        "handover_s": decision.handover_s,
        "lower_bound_s": planned.lower_bound_s,
        **_compared_json(planned, planned.chosen),
        "devices": [dict(zip(columns, row, strict=True)) for row in rows],
        "comparison": [
            {"mechanism": one.name, **_compared_json(planned, one)} for one in (planned.chosen, *planned.others)
        ],
        "impossible": dict(planned.impossible),
    }
    result: dict[str, Any] = finite_json(found)
    return result


def draw_chain(planned: PlannedChain) -> Figure:
    """Seconds by stage of every device's iteration as bars, in the fleet's typical epoch; a dashed line at the slowest."""
    from matplotlib.figure import Figure

    latency, names = planned.epoch.latency, planned.fleet.devices
    figure = Figure(figsize=(9, 1.8 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    places, before = np.arange(len(names)), np.zeros(len(names))
    for stage, label, color in _STAGES:
        seconds = getattr(latency, stage)
        axes.barh(places, seconds, left=before, color=color, label=label)
        before = before + seconds
    slowest_s = float(latency.slowest_s)
    axes.axvline(slowest_s, color="black", linestyle="--", linewidth=1, label="slowest")
    rows = zip(planned.chosen.decision.split_points, planned.epoch.subcarriers, strict=True)
    for place, (point, carriers) in enumerate(rows):
        axes.text(1.02 * slowest_s, place, f"{point} / {carriers}", va="center", fontsize=8)
    axes.set_yticks(places, [name.replace("$", r"\$") for name in names])
    axes.set_ylim(len(names) - 0.4, -1.4)
    axes.text(1.02 * slowest_s, -1, "split / subcarriers", va="center", fontsize=8)
    axes.set_xlim(0, 1.25 * slowest_s)
    axes.set_xlabel(f"seconds of an iteration, and {latency.cloud_link_s:.3g} s of the cloud link for all together")
    axes.set_title(f"{planned.slm.name}, {planned.chosen.name}".replace("$", r"\$"), fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _heading(planned: PlannedChain, batch: tuple[int, int]) -> Iterator[str]:
    fleet, workload = planned.fleet, planned.workload
    cell, drawn = fleet.cell, _is_drawn(planned)
    memory = "no bound on its memory" if np.isinf(fleet.edge_bytes) else f"{fleet.edge_bytes / (1 << 30):,.4g} GiB"
    whose = " of table III" if drawn else ""
    yield (
        f"{planned.slm.name} ({workload.num_layers} layers) on {len(fleet.devices)} devices{whose}; {fleet.edge}: "
        f"{cell.edge_flops / 1e12:.4g} TFLOPS, {memory}; {cell.num_subcarriers} subcarriers of {cell.subcarrier_hz / 1e6:.4g} MHz; "
        f"{cell.cloud_bps / 1e6:.4g} Mbit/s to the cloud."
    )
    yield (
        f"The first round: {workload.epochs} epochs of {workload.iterations_per_epoch} batches of {batch[0]} x {batch[1]} tokens."
    )
    if drawn:
        yield (
            f"The paper names neither speeds nor places of devices: both are drawn, with seed {cell.seed}. "
            "`--fleet` describes yours."
        )


def _devices(planned: PlannedChain) -> Table:
    from rich.markup import escape

    fleet, latency = planned.fleet, planned.epoch.latency
    layers, highest = planned.workload.num_layers, planned.highest
    table = _table()
    table.add_column("\ndevice", overflow="fold", max_width=24)
    for name in (
        "speed\nTFLOPS",
        "\nplace",
        "up\nMbit/s",
        "down\nMbit/s",
        f"split\nof {layers}",
        "edge\n%",
        "subcar-\nriers",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("device\ns", "link\ns", "edge\ns", "total\ns", "alone\ns", "hand-\nover s"):
        table.add_column(name, justify="right", no_wrap=True)
    up, down = planned.rates_bps
    slowest_s = float(latency.slowest_s)
    for n, name in enumerate(fleet.devices):
        device, point = fleet.cell.device(name), int(planned.chosen.decision.split_points[n])
        seconds = (
            latency.device_s,
            latency.link_s,
            latency.edge_s,
            latency.each_s,
            planned.alone_s,
            planned.handover_s,
        )
        table.add_row(
            escape(name),
            f"{device.flops / 1e12:.3g}",
            _place(device),
            *(f"{rate[n] / 1e6:.3g}" for rate in (up, down)),
            f"{'at most ' if point == highest[n] < layers else ''}{point}",
            f"{100 * planned.epoch.shares[n]:.3g}",
            str(planned.epoch.subcarriers[n]),
            *(_seconds_text(value[n]) for value in seconds),
            style="bold" if latency.each_s[n] >= slowest_s * (1 - 1e-6) else None,
        )
    return table


def _notes(planned: PlannedChain) -> Iterator[str]:
    yield (
        "A typical epoch: mean speeds, channels without shadowing; blocked where a line of sight is less likely than none. "
        "Bold: as long as the slowest. Alone: with all layers on the device. Hand-over: of the layers that leave a device, which "
        "has them all when it joins."
    )
    rows = zip(planned.chosen.decision.split_points, planned.highest, strict=True)
    if any(point == highest < planned.workload.num_layers for point, highest in rows):
        yield "At most: the device has no memory for more layers."


def _seconds(planned: PlannedChain) -> Table:
    workload, chosen, latency = planned.workload, planned.chosen, planned.epoch.latency
    table = _table()
    table.add_column("\nseconds")
    for name in ("typical\niteration", "\niteration", "\nepoch", "\nround"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(name: str, typical_s: float, iteration_s: float, other_s: float = 0.0) -> None:
        epoch_s = workload.iterations_per_epoch * iteration_s
        seconds = (typical_s, iteration_s, epoch_s, workload.epochs * epoch_s + other_s)
        table.add_row(name, *(short_number(value) if value else "" for value in seconds))

    typical_s, cloud_s, handover_s = float(latency.slowest_s), latency.cloud_link_s, chosen.decision.handover_s
    row("devices, links, edge", typical_s, chosen.slowest_s)
    row("cloud link", cloud_s, cloud_s)
    row("hand-over", 0.0, 0.0, handover_s)
    row("together", typical_s + cloud_s, chosen.slowest_s + cloud_s, handover_s)
    return table


def _mechanisms(planned: PlannedChain) -> Table:
    table = _table()
    table.add_column("\nmechanism")
    for name in ("split\npoints", "iteration\ns", "round\ns", "round without\ncloud link, s", "above the\nbound, %"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in sorted((planned.chosen, *planned.others), key=planned.round_s):
        points, is_chosen = one.decision.split_points, one is planned.chosen
        low, high = int(points.min()), int(points.max())
        round_s = planned.round_s(one)
        table.add_row(
            f"{'> ' if is_chosen else '  '}{one.name}",
            f"{low}..{high}" if low < high else str(low),
            *(short_number(value) for value in (one.slowest_s, round_s, round_s - planned.cloud_s)),
            f"{100 * planned.gap(one):.3g}",
            style="bold green" if is_chosen else None,
        )
    bound_s = planned.lower_bound_s - planned.cloud_s
    table.add_row("  lower bound", "", "", *(short_number(value) for value in (planned.lower_bound_s, bound_s)), "")
    return table


def _compared_json(planned: PlannedChain, one: Compared) -> dict[str, Any]:
    iteration_s = one.slowest_s + planned.epoch.latency.cloud_link_s
    return {
        "split_points": one.decision.split_points.tolist(),
        "slowest_s": one.slowest_s,
        "iteration_s": iteration_s,
        "epoch_s": planned.workload.iterations_per_epoch * iteration_s,
        "round_s": planned.round_s(one),
        "gap": planned.gap(one),
    }


def _is_drawn(planned: PlannedChain) -> bool:
    return any(name not in planned.fleet.cell.named_flops for name in planned.fleet.devices)


def _place(device: CellDevice) -> str:
    if device.distance_m is None:
        return f"{device.gain_db:.4g} dB"
    return f"{device.distance_m:.0f} m{'' if device.los else ' blocked'}"


def _seconds_text(value: float) -> str:
    return short_number(value) if value >= 1000 else f"{value:.3g}"


def _table() -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)


def _print_whole(console: Console, table: Table) -> None:
    """Lines longer than the terminal rather than numbers that are cut off."""
    from rich.console import Console
    from rich.measure import Measurement

    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    Console(width=max(needed, console.width)).print(table)
