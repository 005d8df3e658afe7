from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store import tensor_file
from flwr_splitkd.tiers.cloud.store import TaskStore


def state(value: float) -> dict[str, Tensor]:
    return {"weight/w": torch.full((8,), value), "next_step": torch.tensor(int(value))}


def info(server_round: int = 0, edge: str = "edge", run: str = "run") -> dict[str, Any]:
    return {
        "iterations": {edge: 3},
        "answers": {edge: [0.1, 2.0]},
        "edge": edge,
        "run": run,
        "server_round": server_round,
    }


def value(found: tuple[dict[str, Tensor], Any] | None) -> float:
    assert found is not None
    return float(found[0]["weight/w"][0])


def test_the_newest_state_and_what_was_noted(tmp_path: Path) -> None:
    store = TaskStore(tmp_path)
    assert store.latest() is None
    for number in range(5):
        assert store.commit(state(number), info()) == f"{number:06d}"
    for one in (store, TaskStore(tmp_path)):
        found = one.latest()
        assert value(found) == 4 and found is not None and found[1] == info()


def test_rounds_stay_when_steps_have_gone_on(tmp_path: Path) -> None:
    store = TaskStore(tmp_path)
    for server_round in (1, 2):
        store.commit_round(state(10 * server_round), info(server_round))
        for step in range(4):
            store.commit(state(10 * server_round + step), info())
    for one in (store, TaskStore(tmp_path)):
        assert [value(one.at_round("edge", "run", number)) for number in (1, 2)] == [10, 20]
        assert value(one.latest()) == 23


def test_a_round_that_takes_place_again_and_again(tmp_path: Path) -> None:
    """What it gave the first time, and the second time, is undone; where it begins stays."""
    store = TaskStore(tmp_path)
    for server_round in (1, 2):
        store.commit_round(state(10 * server_round), info(server_round))
    for attempt in range(3):
        store = TaskStore(tmp_path)
        assert value(store.go_back("edge", "run", 1)) == 10
        with pytest.raises(StoreError, match="no state of round 2"):
            store.at_round("edge", "run", 2)
        store.commit_round(state(30 + attempt), info(2))
    assert [value(TaskStore(tmp_path).at_round("edge", "run", number)) for number in (1, 2)] == [10, 32]


def test_a_round_that_is_ended_again_pushes_none_out(tmp_path: Path) -> None:
    """An edge that has not heard the answer asks again, as often as it takes."""
    store = TaskStore(tmp_path)
    store.commit_round(state(1), info(1))
    for _ in range(3):
        store.commit_round(state(2), info(2))
    assert value(TaskStore(tmp_path).at_round("edge", "run", 1)) == 1


def test_a_round_that_is_trained_again_takes_the_place(tmp_path: Path) -> None:
    store = TaskStore(tmp_path)
    store.commit_round(state(1), info(1))
    store.commit_round(state(2), info(2))
    store.commit_round(state(3), info(2))
    assert value(store.at_round("edge", "run", 2)) == 3


def test_edges_do_not_push_each_others_rounds_out(tmp_path: Path) -> None:
    store = TaskStore(tmp_path)
    store.commit_round(state(1), info(1, "a"))
    for server_round in range(1, 6):
        store.commit_round(state(10 + server_round), info(server_round, "b"))
    assert value(store.at_round("a", "run", 1)) == 1


@pytest.mark.parametrize(
    ("edge", "run", "server_round"), [("edge", "run", 3), ("edge", "other", 2), ("other", "run", 2)]
)
def test_a_round_that_is_not_there(tmp_path: Path, edge: str, run: str, server_round: int) -> None:
    store = TaskStore(tmp_path)
    store.commit_round(state(2), info(2))
    known = "round 2 of run 'run'" if edge == "edge" else "none, since no round was completed"
    with pytest.raises(StoreError, match=f"no state of round {server_round} of run '{run}'; expected one of {known}"):
        store.at_round(edge, run, server_round)


def test_a_damaged_commit_is_passed_over_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = TaskStore(tmp_path)
    for number in (1, 2):
        store.commit(state(number), info())
    newest = tmp_path / "steps" / "manifest-000001.json"
    newest.write_text(newest.read_text()[:-30])
    with caplog.at_level(logging.WARNING):
        assert value(TaskStore(tmp_path).latest()) == 1
    assert f"{tmp_path}: {newest.name} is passed over" in caplog.text


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = TaskStore(tmp_path)
    store.commit_round(state(1), info(1))
    with monkeypatch.context() as full:
        full.setattr(tensor_file, "save_file", no_space)
        for commit in (store.commit, store.commit_round):
            with pytest.raises(StoreError, match="No space left on device.*is untouched"):
                commit(state(2), info(2))
    for one in (store, TaskStore(tmp_path)):
        assert value(one.latest()) == value(one.at_round("edge", "run", 1)) == 1
    store.commit_round(state(3), info(2))
    assert value(store.at_round("edge", "run", 2)) == 3
