"""What `flwr-splitkd plan` shows: tables, JSON, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flwr_splitkd.costs import (
    DeviceProfile,
    Link,
    LinkState,
    ModelShape,
    RadioLink,
    ServerProfile,
    TurnCost,
    Workload,
    turn_cost,
)
from flwr_splitkd.errors import StoreError
from flwr_splitkd.schedulers import Decision, Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Planned",
    "draw_plan",
    "finite_json",
    "plan_json",
    "print_devices",
    "print_options",
    "save_figure",
    "short_number",
]

_GIB = float(1 << 30)
_STAGES = ("device_s", "uplink_s", "server_s", "downlink_s", "other_s")
_COLORS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#999999")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A device's turn with every option.

    Parameters
    ----------
    name
        The device's.
    device, server, link
        Who takes part, and the rates at the beginning.
    radio
        The link itself.
    options
        All of them.
    decision
        The best; None if none is feasible.
    infeasible
        Then why, and what would help.
    """

    name: str
    device: DeviceProfile
    server: ServerProfile
    link: LinkState
    radio: Link
    options: Options
    decision: Decision | None
    infeasible: str

    @property
    def chosen(self) -> int | None:
        """Position of the best option."""
        return None if self.decision is None else self.options.terms.index(self.decision.cut, self.decision.codec)

    def cost(self, option: int) -> TurnCost:
        """What an option takes at its clock."""
        return turn_cost(
            self.options.terms,
            option,
            frequency_hz=float(self.options.frequency_hz[option]),
            device=self.device,
            server=self.server,
            link=self.link,
        )


def print_options(planned: Planned, models: tuple[ModelShape, ModelShape | None], workload: Workload) -> None:
    """Print a table of all options of a device, and the choice in a line."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    options = planned.options
    terms = options.terms
    several = len(set(terms.codecs)) > 1
    columns = ["cut", *(["codec"] if several else []), "device\ns", "up\ns", "server\ns", "down\ns", "total\ns"]
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in (*columns, "\njoules", "clock\nGHz", "device\nGiB", "server\nGiB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("clock set, or\nruled out by", min_width=13)
    for k in range(len(terms)):
        cost = planned.cost(k)
        seconds = (cost.device_s, cost.uplink_s, cost.server_s, cost.downlink_s, cost.total_s, float(options.joules[k]))
        memory = (terms.device_memory_bytes[k] / _GIB, terms.server_memory_bytes[k] / _GIB)
        is_best = k == planned.chosen
        table.add_row(
            f"{'> ' if is_best else ''}{terms.cuts[k]}",
            *([terms.codecs[k]] if several else []),
            *(short_number(value) for value in seconds),
            f"{options.frequency_hz[k] / 1e9:.2f}",
            *(f"{value:.1f}" for value in memory),
            _why(options, k),
            style="bold green" if is_best else "dim" if options.violations[k] else None,
        )
    console = Console()
    console.print(_heading(planned, models, workload), highlight=False)
    console.print(f"{planned.name}: {_rates(planned)}.", highlight=False, soft_wrap=True)
    console.print(table)
    if planned.decision is not None:
        console.print(f"> {planned.decision.reason}.\n", highlight=False, soft_wrap=True)


def print_devices(planned: Sequence[Planned], models: tuple[ModelShape, ModelShape | None], workload: Workload) -> None:
    """Print a line for each device of a fleet."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("\ndevice", overflow="fold")
    for name in ("up\nMbit/s", "down\nMbit/s", "\ncut", "\ncodec", "clock\nGHz", "total\ns", "\njoules", "device\nJ"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("clock\nset by", no_wrap=True)
    for one in planned:
        rates = [f"{rate / 1e6:.4g}" for rate in (one.link.uplink_bps, one.link.downlink_bps)]
        who = one.name if one.name == one.device.name else f"{one.name}: {one.device.name}"
        if one.decision is None:
            table.add_row(who, *rates, *["-"] * 6, "not feasible", style="dim")
            continue
        found, cost = one.decision, one.decision.cost
        energy = (short_number(value) for value in (cost.total_s, cost.total_j, cost.device_j))
        table.add_row(
            who, *rates, str(found.cut), found.codec, f"{found.frequency_hz / 1e9:.2f}", *energy, found.binding
        )
    console = Console()
    console.print(_heading(planned[0], models, workload), highlight=False)
    console.print(table)
    able = [one.decision for one in planned if one.decision is not None]
    total_s, total_j = sum(one.cost.total_s for one in able), sum(one.cost.total_j for one in able)
    console.print(
        f"A round of {len(able)} turns one after another: {short_number(total_s)} s, {short_number(total_j)} J.",
        highlight=False,
    )


def plan_json(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """Everything that the tables show, and more; null for what takes for ever."""
    return [finite_json(_device_json(one)) for one in planned]


def _device_json(planned: Planned) -> dict[str, Any]:
    options, decision = planned.options, planned.decision
    terms = options.terms
    choice = None
    if decision is not None:
        choice = {
            "cut": decision.cut,
            "codec": decision.codec,
            "frequency_hz": decision.frequency_hz,
            "binding": decision.binding,
            "reason": decision.reason,
        }
    return {
        "device": planned.name,
        "profile": planned.device.name,
        "server": planned.server.name,
        "uplink_bps": planned.link.uplink_bps,
        "downlink_bps": planned.link.downlink_bps,
        "decision": choice,
        "infeasible": planned.infeasible,
        "options": [
            {
                "cut": int(terms.cuts[k]),
                "codec": terms.codecs[k],
                "frequency_hz": float(options.frequency_hz[k]),
                "binding": options.binding[k],
                "violations": options.violations[k],
                "total_s": float(options.seconds[k]),
                "total_j": float(options.joules[k]),
                "device_memory_bytes": float(terms.device_memory_bytes[k]),
                "server_memory_bytes": float(terms.server_memory_bytes[k]),
                **asdict(planned.cost(k)),
            }
            for k in range(len(terms))
        ],
    }


def draw_plan(planned: Sequence[Planned]) -> Figure:
    """Seconds by stage of every option as bars, joules as a line; a panel for each device, the choice marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6 * len(planned)), layout="constrained")
    for axes, one in zip(figure.subplots(len(planned), 1, squeeze=False).flat, planned, strict=True):
        options = one.options
        terms, several = options.terms, len(set(options.terms.codecs)) > 1
        places, below = np.arange(len(terms)), np.zeros(len(terms))
        costs = [one.cost(k) for k in range(len(terms))]
        for stage, color in zip(_STAGES, _COLORS, strict=True):
            seconds = np.array([getattr(cost, stage) for cost in costs])
            seconds = np.where(np.isfinite(seconds), seconds, 0.0)
            if seconds.any():
                label = {"uplink_s": "uplink", "downlink_s": "downlink"}.get(stage, stage[:-2])
                bars = axes.bar(places, seconds, bottom=below, color=color, label=label)
                for bar, broken in zip(bars, options.violations, strict=True):
                    bar.set_alpha(0.35 if broken else 1.0)
            below += seconds
        joules = axes.twinx()
        for codec in dict.fromkeys(terms.codecs):
            same = [k for k in range(len(terms)) if terms.codecs[k] == codec]
            joules.plot(same, options.joules[same], "k.-", linewidth=1, label="joules" if 0 in same else "_")
        joules.set_ylim(bottom=0)
        joules.set_ylabel("joules")
        if one.chosen is not None:
            joules.plot(one.chosen, options.joules[one.chosen], "o", color="black", markersize=11, fillstyle="none")
        names = zip(terms.cuts, terms.codecs, strict=True)
        axes.set_xticks(places, [f"{cut}\n{codec}" if several else str(cut) for cut, codec in names])
        axes.set_title(one.name.replace("$", r"\$"), fontsize=10)
        axes.set_xlabel("cut (pale: ruled out; ring: chosen)")
        axes.set_ylabel("seconds of a turn")
        axes.spines["top"].set_visible(False)
        handles = [*axes.get_legend_handles_labels()[0], *joules.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.1, 1))
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture where `--plot` says.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # no such folder; no format that matplotlib writes
        raise StoreError(f"`--plot` is {path}, which cannot be written: {error}.") from error


def _heading(planned: Planned, models: tuple[ModelShape, ModelShape | None], workload: Workload) -> str:
    (student, teacher), parts = models, workload.num_microbatches
    taught = f" taught by {teacher.name} ({teacher.num_blocks} blocks)" if teacher else ""
    return (
        f"{student.name} ({student.num_blocks} blocks){taught}, server {planned.server.name}.\n"
        f"A turn: {workload.num_steps} batches of {workload.batch_size} x {workload.sequence_length} tokens"
        f"{f' in {parts} micro-batches' if parts > 1 else ''}; {workload.moments or 'no'} moments."
    )


def _rates(planned: Planned) -> str:
    text = f"{planned.link.uplink_bps / 1e6:.4g} Mbit/s up, {planned.link.downlink_bps / 1e6:.4g} down"
    if isinstance(planned.radio, RadioLink) and (state := planned.radio.state) is not None:
        sight = "line of sight" if state.los else "no line of sight"
        text += f" ({state.distance_m:.0f} m, {sight}, {state.uplink_snr_db:.1f} dB)"
    return text


def _why(options: Options, option: int) -> str:
    """What rules an option out, else what sets its clock."""
    names = {"max_delay_s": "delay"}
    return ", ".join(names.get(name, name) for name in options.violations[option]) or options.binding[option]


def short_number(value: float) -> str:
    """Four digits, or thousands with commas; a dash for what takes for ever."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def finite_json(value: Any) -> Any:
    """Return the same with None for what is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
