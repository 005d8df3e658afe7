"""The numbers behind the figures, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from flwr_splitkd.case_studies.scct.claims import Verdict
from flwr_splitkd.case_studies.scct.clock import Clock
from flwr_splitkd.case_studies.scct.latency import Convergence
from flwr_splitkd.case_studies.scct.learning import Learned

__all__ = ["claims_csv", "clocks_csv", "convergence_csv", "rounds_csv", "time_csv"]


def convergence_csv(convergences: Sequence[Convergence]) -> str:
    """Figures 6 and 7."""
    return _csv(
        ["method", "edge_tflops", "seed", "step", "iteration_s", "best_known_s", "lower_bound_s"],
        (
            [one.method, one.edge_flops / 1e12, one.seed, step, seconds, one.best_s, one.bound_s or ""]
            for one in convergences
            for step, seconds in enumerate(one.seconds)
        ),
    )


def clocks_csv(clocks: Sequence[Clock]) -> str:
    """Figure 9; seconds without the link to the cloud, which has a column of its own."""
    return _csv(
        ["edge_tflops", "devices", "seed", "algorithms", "mechanism", "iteration_s", "cloud_link_s", "handover_s"],
        (
            [
                one.edge_flops / 1e12,
                one.devices,
                one.seed,
                one.algorithms,
                one.mechanism,
                one.mean_iteration_s,
                one.cloud_link_s,
                float(one.handover_s.mean()),
            ]
            for one in clocks
        ),
    )


def rounds_csv(learned: Learned) -> str:
    """Figures 8, 10 and 11 by round; SCCT stands for SCCTT, SCCTL and SCCTS."""
    return _csv(
        ["training", "seed", "round", "heldout_loss", "f1", "exact_match"],
        (
            ["SCCT" if curve.training == "chain" else "CloudO", curve.seed, number, *values]
            for curve in (*learned.chain, *learned.cloud_only)
            for number, values in enumerate(zip(curve.heldout_loss, curve.f1, curve.exact_match, strict=True))
        ),
    )


def time_csv(learned: Learned) -> str:
    """When each round ends, on each mechanism's clock, without and with the link to the cloud."""
    return _csv(
        ["edge_tflops", "algorithms", "mechanism", "round", "modelled_s", "modelled_with_cloud_link_s"],
        (
            [clock.edge_flops / 1e12, clock.algorithms, clock.mechanism, number, without, whole]
            for clock in learned.clocks
            for number, (without, whole) in enumerate(
                zip(learned.round_ends_s(clock), learned.round_ends_s(clock, cloud_link=True), strict=True)
            )
        ),
    )


def claims_csv(verdicts: Sequence[Verdict]) -> str:
    """Every claim with its verdict."""
    return _csv(
        ["figure", "claim", "setting", "holds", "came_out"],
        ([one.figure, one.claim, one.setting, "yes" if one.holds else "no", one.came_out] for one in verdicts),
    )


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return file.getvalue()
