"""A run of the chain in words and numbers: what it is, totals, what a figure shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from flwr_splitkd.report.chain import (
    by_epoch,
    by_round,
    first_of_round,
    last_round,
    later_in_round,
    metric_name,
    metric_points,
    metric_source,
    metrics_of,
    on_timeline,
    trained,
)
from flwr_splitkd.report.chain_lines import DeviceLine
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.words import MIB, course, mebibytes, number, sentences

__all__ = ["chain_alternative", "chain_lead", "chain_totals"]


def chain_lead(run: RunData) -> str:
    """What kind of run it is."""
    if run.devices or "strategy" in run.config:
        return "Split learning along the chain device, edge, cloud: all devices at once, round by round."
    if run.epochs:
        return "A baseline of the chain, trained without devices: epochs and evaluations."
    return "A baseline of the chain that recorded evaluations alone."


def chain_totals(run: RunData) -> dict[str, str]:
    """What a run came to, by what it is; only what runs of its kind record."""
    return {"Rounds": number(last_round(run)), **_epoch_totals(run), **_metric_totals(run), **_costs(run)}


def chain_alternative(title: str, runs: Sequence[RunData]) -> str:
    """What the figure of this title shows of these runs, for who cannot see it."""
    if title in _ALTERNATIVES:
        return sentences([_ALTERNATIVES[title](run) for run in runs], runs)
    metric = next(metric for metric in metrics_of(runs) if f"{metric_source(metric)}: {metric_name(metric)}" == title)
    return sentences([_metric(run, metric) for run in runs], runs)


def _epoch_totals(run: RunData) -> dict[str, str]:
    if not run.epochs:
        return {}
    last = run.epochs[-1]
    rows = {
        "Epochs": number(len(run.epochs)),
        "Iterations": number(_iterations(run)),
        "Loss of the last epoch": number(last.loss),
    }
    if last.reference_loss is not None:
        rows["The same without the encoder"] = number(last.reference_loss)
    return rows


def _metric_totals(run: RunData) -> dict[str, str]:
    if not run.evaluations:
        return {}
    last, metrics = max(run.evaluations.items())
    return {
        f"{metric_source(metric)} after round {last}: {metric_name(metric)}": number(metrics[metric])
        for metric in metrics_of([run])
        if metric in metrics
    }


def _costs(run: RunData) -> dict[str, str]:
    rows: dict[str, str] = {}
    if run.epochs:
        seconds, iterations = sum(epoch.seconds or 0.0 for epoch in run.epochs), _iterations(run)
        rows["Time in epochs, s"] = number(round(seconds, 1))
        rows["Seconds an iteration"] = number(seconds / iterations if iterations else None)
    if run.devices:
        rows |= {
            "Devices": number(len({one.device for one in run.devices})),
            "Times a device was left out": number(sum(not one.completed for one in run.devices)),
            # Epochs know it, since a device that failed has not said what it missed.
            "Batches missed": number(sum(epoch.num_missed or 0 for epoch in run.epochs)),
            "Up, MiB": mebibytes(_sum(run, "uplink_bytes")),
            "Layers within up, MiB": mebibytes(_sum(run, "uplink_handover_bytes")),
            "Down, MiB": mebibytes(_sum(run, "downlink_bytes")),
            "Layers within down, MiB": mebibytes(_sum(run, "downlink_handover_bytes")),
            "Computed on devices, s": number(round(_sum(run, "device_s"), 1)),
            "Computed on the edge, s": number(round(_sum(run, "edge_s"), 1)),
            "Computed in the cloud, s": number(round(_sum(run, "cloud_s"), 1)),
        }
    return rows


def _iterations(run: RunData) -> int:
    return sum(epoch.num_iterations for epoch in run.epochs)


def _sum(run: RunData, name: str) -> float:
    return sum(getattr(one, name) or 0 for one in run.devices)


def _loss(run: RunData) -> str:
    text = course(by_epoch(run, attrgetter("loss")), "loss", along="iteration")
    reference = by_epoch(run, attrgetter("reference_loss"))
    return f"{text}; {course(reference, 'without the encoder', along='iteration')}" if reference else text


def _metric(run: RunData, metric: str) -> str:
    points = metric_points(run, metric)
    name = metric_name(metric)
    if not points:
        return f"no {name} was recorded"
    values = [value for _, value in points]
    (first, start), (last, end) = points[0], points[-1]
    return (
        f"{name} {number(start)} after round {number(first)} and {number(end)} after round {number(last)}, lowest "
        f"{number(min(values))}, highest {number(max(values))}"
    )


def _bytes(run: RunData) -> str:
    def in_mib(value_of: Callable[[DeviceLine], float | None]) -> list[tuple[float, float]]:
        return [(when, count / MIB) for when, count in by_round(trained(run), value_of)]

    if not run.devices:
        return "no bytes were recorded"
    up = course(in_mib(attrgetter("uplink_bytes")), "bytes up", unit=" MiB", along="round")
    down = course(in_mib(attrgetter("downlink_bytes")), "down", unit=" MiB", along="round")
    return f"{up}; {down}"


def _seconds(run: RunData) -> str:
    first, later = by_epoch(run, first_of_round), by_epoch(run, later_in_round)
    if not later:
        return course(first, "seconds an iteration", along="iteration")
    text = course(first, "seconds an iteration in the first epochs of rounds", along="iteration")
    return f"{text}; {course(later, 'in later ones', along='iteration')}"


def _split_points(run: RunData) -> str:
    shown = on_timeline(run)
    times: dict[int, int] = {}
    for one in shown:
        if one.completed and one.split_point is not None:
            times[one.split_point] = times.get(one.split_point, 0) + 1
    listed = ", ".join(f"{count} with split point {point}" for point, count in sorted(times.items()))
    devices, rounds = (len({getattr(one, name) for one in shown}) for name in ("device", "server_round"))
    left_out = sum(not one.completed for one in shown)
    text = f"{devices} devices over {rounds} rounds: {listed or 'none took part'}"
    return f"{text}; left out: {left_out}" if left_out else text


_ALTERNATIVES: dict[str, Callable[[RunData], str]] = {
    "Loss": _loss,
    "Bytes": _bytes,
    "Seconds an iteration": _seconds,
    "Split points": _split_points,
}
