"""The modelled world: its clock, links and batteries go on by what turns cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from flwr_splitkd.costs import (
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    CutTerms,
    Fleet,
    LinkState,
    WiredLink,
    Workload,
    cluster_s,
    cut_terms,
    member_turn,
    turn_cost,
)
from flwr_splitkd.errors import InfeasibleError
from flwr_splitkd.telemetry import ModelledWorld, Payment
from small_shape import small_shape

LINK = WiredLink(uplink_bps=50e6, downlink_bps=80e6)
CLOCK_HZ = TABLE_II_SERVER.max_frequency_hz


def _terms() -> CutTerms:
    shape = small_shape()
    return cut_terms(shape, None, Workload(batch_size=4, sequence_length=64, num_batches=10), TABLE_II_DEVICES[0])


@dataclass
class _Tunnel:
    """No link until a time."""

    until_s: float

    def at(self, time_s: float) -> LinkState:
        rate = 1e6 if time_s >= self.until_s else 0.0
        return LinkState(uplink_bps=rate, downlink_bps=rate)


def test_the_clock_and_the_battery_go_on_by_a_turns_cost() -> None:
    terms = _terms()
    device = replace(TABLE_II_DEVICES[0], battery_j=1000.0)
    world = ModelledWorld(Fleet(server=TABLE_II_SERVER, devices={"0": device}, links={"0": LINK}))
    first = world.pay("0", device, terms, 3, frequency_hz=CLOCK_HZ)
    expected = turn_cost(terms, 3, frequency_hz=CLOCK_HZ, device=device, server=TABLE_II_SERVER, link=LINK.at(0.0))
    assert first.cost == expected and first.waited_s == 0
    assert world.now_s == first.clock_s == expected.total_s
    assert first.battery_j == pytest.approx(1000.0 - expected.device_j)
    second = world.pay("0", device, terms, 3, frequency_hz=CLOCK_HZ)
    assert world.now_s == pytest.approx(2 * expected.total_s)
    assert world.battery_j("0", device) == second.battery_j == pytest.approx(1000.0 - 2 * expected.device_j)
    assert world.total_j == pytest.approx(2 * expected.total_j)
    assert world.battery_j("1", TABLE_II_DEVICES[0]) is None
    assert all(name.startswith("modelled_") for name in first.to_json())


def test_a_battery_is_never_less_than_empty() -> None:
    device = replace(TABLE_II_DEVICES[0], battery_j=1e-9)
    world = ModelledWorld(Fleet(devices={"0": device}, links={"0": LINK}))
    assert world.pay("0", device, _terms(), 0, frequency_hz=CLOCK_HZ).battery_j == 0.0


def test_a_device_that_is_out_of_reach_is_waited_for() -> None:
    world = ModelledWorld(Fleet(links={"0": _Tunnel(until_s=12.0)}))
    turn = world.pay("0", TABLE_II_DEVICES[0], _terms(), 0, frequency_hz=CLOCK_HZ)
    assert turn.waited_s == 12.0
    assert turn.to_json()["modelled_s"] == pytest.approx(turn.cost.total_s + 12.0)
    assert turn.clock_s == pytest.approx(12.0 + turn.cost.total_s)


def test_but_not_for_ever() -> None:
    world = ModelledWorld(Fleet(links={"0": _Tunnel(until_s=1e9)}))
    with pytest.raises(InfeasibleError, match=r"Device 0 is out of reach for 3600 s .*expected a link within it"):
        world.pay("0", TABLE_II_DEVICES[0], _terms(), 0, frequency_hz=CLOCK_HZ)


def test_a_world_goes_on_where_another_one_was() -> None:
    device = replace(TABLE_II_DEVICES[0], battery_j=1000.0)
    fleet = Fleet(devices={"0": device}, links={"0": LINK})
    one, other = ModelledWorld(fleet), ModelledWorld(fleet)
    one.pay("0", device, _terms(), 2, frequency_hz=CLOCK_HZ)
    other.load_state_dict(one.state_dict())
    assert other.pay("0", device, _terms(), 2, frequency_hz=CLOCK_HZ) == one.pay(
        "0", device, _terms(), 2, frequency_hz=CLOCK_HZ
    )
    assert other.total_j == one.total_j


def test_a_cluster_takes_the_clock_on_once_and_shares_what_the_server_spends() -> None:
    terms = _terms()
    device = replace(TABLE_II_DEVICES[0], battery_j=1000.0)
    server = replace(TABLE_II_SERVER, static_power_w=30.0)
    world = ModelledWorld(Fleet(server=server, devices={}, links={"0": LINK, "1": LINK}))
    payments = [
        Payment(device=name, profile=device, terms=terms, option=option, frequency_hz=CLOCK_HZ)
        for name, option in (("0", 1), ("1", 3))
    ]
    turns = world.pay_together(payments)
    settings = {"frequency_hz": CLOCK_HZ, "server": server, "link": LINK.at(0.0)}
    alone = [turn_cost(terms, option, device=device, **settings) for option in (1, 3)]
    expected_s = cluster_s([member_turn(terms, option, **settings) for option in (1, 3)])
    assert max(cost.total_s for cost in alone) <= expected_s + 1e-9 < sum(cost.total_s for cost in alone)
    assert world.now_s == turns[0].clock_s == turns[1].clock_s == pytest.approx(expected_s)
    assert [turn.to_json()["modelled_s"] for turn in turns] == pytest.approx([expected_s] * 2)
    assert sum(turn.cost.server_static_j for turn in turns) == pytest.approx(30.0 * expected_s)
    for turn, cost in zip(turns, alone, strict=True):
        assert turn.cost.device_j == cost.device_j
        assert turn.battery_j == pytest.approx(1000.0 - cost.device_j)
    assert world.total_j == pytest.approx(sum(turn.cost.total_j for turn in turns))


def test_a_cluster_waits_until_all_can_be_reached() -> None:
    world = ModelledWorld(Fleet(links={"0": _Tunnel(until_s=12.0), "1": _Tunnel(until_s=3.0)}))
    payments = [
        Payment(device=name, profile=TABLE_II_DEVICES[0], terms=_terms(), option=0, frequency_hz=CLOCK_HZ)
        for name in ("0", "1")
    ]
    turns = world.pay_together(payments)
    assert [turn.waited_s for turn in turns] == [12.0, 12.0]
    assert turns[0].total_s == pytest.approx(12.0 + (turns[0].lasted_s or 0.0))
