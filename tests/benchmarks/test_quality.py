"""The quality benchmark: how its figures are made of its runs, and a smoke test of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _quality_figures import Range, best_rate, early, forgetting, heatmap, verdict
from _quality_tasks import dealt, skewed
from _quality_training import averaged

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@dataclass
class Run:
    rate: float = 1.0
    seed: int = 0
    validation: float = 0.0
    heldout: float = 0.0
    own: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    after_turn: list[list[float]] = field(default_factory=list)


def test_the_rate_is_chosen_by_the_mean_over_seeds_on_validation_text() -> None:
    runs = [Run(rate=1.0, validation=10.0, heldout=1.0), Run(rate=1.0, validation=40.0, heldout=1.0)]
    runs += [Run(rate=2.0, validation=20.0, heldout=9.0), Run(rate=2.0, validation=20.0, heldout=9.0)]
    assert best_rate(runs, lower_is_better=True) == 2.0
    assert best_rate(runs, lower_is_better=False) == 1.0


def test_of_equal_rates_the_lowest() -> None:
    runs = [Run(rate=3.0, validation=5.0), Run(rate=1.0, validation=5.0), Run(rate=2.0, validation=5.0)]
    assert best_rate(runs, lower_is_better=True) == best_rate(runs, lower_is_better=False) == 1.0


# Device 1 has its turn first. Columns are devices.
LAST_ROUND = Run(order=[1, 0, 2], after_turn=[[9.0, 10.0, 7.0], [8.0, 11.0, 7.0], [6.0, 15.0, 4.0]])


def test_forgetting_is_measured_from_each_device_s_own_turn() -> None:
    assert forgetting(LAST_ROUND, lower_is_better=True) == pytest.approx([50.0, -25.0, 0.0])
    assert forgetting(LAST_ROUND, lower_is_better=False) == pytest.approx([-5.0, 2.0, 0.0])


def test_early_devices_are_the_first_half() -> None:
    assert early([4.0, 2.0, 1.0, 0.0]) == 3.0
    assert early([4.0, 2.0, 0.0]) == 4.0
    assert early([5.0]) == 5.0


def test_the_heatmap_is_a_mean_and_has_devices_as_rows() -> None:
    one = Run(order=[0, 1], after_turn=[[1.0, 2.0], [3.0, 4.0]])
    two = Run(order=[0, 1], after_turn=[[3.0, 4.0], [5.0, 6.0]])
    assert heatmap([one, two]) == [[2.0, 4.0], [3.0, 5.0]]
    with pytest.raises(ValueError, match="expected device numbers"):
        heatmap([one, LAST_ROUND])


@pytest.mark.parametrize("lower", [True, False])
def test_a_verdict_needs_every_seed(lower: bool) -> None:
    less, more = {0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0, 2: 0.0}
    won, lost = ("beats b in all 2 seeds", "LOSES to b in all 2 seeds")
    assert (won if lower else lost) in verdict("a", less, "b", more, lower_is_better=lower)
    assert (lost if lower else won) in verdict("a", more, "b", less, lower_is_better=lower)
    assert "no clear winner, better in 1 and worse in 1 of 2" in verdict(
        "a", less, "b", {0: 2.0, 1: 1.0}, lower_is_better=lower
    )
    assert "equal in all 2 seeds" in verdict("a", less, "b", less, lower_is_better=lower)


def test_a_range() -> None:
    assert Range.of([3.0, 1.0, 2.0]).text(1) == "2.0 (1.0..3.0)"


def test_skewed_classes_go_to_one_device_each_in_full() -> None:
    parts = skewed([100, 50, 10], 0.8)
    assert sorted(sample for part in parts for sample in part) == [
        (label, index) for label, count in enumerate((100, 50, 10)) for index in range(count)
    ]
    assert [Counter(label for label, _ in part)[device] for device, part in enumerate(parts)] == [80, 40, 8]
    assert [Counter(label for label, _ in part)[0] for part in parts] == [80, 10, 10]
    assert skewed([4], 0.5) == [[(0, 0), (0, 1), (0, 2), (0, 3)]]


def test_dealing_leaves_nothing_over() -> None:
    hands = dealt(10, 3)
    assert sorted(index for hand in hands for index in hand) == list(range(10))
    assert [len(hand) for hand in hands] == [4, 3, 3]


def test_fedavg_weighs_by_labels() -> None:
    states = [{"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([4.0, 0.0])}]
    assert averaged(states, [1, 3])["w"].tolist() == [3.0, 1.0]


@pytest.mark.by_hand
def test_a_quick_run(tmp_path: Path) -> None:
    environment = {**os.environ, "FLWR_SPLITKD_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(BENCHMARKS / "quality.py"), "--quick", "--json", str(tmp_path / "quality.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "these figures mean nothing" in done.stdout
    assert "about 0 s left" in done.stderr
    found = json.loads((tmp_path / "quality.json").read_text())
    assert {"benchmark", "command", "commit", "rows", "about", "scale", "runs"} <= found.keys()
    compared = [run["equal"] for run in found["runs"] if run["arm"].endswith("same order")]
    assert compared
    assert all(compared)
    assert not (tmp_path / "cache").exists(), "a smoke test must not train the demo's teacher"
