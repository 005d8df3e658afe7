"""A round's decisions on what it measures: readings become epochs, predictions stand beside them, lines say so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from chain_fleets import chain_workload
from flwr_splitkd.costs import MeasuredCell
from flwr_splitkd.schedulers.chain import FixedSplitPoints
from flwr_splitkd.schedulers.chain.planner import ChainPlan, ChainPlanner
from flwr_splitkd.strategies.chain.calls import Called
from flwr_splitkd.strategies.chain.decisions import Decisions
from flwr_splitkd.strategies.chain.measurement import measured_since
from flwr_splitkd.tiers.edge.chain import Reading

LAYERS = 6
WORK = chain_workload(LAYERS, epochs=2)
NAMES = ("a", "b")


class _Edge:
    shares: dict[int, float]

    def set_shares(self, shares: dict[int, float]) -> None:
        self.shares = shares


class _Policies:
    def __init__(self, cell: Any) -> None:
        self.planner = ChainPlanner(ChainPlan(workload=WORK, cell=cell, split_points=FixedSplitPoints(2)), LAYERS)


def reading(steps: int, *, forwards: int | None = None, device_s: float = 0.5) -> Reading:
    """Half a second on the device for each step unless told, and 0.1, 0.05, 0.02, 0.01 for the other stages."""
    came = steps if forwards is None else forwards
    return Reading(
        num_steps=steps,
        num_forwards=came,
        device_s=device_s * steps,
        edge_s=0.1 * steps,
        edge_wait_s=0.05 * steps,
        uplink_s=0.02 * came,
        uplink_bytes=1000 * came,
        downlink_s=0.01 * steps,
        downlink_bytes=500 * steps,
    )


def test_an_epoch_is_what_lies_between_two_readings() -> None:
    assert measured_since(Reading(), Reading(), 2, 1) is None
    assert measured_since(Reading(), reading(0, forwards=1), 2, 1) is None  # its first batch has come, no more
    first = measured_since(Reading(), reading(3, forwards=4), 2, 7)
    assert first is not None and (first.split_point, first.num_steps, first.subcarriers) == (2, 3, 7)
    assert (first.device_s, first.edge_s) == (pytest.approx(1.5), pytest.approx(0.3))
    assert (first.uplink_s, first.uplink_bytes) == (pytest.approx(0.06), pytest.approx(3000))
    last = measured_since(reading(3, forwards=4), reading(8, forwards=8), 2, 7)
    assert last is not None and last.num_steps == 5
    assert (last.uplink_s, last.uplink_bytes) == (pytest.approx(0.1), pytest.approx(5000))
    assert last.per_step()["measured_device_s"] == pytest.approx(0.5)
    assert last.each_s == pytest.approx(0.5 + 0.1 + 0.05 + 0.02 + 0.01)


def round_of(decisions: Decisions, server_round: int, epochs: list[list[Reading]]) -> list[Called]:
    """A round whose meters show these readings at its epochs' ends, and the last one when it is over."""
    called = [Called(None, None, place, name) for place, name in enumerate(NAMES)]  # type: ignore[arg-type]
    decisions.begin_round(called, server_round, training=True)
    for number, readings in enumerate(epochs, start=1):
        decisions.begin_epoch(server_round, number)
        for one, shown in zip(called, readings, strict=True):
            one.meter.reading = shown
        decisions.end_epoch([9.0, 0.8, 0.7, 0.9])
    decisions.end_round(server_round)
    return called


def test_a_round_learns_from_each_of_its_epochs() -> None:
    lines: list[Any] = []
    policies, edge = _Policies(MeasuredCell()), _Edge()
    decisions = Decisions(policies, edge, lines.append)  # type: ignore[arg-type]
    epochs = [[reading(3, forwards=4)] * 2, [reading(8), reading(7, forwards=8)]]
    round_of(decisions, 1, epochs)
    json.dumps(lines)
    assert [line["kind"] for line in lines] == ["decision", "allocation", "measurement", "allocation", "measurement"]
    assert set(edge.shares) == {0, 1}
    first, second = (line for line in lines if line["kind"] == "measurement")
    assert [first["devices"][name]["num_steps"] for name in NAMES] == [3, 3]
    assert [second["devices"][name]["num_steps"] for name in NAMES] == [5, 4]
    # A round's first iteration holds the wait for its devices.
    assert (first["measured_iteration_s"], second["measured_iteration_s"]) == (0.8, pytest.approx(0.85))
    of_a = second["devices"]["a"]
    for stage in ("device_s", "uplink_s", "downlink_s"):
        assert of_a[f"predicted_{stage}"] == pytest.approx(of_a[f"measured_{stage}"]), stage
    assert first["devices"]["a"]["predicted_device_s"] != pytest.approx(0.5)
    assert not any("modelled" in key for line in lines for key in line)
    # The next round's devices have meters of their own: nothing is counted twice.
    round_of(decisions, 2, [[Reading()] * 2, [reading(8)] * 2])
    assert [line["devices"]["a"]["num_steps"] for line in lines if line["kind"] == "measurement"] == [3, 5, 8]


def test_what_cannot_be_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[Any] = []
    policies = _Policies(MeasuredCell())
    decisions = Decisions(policies, _Edge(), lines.append)  # type: ignore[arg-type]
    wrong = replace(reading(8), device_s=math.nan)
    with caplog.at_level("WARNING", "flwr"):
        round_of(decisions, 1, [[reading(8), wrong]])
    line = lines[-1]
    assert line["dropped"] == ["b"] and sorted(line["devices"]) == ["a"]
    assert "measured what cannot be of ['b']" in caplog.text
    assert sorted(policies.planner.state_dict()["measured"]["devices"]) == ["a"]


def test_a_modelled_cell_measures_nothing() -> None:
    class Cell:
        def resources(self, devices: Any, **when: int) -> Any:
            return MeasuredCell().resources(devices, **when)

    lines: list[Any] = []
    decisions = Decisions(_Policies(Cell()), _Edge(), lines.append)  # type: ignore[arg-type]
    round_of(decisions, 1, [[reading(8)] * 2])
    assert [line["kind"] for line in lines] == ["decision", "allocation"]
    assert "modelled_clock_s" in lines[0] and not any("predicted" in key for key in lines[0])
