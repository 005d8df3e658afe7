"""How one decision of the chain's two timescales grows: 10^2 to 10^4 devices over 1, 10 and 100 edges.

Devices are spread evenly over the edges; each edge decides for its own, with compute and subcarriers in proportion (table III of
Wang et al. for 30 devices, an edge of 10 TFLOPS, so that split points differ). A round's split points are chosen over Q draws, an
epoch's shares and subcarriers on one. Seconds are the processor's, one thread, of all edges one after another; with a process for
each edge they are those of one edge. Edges are alike in size, so that the first --edges-timed of them are timed and stand for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from _report import Row, report
from rich.table import Table

from flwr_splitkd.case_studies.scct.settings import workload
from flwr_splitkd.costs import ModelledCell
from flwr_splitkd.schedulers.chain import allocate_resources, optimize_split_points

T = TypeVar("T")
DEVICES, EDGES = (100, 1_000, 10_000), (1, 10, 100)
EDGE_FLOPS_PER_30, SUBCARRIERS_PER_30 = 10e12, 200


def main() -> None:
    """Decide for every fleet that is not too large, print the table, write the JSON."""
    arguments = _arguments()
    rows: list[Row] = []
    table = Table(
        title="Processor seconds of one decision, of all edges; gap to the lower bound without the cloud's link"
    )
    for column in ("devices", "edges", "on an edge", "split points, s", "of one edge, s", "gap, %", "shares, ms"):
        table.add_column(column, justify="right")
    for devices in DEVICES:
        for edges in EDGES:
            each = devices // edges
            if each > arguments.most:
                table.add_row(f"{devices:,}", str(edges), f"{each:,}", "not run", "", "", "")
                continue
            large_s, small_s, gaps = _decide(each, min(edges, arguments.edges_timed), arguments.draws)
            one_s, one_small_s = statistics.median(large_s), statistics.median(small_s)
            table.add_row(
                f"{devices:,}",
                str(edges),
                f"{each:,}",
                f"{edges * one_s:.3g}",
                f"{one_s:.3g}",
                f"{100 * statistics.median(gaps):.2g}",
                f"{1e3 * edges * one_small_s:.3g}",
            )
            where = f"{devices:,} devices over {edges} edges"
            rows.append(Row(name=f"split points, {where}", value=edges * one_s, unit="s", n=len(large_s)))
            rows.append(Row(name=f"shares, {where}", value=1e3 * edges * one_small_s, unit="ms", n=len(small_s)))
    report(
        "chain_scale",
        rows,
        tables=(table,),
        notes=[
            f"Q = {arguments.draws} draws; not run: more than {arguments.most:,} devices on one edge (--most). With 128 and fewer "
            "devices on an edge every k is tried, of more to 1/2000 of them; with 256 and fewer single devices change afterwards.",
        ],
        json_path=arguments.json,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--draws", type=int, default=10, help="Q (10)")
    parser.add_argument("--most", type=int, default=10_000, help="devices on one edge that are still timed (10000)")
    parser.add_argument("--edges-timed", type=int, default=5, help="edges that are timed, at most (5)")
    arguments = parser.parse_args()
    if min(arguments.draws, arguments.most, arguments.edges_timed) < 1:
        parser.error("--draws, --most and --edges-timed are at least 1")
    return arguments


def _decide(devices: int, edges: int, draws: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of both decisions on each edge, and the gaps."""
    large_s, small_s, gaps = [], [], []
    work, names = workload(), [str(number) for number in range(devices)]
    for seed in range(edges):
        cell = ModelledCell(
            edge_flops=EDGE_FLOPS_PER_30 * devices / 30,
            num_subcarriers=max(SUBCARRIERS_PER_30 * devices // 30, 1),
            seed=seed,
        )
        drawn, now = cell.draws(names, draws), cell.resources(names, server_round=2, epoch=1)
        decision, seconds = _timed(lambda drawn=drawn: optimize_split_points(work, drawn))
        large_s.append(seconds)
        gaps.append(decision.gap)
        points = decision.split_points
        _, seconds = _timed(lambda now=now, points=points: allocate_resources(work, now, points))
        small_s.append(seconds)
    return large_s, small_s, gaps


def _timed(decide: Callable[[], T]) -> tuple[T, float]:
    began_s = time.process_time()
    decision = decide()
    return decision, time.process_time() - began_s


if __name__ == "__main__":
    main()
