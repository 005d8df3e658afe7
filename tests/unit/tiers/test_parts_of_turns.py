"""`commit_every_steps`: a turn that is lost in its midst loses no more than that, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_turns import Federation, sentences

from flwr_splitkd.errors import PeerLostError
from flwr_splitkd.tiers.edge import EdgeStudent, TurnSettings
from flwr_splitkd.tiers.edge.optimizer import EdgeOptimizer

EVERY = TurnSettings(commit_every_steps=2)


def _equal(one: Federation, other: Federation) -> bool:
    mine, theirs = one.weights(), other.weights()
    moments = one.student.moments, other.student.moments
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items()) and all(
        torch.equal(entry, moments[1][name][key])
        for name, entries in moments[0].items()
        for key, entry in entries.items()
    )


def _lose_in_step(federation: Federation, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The device is gone after so many optimiser steps of its turn."""
    step, taken = EdgeOptimizer.step, [0]

    def count(optimizer: EdgeOptimizer, learning_rate: float) -> None:
        step(optimizer, learning_rate)
        taken[0] += 1
        if taken[0] == steps:
            federation.edge_link.abandon(PeerLostError("the device is lost"))

    monkeypatch.setattr(EdgeOptimizer, "step", count)


@pytest.mark.parametrize("handover", ["full", "reset", "device"])
def test_commits_in_between_change_nothing(tmp_path: Path, handover: str) -> None:
    parts, whole = (
        Federation(tmp_path / name, settings=settings, handover=handover)  # type: ignore[arg-type]
        for name, settings in (("parts", EVERY), ("whole", TurnSettings()))
    )
    for federation in (parts, whole):
        federation.turn(0, 2, sentences(), epochs=3)
        federation.turn(1, 1, sentences())
    assert _equal(parts, whole)
    assert parts.student.last_commit == "000007"  # 9 steps and 3: four in between and the end, one and the end
    assert whole.student.last_commit == "000002"


@pytest.mark.parametrize("lost_after", [1, 2, 3, 5, 8])
def test_a_lost_turn_goes_on_from_its_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_after: int
) -> None:
    federation, whole = Federation(tmp_path / "lost", settings=EVERY), Federation(tmp_path / "whole")
    with monkeypatch.context() as patch:
        _lose_in_step(federation, patch, lost_after)
        with pytest.raises(PeerLostError):
            federation.turn(0, 2, sentences(), epochs=3)
    info = federation.student.last_info
    # The step's answer was on its way already, so what the device says next may still be heard.
    kept = {(lost_after - 1) // 2 * 2, lost_after // 2 * 2}
    assert federation.student.next_step in kept
    if federation.student.next_step:
        assert (info["done_steps"], info["order_step"], info["finished"]) == (federation.student.next_step, 0, False)
    federation.next_step = federation.student.next_step
    outcome, _ = federation.turn(0, 2, sentences(), epochs=3, done_steps=federation.student.next_step, order_step=0)
    assert outcome.num_steps == 9 - info.get("done_steps", 0)
    whole.turn(0, 2, sentences(), epochs=3)
    assert _equal(federation, whole)


def test_a_run_goes_on_in_another_process_from_its_last_commit(tmp_path: Path) -> None:
    """Another `EdgeStudent` on the same log has the weights, the moments and the versions that devices have cached."""
    federation, whole = Federation(tmp_path / "lost"), Federation(tmp_path / "whole")
    for one in (federation, whole):
        one.turn(0, 2, sentences())
    again = Federation(tmp_path / "lost")
    assert isinstance(again.student, EdgeStudent) and again.student.next_step == 3
    again.next_step = 3
    assert _equal(again, whole)
    outcome, _ = again.turn(0, 2, sentences())
    expected, _ = whole.turn(0, 2, sentences())
    assert _equal(again, whole)
    assert outcome.handover_bytes == expected.handover_bytes  # nothing travelled for want of a version


def test_a_turn_that_takes_too_long(tmp_path: Path) -> None:
    """Every answer comes in time, and still the turn is too long."""
    federation = Federation(tmp_path, settings=TurnSettings(turn_timeout_s=0.5, step_timeout_s=20.0))
    before = federation.weights()
    with pytest.raises(PeerLostError, match=r"the device has not ended its turn after 0.5 s; expected it by then"):
        federation.turn(0, 2, sentences(), epochs=10_000)
    assert all(torch.equal(tensor, before[name]) for name, tensor in federation.weights().items())
