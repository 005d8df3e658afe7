"""The study of SCCT: its clocks against the planner's own formulas, its verdicts against what they are made of."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip("alns")

from flwr_splitkd.case_studies.scct import tables
from flwr_splitkd.case_studies.scct.claims import latency_verdicts, learning_verdicts, mean_s
from flwr_splitkd.case_studies.scct.clock import BEST_FIXED, Clock, best_fixed_split_point, run_clock
from flwr_splitkd.case_studies.scct.latency import Convergence, algorithm1_steps, algorithm2_steps, latencies
from flwr_splitkd.case_studies.scct.learning import Learned, lay_over_clocks
from flwr_splitkd.case_studies.scct.settings import LIMITS, Scale, cell, workload
from flwr_splitkd.costs import chain_latency
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import AlnsSettings, allocate_resources, optimize_split_points
from flwr_splitkd.small_chain.curve import Curve, Training

EDGE = 10e12
SCALE = Scale(
    devices=(2, 4),
    edges=(EDGE,),
    rounds=2,
    epochs=3,
    draws=2,
    cells=2,
    passes=4,
    search=AlnsSettings(cooling=0.6),
    long_search=AlnsSettings(cooling=0.7),
)


@cache
def clocks() -> tuple[Clock, ...]:
    return tuple(latencies(SCALE, seed=0))


@cache
def learned() -> Learned:
    def curve(training: Training, seed: int, end: float) -> Curve:
        rising = tuple(end * share for share in (0.0, 0.6, 1.0))
        loss = tuple(5 - value / 20 for value in rising)
        return Curve(training=training, seed=seed, loss=(4.0,) * 6, heldout_loss=loss, f1=rising, exact_match=rising)

    return lay_over_clocks(
        [curve("chain", seed, 20 + seed) for seed in (0, 1)],
        [curve("cloud-only", seed, 5) for seed in (0, 1)],
        scale=SCALE,
        devices=3,
        rounds=2,
        epochs=3,
        iterations=7,
        seed=0,
    )


def test_the_workload_is_table_iii() -> None:
    work = workload()
    assert (work.num_layers, work.iterations_per_epoch, work.epochs) == (12, 60, 60)
    resources = cell().resources(["0"], server_round=1, epoch=1)
    assert resources.edge_flops == 312e12 and resources.num_subcarriers == 200 and resources.subcarrier_hz == 2e6
    assert resources.cloud_bps == 1e9 and LIMITS.edge_bytes == 6e12
    assert resources.edge_power_w == pytest.approx(100) and resources.device_power_w == pytest.approx(0.19953, rel=1e-4)


def test_a_clock_is_what_its_decisions_take() -> None:
    """SCCTS worked out by hand: the same split point, the exact allocation of each epoch."""
    clock = run_clock("SCCTS", "exact", devices=4, edge_flops=EDGE, scale=SCALE, seed=3)
    names, points = ["0", "1", "2", "3"], np.full(4, SCALE.split_point)
    work = workload()
    for server_round in (1, 2):
        for epoch in (1, 2, 3):
            resources = cell(EDGE, seed=3).resources(names, server_round=server_round, epoch=epoch)
            best = allocate_resources(work, resources, points)
            latency = chain_latency(
                work, resources, split_points=points, subcarriers=best.subcarriers, shares=best.shares
            )
            assert clock.iteration_s[server_round - 1, epoch - 1] == pytest.approx(float(latency.slowest_s))
    assert clock.cloud_link_s == pytest.approx(latency.cloud_link_s)
    assert clock.handover_s[0] > 0 and clock.handover_s[1] == 0
    ends = clock.ends_s(5, cloud_link=False)
    assert ends[-1] == pytest.approx(5 * clock.iteration_s.sum() + clock.handover_s.sum()) and (np.diff(ends) > 0).all()
    assert clock.ends_s(5)[-1] == pytest.approx(ends[-1] + 30 * clock.cloud_link_s)


@pytest.mark.slow
def test_figure_9_has_every_case_and_repeats() -> None:
    assert len(clocks()) == 1 * 2 * 2 * (3 + 4)
    few = replace(SCALE, devices=(2,), cells=1)
    for again in latencies(few, seed=0):
        (before,) = (
            one
            for one in clocks()
            if (one.mechanism, one.algorithms, one.devices, one.seed)
            == (again.mechanism, again.algorithms, 2, again.seed)
        )
        assert np.array_equal(again.iteration_s, before.iteration_s)
    for devices in SCALE.devices:
        exact = {n: mean_s(clocks(), n, "exact", devices, EDGE)[0] for n in ("SCCTT", "SCCTL", "SCCTS", BEST_FIXED)}
        assert exact["SCCTT"] <= min(exact.values()) * 1.05
        assert exact[BEST_FIXED] <= exact["SCCTS"]


def test_the_best_fixed_split_point_is_the_best() -> None:
    best = best_fixed_split_point(devices=4, edge_flops=EDGE, scale=SCALE, seed=0)
    for point in (1, 5, 12):
        other = run_clock("SCCTS", "exact", devices=4, edge_flops=EDGE, scale=SCALE, seed=0, split_point=point)
        assert best.mean_iteration_s <= other.mean_iteration_s
    assert best.mechanism == BEST_FIXED


def test_steps_of_both_algorithms() -> None:
    (first,) = algorithm1_steps(SCALE, seed=0)
    assert len(first.seconds) == SCALE.passes and first.over_best > -1e-9
    (second,) = algorithm2_steps(SCALE, seed=0)
    assert len(second.seconds) == SCALE.long_search.steps + 1
    draws = cell(EDGE, seed=0).draws([str(n) for n in range(4)], SCALE.draws)
    ours = optimize_split_points(workload(), draws, limits=LIMITS)
    per_iteration = (ours.objective_s - ours.cloud_link_s) / (60 * 60)
    assert second.best_s == pytest.approx(per_iteration) and 0 < second.bound_s <= second.best_s


def test_convergence_is_counted_on_what_would_be_returned() -> None:
    one = Convergence(
        method="Algorithm 2", edge_flops=1e12, seed=0, seconds=np.array([4.0, 5.0, 3.0, 3.5, 2.999]), best_s=2.0
    )
    assert one.ups == 2 and one.steps_to() == 2 and one.over_best == pytest.approx(0.4995)
    assert one.best_so_far_s.tolist() == [4, 4, 3, 3, 2.999]


@pytest.mark.parametrize(
    ("seconds", "holds"),
    [(np.r_[np.linspace(2, 1, 60), np.ones(40)], True), (np.linspace(2, 1, 100), False), ([1.0, 1.1, 1.0], False)],
)
def test_algorithm_1_is_held_to_seventy_steps_without_a_rise(seconds: list[float], holds: bool) -> None:
    one = Convergence(method="Algorithm 1", edge_flops=1e12, seed=0, seconds=np.array(seconds), best_s=0.9)
    (verdict,) = latency_verdicts([one], [])
    assert verdict.holds is holds and "above the optimum" in verdict.came_out


@pytest.mark.slow
def test_verdicts_on_latency_follow_the_clocks() -> None:
    verdicts = latency_verdicts([], clocks())
    assert len(verdicts) == (1 + 3) + (1 + 2)
    by_claim = {(one.claim, one.setting): one for one in verdicts}
    setting = "edge of 10 TFLOPS, exact algorithms"
    ours, fixed = (mean_s(clocks(), name, "exact", 4, EDGE)[0] for name in ("SCCTT", "SCCTS"))
    found = by_claim["SCCTT takes less than SCCTS", setting]
    assert f"{100 * (1 - ours / fixed):.1f} %" in found.came_out
    slower = [replace(one, iteration_s=one.iteration_s * (100 if one.mechanism == "SCCTT" else 1)) for one in clocks()]
    turned = {(one.claim, one.setting): one for one in latency_verdicts([], slower)}
    assert not turned["SCCTT takes less than SCCTS", setting].holds
    shrinking = [replace(one, iteration_s=one.iteration_s / one.devices**4) for one in clocks()]
    assert not any(one.holds for one in latency_verdicts([], shrinking) if "grows" in one.claim)


@pytest.mark.slow
def test_equal_time_counts_finished_rounds() -> None:
    given = learned()
    clock = next(one for one in given.clocks if (one.mechanism, one.algorithms) == ("SCCTT", "exact"))
    due = given.round_ends_s(clock)
    assert len(due) == 3 and due[0] == 0
    assert given.reached_by(clock, due[1], lambda curve: curve.f1) == pytest.approx(0.6 * 20.5)
    assert given.reached_by(clock, due[1] * 0.99, lambda curve: curve.f1) == 0
    assert given.reached_by(clock, 1e9, lambda curve: curve.f1) == pytest.approx(20.5)


@pytest.mark.slow
def test_verdicts_on_learning() -> None:
    verdicts = learning_verdicts(learned())
    assert [one.holds for one in verdicts[:4]] == [True, True, True, False]
    worse = replace(learned(), cloud_only=learned().chain)
    assert not any(one.holds for one in learning_verdicts(worse)[:3])


@pytest.mark.slow
def test_tables() -> None:
    def rows(text: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(text)))

    assert len(rows(tables.clocks_csv(clocks()))) == len(clocks())
    time = rows(tables.time_csv(learned()))
    assert len(time) == 6 * 3
    assert all(float(row["modelled_s"]) <= float(row["modelled_with_cloud_link_s"]) for row in time)
    assert {row["training"] for row in rows(tables.rounds_csv(learned()))} == {"SCCT", "CloudO"}
    claims = rows(tables.claims_csv(learning_verdicts(learned())))
    assert {row["holds"] for row in claims} <= {"yes", "no"}
    steps = rows(tables.convergence_csv(algorithm1_steps(SCALE, seed=0)))
    assert [int(row["step"]) for row in steps] == list(range(SCALE.passes))


def test_scales_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="`draws` is 0"):
        Scale(draws=0)
    with pytest.raises(ConfigError, match="`split_point` is 13"):
        Scale(split_point=13)
    with pytest.raises(ConfigError, match="at least one of each"):
        Scale(edges=())
