"""Algorithm 2, by the alns library where it is installed."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

from chain_fleets import chain_resources, chain_workload
from flwr_splitkd.costs import MemoryLimits
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import (
    Algorithm1,
    AlnsSettings,
    AlnsSplitPoints,
    SplitPointPolicy,
    optimize_split_points,
)

SHORT = AlnsSettings(cooling=0.95)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alns", None)
    with pytest.raises(
        ConfigError, match=re.escape("Run `pip install 'flwr_splitkd[alns]'`, or use `OptimalSplitPoints`")
    ):
        AlnsSplitPoints(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_temperature": 0.0}, "`end_temperature` is 0.0; expected a finite number of more than 0"),
        ({"start_temperature": 1e-5}, "`start_temperature` is 1e-05; expected a finite number of more than 0.0005"),
        ({"cooling": 1.0}, "`cooling` is 1.0; expected"),
        ({"reaction": 1.5}, "`reaction` is 1.5; expected a finite number of at least 0 and at most 1"),
        ({"scores": (4.0, 4.0, 2.0, 1.0)}, "`scores` is (4.0, 4.0, 2.0, 1.0); expected four falling numbers"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        AlnsSettings(**changes)


def test_steps_until_it_is_cold() -> None:
    settings = AlnsSettings(start_temperature=1.0, end_temperature=0.1, cooling=0.5)
    assert settings.steps == 4  # 0.5, 0.25, 0.125, 0.0625


def test_finds_what_is_best_on_a_small_fleet() -> None:
    pytest.importorskip("alns")
    draws, work = chain_resources(np.random.default_rng(1), 3, 9, num_draws=2), chain_workload(6)
    policy = AlnsSplitPoints(np.random.default_rng(0))
    assert isinstance(policy, SplitPointPolicy)
    decision = policy.choose(work, draws, MemoryLimits())
    best = optimize_split_points(work, draws)
    assert decision.objective_s == pytest.approx(best.objective_s, rel=0.02)
    assert decision.lower_bound_s == pytest.approx(best.lower_bound_s, rel=1e-3)
    assert decision.evaluations == AlnsSettings().steps + 1
    assert len(decision.history_s) == decision.evaluations
    assert decision.objective_s == pytest.approx(min(decision.history_s))
    assert decision.history_s[0] > decision.objective_s


@pytest.mark.parametrize("reaction", [0.0, 0.2])
def test_is_repeated_by_its_generator_and_keeps_to_memory(reaction: float) -> None:
    pytest.importorskip("alns")
    draws, work = chain_resources(np.random.default_rng(2), 6, 18, num_draws=2), chain_workload(6)
    limits = MemoryLimits(device_bytes=1e8 * np.array([1, 2, 3, 6, 6, 6]), edge_bytes=15e8)
    settings = AlnsSettings(cooling=0.95, reaction=reaction)
    first, second = (AlnsSplitPoints(np.random.default_rng(5), settings).choose(work, draws, limits) for _ in range(2))
    assert first.split_points.tolist() == second.split_points.tolist()
    assert first.history_s == second.history_s
    assert work.edge_memory_bytes[first.split_points - 1].sum() <= 15e8
    assert (first.split_points <= [1, 2, 3, 6, 6, 6]).all()
    assert first.objective_s >= first.lower_bound_s


def test_with_the_papers_algorithm_1() -> None:
    pytest.importorskip("alns")
    draws, work = chain_resources(np.random.default_rng(3), 4, 12, num_draws=2), chain_workload(6)
    start = np.array([2, 2, 2, 2])
    policy = AlnsSplitPoints(np.random.default_rng(0), SHORT, allocation=Algorithm1(2), start=start)
    decision = policy.choose(work, draws, MemoryLimits())
    each = [float(Algorithm1(2).allocate(work, draws.draw(q), start).latency.epoch_s) for q in range(2)]
    assert decision.history_s[0] == pytest.approx(work.epochs * float(np.mean(each)))
    assert decision.objective_s <= decision.history_s[0]
