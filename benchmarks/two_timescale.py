"""Time and quality of the chain's decisions, against the paper's algorithms on the same devices.

Devices of 0.3 to 20 TFLOPS, 30 to 500 m from the edge in a 3GPP street canyon with a line of sight (3.5 GHz), train an encoder of
12 layers of RoBERTa-large's size; radio, the edge's power and the cloud's link are those of Wang et al., table III. From epoch to
epoch a device's speed varies evenly by --spread on either side, and its path loss by a normal 4 dB. Devices have 4 to 32 GiB.

- Small timescale: time to divide the edge, and what Algorithm 1 and equal shares make of the same epoch, over the optimum. Split
  points are drawn evenly.
- Large timescale: time of a decision over Q draws, its gap to the lower bound, and Algorithm 2 with the same allocation (where the
  alns library is installed). The link to the cloud is left out of both, since no decision changes it. An edge that has not
  memory for these: what that costs, and the gap. Ten devices are few enough to try every set of first and last split
  points, which says how much of a gap is the bound's.

Times are the processor's, so that others on the machine count for less; everything is on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import Row, report
from rich.table import Table

from flwr_splitkd.costs import ChainResources, ChainWorkload, MemoryLimits, named_shape
from flwr_splitkd.costs.radio import los_path_loss_db
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import (
    Algorithm1,
    AlnsSettings,
    AlnsSplitPoints,
    EqualAllocation,
    allocate_resources,
    optimize_split_points,
)
from flwr_splitkd.schedulers.chain.objective import RoundObjective

EDGES = (3e12, 10e12, 31e12, 312e12)
SIZES = ((30, 200, 0.005), (1000, 2000, 0.2))
LAYERS = 12
# Aims of seconds for SIZES stand there; this is the gap's.
GAP_BOUND = 0.015
_ANTENNAS_DB = 25.0  # 5 dBi and 20 dBi


def main() -> None:
    """Measure, print the tables, write the JSON."""
    arguments = _arguments()
    work = workload()
    rows, notes = [], []
    for devices, carriers, bound in SIZES:
        row = _time_row(work, devices, carriers, arguments)
        rows.append(row)
        notes.append(f"{row.name}: {row.value:.2f} ms, aim {1000 * bound:g} ms: {_verdict(row.value, 1000 * bound)}")
    small, of_small = _small_table(work, arguments)
    large, of_large = _large_table(work, arguments)
    rows += of_small + of_large + _memory_rows(work, arguments) + _ends_rows(work, arguments)
    for row in of_large:
        if "gap" in row.name:
            notes.append(f"{row.name}: {row.value:.2f} %, aim 1.5 %: {_verdict(row.value, 100 * GAP_BOUND)}")
    report("two_timescale", rows, tables=(small, large), notes=notes, json_path=arguments.json)


def workload() -> ChainWorkload:
    """Batches of 8 samples of 384 positions, float32."""
    shape = named_shape("roberta-large")
    flops, kept = ("block_flops_per_token", "block_flops_per_pair"), ("block_kept_per_token", "block_kept_per_pair")
    arrays = ("block_parameters", *flops, *kept)
    shape = replace(shape, **{name: getattr(shape, name)[:LAYERS] for name in arrays})
    return ChainWorkload.from_shape(shape, batch_size=8, positions=384, iterations_per_epoch=60, epochs=60)


def fleet(
    rng: np.random.Generator, devices: int, carriers: int, edge_flops: float, *, draws: int = 1, spread: float = 0.2
) -> ChainResources:
    """Table III's radio; draws of the same devices."""
    speeds, distances = 10 ** rng.uniform(11.5, 13.3, devices), rng.uniform(30, 500, devices)
    loss_db = los_path_loss_db(distances, carrier_frequency_hz=3.5e9) + rng.normal(0, 4, (draws, devices))
    return ChainResources(
        device_flops=speeds * rng.uniform(1 - spread, 1 + spread, (draws, devices)),
        channel_gain=10 ** ((_ANTENNAS_DB - loss_db) / 10),
        device_power_w=0.2,  # 23 dBm
        edge_power_w=100.0,  # 50 dBm
        noise_w_per_hz=10**-20.4,  # -174 dBm/Hz
        edge_flops=edge_flops,
        num_subcarriers=carriers,
        subcarrier_hz=2e6,
        cloud_bps=1e9,
    )


def memory(rng: np.random.Generator, devices: int) -> MemoryLimits:
    """Jetsons of 4 to 32 GiB, and table III's 6 TB."""
    return MemoryLimits(device_bytes=rng.choice([4, 8, 16, 32], devices) * 2.0**30, edge_bytes=6e12)


def _time_row(work: ChainWorkload, devices: int, carriers: int, arguments: argparse.Namespace) -> Row:
    """Over all edges, so that none is picked."""
    rng = np.random.default_rng(arguments.seed)
    times = []
    for index in range(4 * arguments.repeats):
        resources = fleet(rng, devices, carriers, EDGES[index % 4], spread=arguments.spread).draw(0)
        points = rng.integers(1, LAYERS + 1, devices)
        times.append(1000 * _seconds(lambda r=resources, p=points: allocate_resources(work, r, p))[0])
    name = f"exact allocation, {devices:,} devices, {carriers:,} subcarriers"
    return _row(name, times, "ms")


def _small_table(work: ChainWorkload, arguments: argparse.Namespace) -> tuple[Table, list[Row]]:
    table = Table(
        title=f"30 devices, 200 subcarriers: seconds of an iteration over the optimum's, n = {arguments.repeats}"
    )
    for column in ("edge", "Algorithm 1", "largest", "equal shares", "largest", "Algorithm 1's time"):
        table.add_column(column, justify="right")
    rows = []
    for edge in EDGES:
        rng = np.random.default_rng(arguments.seed)
        ratios: dict[str, list[float]] = {"Algorithm 1": [], "equal shares": []}
        seconds = []
        for _ in range(arguments.repeats):
            resources = fleet(rng, 30, 200, edge, spread=arguments.spread).draw(0)
            points = rng.integers(1, LAYERS + 1, 30)
            best = float(allocate_resources(work, resources, points).latency.slowest_s)
            for name, policy in (("Algorithm 1", Algorithm1()), ("equal shares", EqualAllocation())):
                took, allocation = _seconds(lambda p=policy, r=resources, s=points: p.allocate(work, r, s))
                ratios[name].append(float(allocation.latency.slowest_s) / best)
                if name == "Algorithm 1":
                    seconds.append(took)
        cells = [f"{statistic(values):.3f}" for values in ratios.values() for statistic in (np.mean, np.max)]
        table.add_row(f"{edge / 1e12:g} TFLOPS", *cells, f"{1000 * np.median(seconds):.1f} ms")
        rows += [_row(f"{name} over exact, {edge / 1e12:g} TFLOPS", values, "x") for name, values in ratios.items()]
    return table, rows


def _large_table(work: ChainWorkload, arguments: argparse.Namespace) -> tuple[Table, list[Row]]:
    table = Table(
        title=f"30 devices, {arguments.draws} draws: a decision on split points, n = {arguments.fleets}, without the cloud's link"
    )
    for column in ("edge", "spread", "seconds", "gap to the bound", "largest", "Algorithm 2 over it", "its seconds"):
        table.add_column(column, justify="right")
    rows = []
    for spread in arguments.spreads:
        for edge in EDGES:
            gaps, times, ratios, alns_times = [], [], [], []
            for index in range(arguments.fleets):
                rng = np.random.default_rng([arguments.seed, index])
                draws = fleet(rng, 30, 200, edge, draws=arguments.draws, spread=spread)
                limits = memory(rng, 30)
                took, ours = _seconds(lambda d=draws, m=limits: optimize_split_points(work, d, limits=m))
                times.append(took)
                gaps.append(100 * ours.gap)
                if index < arguments.alns and (policy := _algorithm_2(arguments)) is not None:
                    took, theirs = _seconds(lambda p=policy, d=draws, m=limits: p.choose(work, d, m))
                    alns_times.append(took)
                    ratios.append((theirs.objective_s - theirs.cloud_link_s) / (ours.objective_s - ours.cloud_link_s))
            table.add_row(
                f"{edge / 1e12:g} TFLOPS",
                f"{spread:.0%}",
                f"{np.median(times):.2f} s",
                f"{np.median(gaps):.2f} %",
                f"{np.max(gaps):.2f} %",
                f"{np.mean(ratios):.3f}" if ratios else "",
                f"{np.median(alns_times):.1f} s" if ratios else "",
            )
            name = f"{edge / 1e12:g} TFLOPS, {spread:.0%}"
            rows.append(_row(f"split points, gap to the bound, {name}", gaps, "%"))
            rows.append(_row(f"split points, {name}", times, "s"))
            if ratios:
                rows.append(_row(f"Algorithm 2 over ours, {name}", ratios, "x"))
    return table, rows


def _memory_rows(work: ChainWorkload, arguments: argparse.Namespace) -> list[Row]:
    """An edge with memory for the least that it must hold, and a share of what the best split points would take beyond that."""
    rows = []
    for edge, spread in itertools.product(EDGES[1::2], arguments.spreads[1:]):
        gaps, over = [], []
        for index in range(arguments.fleets):
            rng = np.random.default_rng([arguments.seed, index])
            draws = fleet(rng, 30, 200, edge, draws=20, spread=spread)
            limits = memory(rng, 30)
            free = optimize_split_points(work, draws, limits=limits, bound=False)
            ends = RoundObjective(work, draws, limits=limits).highest, free.split_points
            least, wanted = (float(work.edge_memory_bytes[points - 1].sum()) for points in ends)
            room = least + arguments.edge_memory * (wanted - least)
            tight = optimize_split_points(work, draws, limits=replace(limits, edge_bytes=room))
            gaps.append(100 * tight.gap)
            over.append((tight.objective_s - tight.cloud_link_s) / (free.objective_s - free.cloud_link_s))
        name = f"{arguments.edge_memory:g} of the edge's memory, {edge / 1e12:g} TFLOPS, {spread:.0%}"
        rows += [_row(f"gap to the bound, {name}", gaps, "%"), _row(f"over all of the memory, {name}", over, "x")]
    return rows


def _ends_rows(work: ChainWorkload, arguments: argparse.Namespace) -> list[Row]:
    """Ten devices, the edge a third as fast: split points against the best of all 1,024 sets of first and last ones."""
    ends = np.array(list(itertools.product((1, LAYERS), repeat=10)))
    rows = []
    for edge in EDGES[: -1 if arguments.ends else 0]:
        over, gaps = [], []
        for index in range(arguments.ends):
            draws = fleet(np.random.default_rng([arguments.seed, index]), 10, 66, edge / 3, draws=20, spread=0.5)
            best = RoundObjective(work, draws).evaluate(ends)[0].min()
            ours = optimize_split_points(work, draws)
            over.append(100 * ((ours.objective_s - ours.cloud_link_s) / (best - ours.cloud_link_s) - 1))
            gaps.append(100 * ours.gap)
        name = f"10 devices, {edge / 3e12:.3g} TFLOPS, 50%"
        rows += [
            _row(f"over the best of all ends, {name}", over, "%"),
            _row(f"over the bound, {name}", gaps, "%"),
        ]
    return rows


def _algorithm_2(arguments: argparse.Namespace) -> AlnsSplitPoints | None:
    try:
        return AlnsSplitPoints(np.random.default_rng(arguments.seed), AlnsSettings(cooling=arguments.cooling))
    except ConfigError:  # the library is not installed
        return None


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _row(name: str, values: list[float], unit: str) -> Row:
    low, median, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return Row(name=name, value=median, unit=unit, spread=high - low, n=len(values))


def _verdict(value: float, bound: float) -> str:
    return "met" if value <= bound else "missed"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--seed", type=int, default=0, help="of the fleets (0)")
    parser.add_argument("--repeats", type=int, default=25, help="epochs for each edge (25)")
    parser.add_argument(
        "--spread", type=float, default=0.2, help="a device's speed from epoch to epoch, small timescale (0.2)"
    )
    parser.add_argument(
        "--spreads", type=float, nargs="+", default=[0.1, 0.2, 0.5], help="the same, large timescale (0.1 0.2 0.5)"
    )
    parser.add_argument("--draws", type=int, default=50, help="Q (50)")
    parser.add_argument("--fleets", type=int, default=3, help="fleets for each edge and spread, large timescale (3)")
    parser.add_argument("--alns", type=int, default=1, help="of them with Algorithm 2 as well (1)")
    parser.add_argument(
        "--cooling", type=float, default=0.98, help="of Algorithm 2: 0.98 are 228 steps, 0.99 are 459 (0.98)"
    )
    parser.add_argument(
        "--edge-memory", type=float, default=0.5, help="share of the memory that is wanted beyond the least (0.5)"
    )
    parser.add_argument("--ends", type=int, default=3, help="fleets of ten devices where all ends are tried (3)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
