"""The planner between policies and turns: outlooks, decisions, what is learnt and what is paid."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from recorded_runs import outcome

from flwr_splitkd.costs import (
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    BlockTimes,
    Fleet,
    LinkState,
    WiredLink,
    Workload,
    cut_terms,
)
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import DeviceView, FixedCut, FixedEpochs, OptimalCut
from flwr_splitkd.strategies.planner import PlannedTurn, Planner, PlannerBasis
from flwr_splitkd.tiers.edge import TurnClock, TurnOutcome
from small_shape import small_shape

LINK = WiredLink(uplink_bps=50e6, downlink_bps=80e6)
SHAPE = small_shape(block_flops_per_token=4e8)
WORKLOAD = Workload(batch_size=1, sequence_length=64, num_batches=1)
DEVICE = DeviceView(node_id=1, name="0", server_round=1, turn=0, num_blocks=8, num_examples=40, num_batches=10)


def _planner(*, clock_is_set: bool = False, **settings: Any) -> Planner:
    fleet = Fleet(
        server=replace(TABLE_II_SERVER, static_power_w=60.0),
        devices={"0": TABLE_II_DEVICES[0]},
        links={"0": LINK},
    )
    planner = Planner(**{"fleet": fleet, "sequence_length": 64, **settings})
    planner.open(
        PlannerBasis(
            student=SHAPE,
            teacher=SHAPE,
            workload=WORKLOAD,
            handover_bytes=np.cumsum(SHAPE.block_parameters)[:-1] * 4.0,
            max_batches=0,
            codec="none",
            clock_is_set=clock_is_set,
        )
    )
    return planner


def _outcome(planned: PlannedTurn, *, times: float = 1.0) -> TurnOutcome:
    """The turn as predicted, its compute `times` slower."""
    assert planned.decision is not None and planned.nominal is not None
    cost, terms = planned.decision.cost, planned.nominal
    k = terms.index(planned.decision.cut, planned.decision.codec)
    handed = int(terms.handover_uplink_bytes[k])
    stages = {
        "device_s": times * cost.device_s,
        "edge_s": times * cost.server_s,
        "uplink_s": cost.uplink_s,
        "downlink_s": cost.downlink_s,
        "fixed_s": 0.0,
    }
    return outcome(
        1,
        cut=planned.cut,
        num_batches=terms.num_steps,
        num_steps=terms.num_steps,
        uplink_payload_bytes=int(terms.uplink_bytes[k]) + handed,
        downlink_payload_bytes=int(terms.downlink_bytes[k]) + handed,
        handover_bytes=2 * handed,
        handover_downlink_bytes=handed,
        duration_s=sum(stages.values()),
        **stages,
    )


def test_a_policy_without_costs_gets_its_cut_and_a_prediction() -> None:
    planned = _planner().plan(DEVICE, FixedCut(3), FixedEpochs(2))
    assert (planned.cut, planned.local_epochs, planned.codec) == (3, 2, None)
    assert planned.decision is not None and planned.nominal is not None
    assert planned.nominal.num_steps == 20
    assert planned.decision.cost.total_s > 0 and planned.decision.binding == "fixed"
    line = planned.to_json()
    assert json.dumps(line) and line["predicted_s"] == planned.decision.cost.total_s


def test_the_workload_is_the_devices_own() -> None:
    planned = _planner().plan(DEVICE, FixedCut(3), FixedEpochs(1))
    workload = replace(WORKLOAD, batch_size=4, num_batches=10)
    handover = np.cumsum(SHAPE.block_parameters)[:-1] * 4.0
    expected = cut_terms(SHAPE, SHAPE, workload, TABLE_II_DEVICES[0], handover_bytes=handover)
    assert planned.nominal is not None
    assert np.array_equal(planned.nominal.device_s, expected.device_s)
    assert np.array_equal(planned.nominal.uplink_bytes, expected.uplink_bytes)


def test_learning_closes_the_gap() -> None:
    planner = _planner()
    policy = FixedCut(4)
    errors = []
    for _ in range(4):
        planned = planner.plan(DEVICE, policy, FixedEpochs(1))
        nominal = _planner().plan(DEVICE, policy, FixedEpochs(1))
        learnt = planner.learn("0", planned, _outcome(nominal, times=3.0))
        errors.append(learnt["prediction_error"])
    assert errors[0]["device_s"] == pytest.approx(2 / 3)
    assert max(errors[1].values()) < 0.01


def test_a_part_of_a_turn_teaches_nothing() -> None:
    planner = _planner()
    planned = planner.plan(DEVICE, FixedCut(4), FixedEpochs(1))
    before = planner.state_dict()
    planner.learn("0", planned, replace(_outcome(planned, times=3.0), num_batches=2))
    assert planner.state_dict() == before


def test_where_the_clock_is_not_ours_it_stays_at_its_largest() -> None:
    policy = OptimalCut()
    real = _planner().plan(DEVICE, policy, FixedEpochs(1)).decision
    modelled = _planner(modelled=True).plan(DEVICE, policy, FixedEpochs(1)).decision
    assert real is not None and modelled is not None
    assert real.frequency_hz == TABLE_II_SERVER.max_frequency_hz
    assert modelled.frequency_hz < TABLE_II_SERVER.max_frequency_hz


def test_where_the_edge_sets_its_clock_the_clock_is_planned_and_learnt_from() -> None:
    planner = _planner(clock_is_set=True)
    planned = planner.plan(DEVICE, OptimalCut(), FixedEpochs(1))
    assert planned.frequency_hz is not None and planned.frequency_hz < TABLE_II_SERVER.max_frequency_hz
    # It took as long as it must at the clock that was set: so there is nothing to correct, whatever was planned.
    set_hz = 1.1 * planned.frequency_hz
    taken = _outcome(planned)
    taken = replace(taken, edge_s=taken.edge_s / 1.1, clock=TurnClock(set_frequency_hz=set_hz))
    planner.learn("0", planned, taken)
    assert planner.state_dict()["edge"]["compute"]["factor"] == pytest.approx(1.0)
    assert planner.plan(DEVICE, OptimalCut(), FixedEpochs(1)).frequency_hz == pytest.approx(planned.frequency_hz)


def test_where_the_edge_can_no_longer_set_its_clock_it_counts_as_its_largest() -> None:
    planner = _planner(clock_is_set=True)
    planned = planner.plan(DEVICE, OptimalCut(), FixedEpochs(1))
    assert planned.frequency_hz is not None
    times = planned.frequency_hz / TABLE_II_SERVER.max_frequency_hz
    taken = _outcome(planned)
    taken = replace(taken, edge_s=times * taken.edge_s, clock=TurnClock(refusal="GPU is lost"))
    planner.learn("0", planned, taken)
    assert planner.state_dict()["edge"]["compute"]["factor"] == pytest.approx(1.0)
    assert planner.plan(DEVICE, OptimalCut(), FixedEpochs(1)).frequency_hz == TABLE_II_SERVER.max_frequency_hz


def test_infeasible_turns_are_named_and_forecast() -> None:
    planner, policy = _planner(), OptimalCut(max_delay_s=1e-6)
    with pytest.raises(InfeasibleError, match="raise `max_delay_s` to"):
        planner.plan(DEVICE, policy, FixedEpochs(1))
    forecast = planner.forecast(DEVICE, policy, FixedEpochs(1))
    assert "max_delay_s" in forecast.infeasible and forecast.duration_s == math.inf
    possible = planner.forecast(DEVICE, OptimalCut(), FixedEpochs(1))
    assert not possible.infeasible and 0 < possible.device_j < possible.total_j


@dataclass
class _Fading:
    """Slower every second."""

    def at(self, time_s: float) -> LinkState:
        return LinkState(uplink_bps=50e6 / (1 + time_s), downlink_bps=80e6 / (1 + time_s))


@pytest.mark.parametrize("channel", ["last", "fresh"])
def test_decided_on_the_last_channel_and_paid_on_the_fresh_one(channel: Any) -> None:
    fleet = Fleet(devices={"0": TABLE_II_DEVICES[0], "1": TABLE_II_DEVICES[1]}, default_link=_Fading())
    planner = _planner(fleet=fleet, modelled=True, channel=channel)
    other = replace(DEVICE, node_id=2, name="1")
    planner.forecast(other, FixedCut(2), FixedEpochs(1))  # at the start of the run everybody's channel is known
    for view in (DEVICE, other):
        planned = planner.plan(view, FixedCut(2), FixedEpochs(1))
        learnt = planner.pay(view.name, planned)
        assert learnt["modelled_late"] is False
        assert planner.learn(view.name, planned, outcome(1)) == {}
    assert planned.decision is not None
    predicted, paid = planned.decision.cost.uplink_s, learnt["modelled_uplink_s"]
    assert (predicted == pytest.approx(paid)) == (channel == "fresh")
    assert planner.totals()["modelled-s"] == learnt["modelled_clock_s"]


def test_a_turn_that_was_lost_is_paid_back() -> None:
    fleet = Fleet(devices={"0": replace(TABLE_II_DEVICES[0], battery_j=1e6)}, default_link=_Fading())
    planner = _planner(fleet=fleet, modelled=True)
    before = planner.plan(DEVICE, FixedCut(2), FixedEpochs(1))
    planner.pay("0", before)
    state = json.dumps(planner.state_dict())
    planner.pay("0", planner.plan(DEVICE, FixedCut(2), FixedEpochs(1)))
    assert json.dumps(planner.state_dict()) != state
    planner.refund()
    assert json.dumps(planner.state_dict()) == state
    planner.refund()  # once
    assert json.dumps(planner.state_dict()) == state
    planned = planner.plan(DEVICE, FixedCut(2), FixedEpochs(1))
    planner.pay("0", planned)
    planner.learn("0", planned, outcome(1))
    kept = json.dumps(planner.state_dict())
    planner.refund()  # of a turn that was completed
    assert json.dumps(planner.state_dict()) == kept


def test_what_was_learnt_survives_a_commit() -> None:
    planner = _planner()
    planned = planner.plan(DEVICE, FixedCut(4), FixedEpochs(1))
    planner.learn("0", planned, _outcome(planned, times=3.0))
    other = _planner()
    other.load_state_dict(json.loads(json.dumps(planner.state_dict())))
    one, two = (p.plan(DEVICE, FixedCut(4), FixedEpochs(1)).decision for p in (planner, other))
    assert one is not None and two is not None and one.cost == two.cost


@dataclass
class _Tunnel:
    """No link for the first seconds."""

    def at(self, time_s: float) -> LinkState:
        rate = 50e6 if time_s >= 0.001 else 0.0
        return LinkState(uplink_bps=rate, downlink_bps=rate)


def test_what_ruled_a_device_out_may_pass() -> None:
    """A device that never gets a turn would never be measured again."""
    fleet = Fleet(
        devices={"0": TABLE_II_DEVICES[0], "1": TABLE_II_DEVICES[1]}, links={"0": _Tunnel()}, default_link=LINK
    )
    planner = _planner(fleet=fleet, modelled=True)
    policy = OptimalCut()
    with pytest.raises(InfeasibleError, match="It can take a turn when it is in reach again"):
        planner.plan(DEVICE, policy, FixedEpochs(1))
    planner.pay("1", planner.plan(replace(DEVICE, name="1"), policy, FixedEpochs(1)))  # time goes on
    with pytest.raises(InfeasibleError):  # judged by its last known channel
        planner.plan(DEVICE, policy, FixedEpochs(1))
    assert planner.plan(DEVICE, policy, FixedEpochs(1)).decision is not None


def test_a_congested_turn_rules_a_device_out_once() -> None:
    planner, policy = _planner(), OptimalCut(max_delay_s=30.0)
    planned = planner.plan(DEVICE, policy, FixedEpochs(1))
    planner.learn("0", planned, replace(_outcome(planned), uplink_s=1000.0, duration_s=1010.0))
    with pytest.raises(InfeasibleError, match="raise `max_delay_s`"):
        planner.plan(DEVICE, policy, FixedEpochs(1))
    assert planner.plan(DEVICE, policy, FixedEpochs(1)).decision is not None


def test_an_evaluation_is_at_the_privacy_floor_where_no_turn_is_feasible() -> None:
    planner = _planner()
    assert planner.evaluation_cut(DEVICE, FixedCut(3), FixedEpochs(1)) == 3
    assert planner.evaluation_cut(DEVICE, OptimalCut(max_delay_s=1e-6, min_cut=4), FixedEpochs(1)) == 4


def test_a_battery_is_drained_by_measured_turns() -> None:
    device = replace(TABLE_II_DEVICES[0], battery_j=200.0)
    planner = _planner(fleet=Fleet(devices={"0": device}, default_link=LINK))
    sizes = {"num_examples": 40, "num_batches": 10}
    planned = planner.plan(DEVICE, FixedCut(4), FixedEpochs(1))
    planner.learn("0", planned, replace(_outcome(planned), device_s=1.5, uplink_s=2.0))
    spent_j = 1.5 * device.compute_power_w + 2.0 * device.transmit_power_w
    assert planner.outlook("0", **sizes).battery_j == pytest.approx(200.0 - spent_j)
    with pytest.raises(InfeasibleError, match="battery"):
        planner.learn("0", planned, replace(_outcome(planned), device_s=2.0))
        planner.plan(DEVICE, FixedCut(4), FixedEpochs(1))
    assert planner.outlook("0", **sizes).battery_j == 0.0  # it is not charged by being left out


def test_a_device_that_tells_no_times_teaches_nothing() -> None:
    planner = _planner()
    planned = planner.plan(DEVICE, FixedCut(4), FixedEpochs(1))
    before = planner.state_dict()
    planner.learn("0", planned, replace(_outcome(planned), device_s=0.0, downlink_s=0.0))
    assert planner.state_dict() == before


def test_the_runs_own_codec_is_that_of_policies_that_choose_none() -> None:
    planner = _planner()
    assert planner._basis is not None
    planner.open(replace(planner._basis, codec="int8"))
    planned = planner.plan(DEVICE, OptimalCut(), FixedEpochs(1))
    assert planned.codec is None and planned.decision is not None and planned.decision.codec == "int8"


class _Stubborn:
    """Decides on a codec that it never named."""

    def choose(self, device: DeviceView) -> Any:
        assert device.outlook is not None
        return replace(OptimalCut().plan(device.outlook, 1), codec="int8")


def test_a_decision_on_what_was_not_on_offer_is_refused_before_the_turn() -> None:
    with pytest.raises(ConfigError, match="There is no cut 1 with the codec 'int8'"):
        _planner().plan(DEVICE, _Stubborn(), FixedEpochs(1))


def test_a_profile_of_another_model_is_refused_where_it_comes_in() -> None:
    times = BlockTimes(model="m", batch_size=1, sequence_length=8, forward_s=(1.0,) * 3, backward_s=(1.0,) * 3)
    profile = replace(TABLE_II_DEVICES[0], blocks=times)
    with pytest.raises(ConfigError, match="measured with the 3 blocks of m; expected the 8 of small"):
        _planner(fleet=Fleet(devices={"0": profile}))
    with pytest.raises(ConfigError, match="measured with the 3 blocks of m"):
        _planner().introduce("7", profile)


def test_a_device_may_bring_its_own_profile() -> None:
    planner = _planner()
    planner.introduce("7", TABLE_II_DEVICES[9])
    planner.introduce("0", TABLE_II_DEVICES[9])
    sizes = {"num_examples": 40, "num_batches": 10}
    assert planner.outlook("7", **sizes).device == TABLE_II_DEVICES[9]
    assert planner.outlook("0", **sizes).device == TABLE_II_DEVICES[0]  # the fleet's word counts
    assert planner.outlook("8", **sizes).device.name.startswith("unknown device")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 0}, "`sequence_length` is 0; expected at least 1"),
        ({"channel": "best"}, "`channel` is 'best'; expected 'last' or 'fresh'"),
        ({"frequency": "fast"}, "`frequency` is 'fast'; expected one of optimal, max, nominal"),
        ({"channel": "fresh"}, "`channel` is 'fresh'; expected 'last'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Planner(**settings)


def test_a_planner_needs_a_run_and_the_runs_own_blocks() -> None:
    with pytest.raises(ConfigError, match="The planner is not open"):
        Planner().plan(DEVICE, FixedCut(1), FixedEpochs(1))
    basis = PlannerBasis(
        student=SHAPE, teacher=None, workload=WORKLOAD, handover_bytes=np.ones(3), max_batches=0, codec="none"
    )
    with pytest.raises(ConfigError, match="with 8 blocks; expected 4"):
        Planner().open(basis)
