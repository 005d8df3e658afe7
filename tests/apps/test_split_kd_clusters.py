"""The demo app in clusters, in simulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the app needs it, in processes of its own")

from test_split_kd import APP, settings, turns_of

from flower_harness import federation


def started(turns: list[dict[str, object]], server_round: int) -> list[object]:
    return [turn["started_s"] for turn in turns if turn["server_round"] == server_round and "error" not in turn]


@pytest.mark.slow
def test_clusters_of_two_in_a_simulation(tmp_path: Path) -> None:
    with federation("simulation", tmp_path / "logs", supernodes=3, client_cpus=1, cpus=2) as running:
        outcome = running.run(APP, {**settings(tmp_path), "cluster-size": 2}, timeout_s=240.0)
        assert outcome.completed, outcome.tail()
    turns = turns_of(tmp_path / "runs")
    assert sorted(turn["device"] for turn in turns) == ["0", "0", "1", "1", "2", "2"]
    assert all(turn["num_steps"] == 2 for turn in turns), turns
    for server_round in (1, 2):
        begun = started(turns, server_round)
        assert len(begun) == 3 and len(set(begun)) == 2  # two at the same time, then one
    (run,) = (tmp_path / "runs").iterdir()
    commits = [json.loads(path.read_text()) for path in sorted((run / "commits").glob("manifest-*.json"))]
    assert set(commits[-1]["info"]["progress"]["turns_taken"].values()) == {2}


@pytest.mark.slow
def test_fewer_actors_than_a_cluster_has_devices(tmp_path: Path) -> None:
    """One actor for three devices: the cluster begins with the one that came, and says what to set."""
    with federation("simulation", tmp_path / "logs", supernodes=3, client_cpus=2) as running:
        own = {"cluster-size": 3, "connect-timeout": 20.0, "num-server-rounds": 1}
        outcome = running.run(APP, {**settings(tmp_path), **own}, timeout_s=240.0)
        assert outcome.completed, outcome.tail()
    assert "`options.backend.init-args.num-cpus`" in outcome.log
    turns = turns_of(tmp_path / "runs")
    assert sorted(turn["device"] for turn in turns if "error" not in turn) == ["0", "1", "2"]
