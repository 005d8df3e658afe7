"""What the planner is compared with."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import (
    CutTerms,
    DeviceProfile,
    LinkState,
    ModelShape,
    ServerProfile,
    Workload,
    cut_terms,
    turn_cost,
)
from flwr_splitkd.errors import ConfigError, CutError, InfeasibleError
from flwr_splitkd.schedulers import (
    DeviceOnly,
    DeviceView,
    Outlook,
    ServerOnly,
    device_only,
    fixed_cut,
    plan_cut_and_frequency,
    server_only,
)

_BLOCKS = np.full(6, 1e5)
_STUDENT = ModelShape(
    name="student",
    hidden_size=64,
    embedding_width=64,
    vocab_size=100,
    block_parameters=_BLOCKS,
    block_flops_per_token=2 * _BLOCKS,
    block_flops_per_pair=np.full(6, 256.0),
    embedding_parameters=6400,
    head_parameters=64,
    head_flops_per_token=12800.0,
    tied=True,
)
_DEVICE = DeviceProfile(name="device", frequency_hz=1e9, cores=16, power_coefficient=1e-26)
_SERVER = ServerProfile(
    name="server",
    min_frequency_hz=0.5e9,
    max_frequency_hz=2e9,
    nominal_frequency_hz=1.5e9,
    cores=16,
    power_coefficient=1e-26,
    static_power_w=20.0,
)
_WORKLOAD = Workload(batch_size=4, sequence_length=32, num_batches=10)
_LINK = LinkState(uplink_bps=1e8, downlink_bps=1e8)
_WHO: dict[str, Any] = {"device": _DEVICE, "server": _SERVER, "link": _LINK}


def _terms(codecs: tuple[str, ...] = ("none",), local_epochs: int = 1) -> CutTerms:
    workload = replace(_WORKLOAD, local_epochs=local_epochs)
    return cut_terms(_STUDENT, None, workload, _DEVICE, codecs=codecs)


def test_the_cuts() -> None:
    assert server_only(_terms(), frequency="max", **_WHO).cut == 1
    assert device_only(_terms(), frequency="max", **_WHO).cut == 5
    assert [fixed_cut(_terms(), cut, frequency="max", **_WHO).cut for cut in range(1, 6)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("frequency", "clock"), [("max", 2e9), ("nominal", 1.5e9), ("optimal", 1e9)])
def test_the_clocks(frequency: Any, clock: float) -> None:
    decision = server_only(_terms(), frequency=frequency, **_WHO)
    assert decision.frequency_hz == pytest.approx(clock)
    assert decision.binding == ("energy" if frequency == "optimal" else "fixed")
    assert decision.cost == turn_cost(_terms(), 0, frequency_hz=decision.frequency_hz, **_WHO)


@pytest.mark.parametrize("frequency", ["max", "nominal", "optimal"])
@pytest.mark.parametrize("baseline", [server_only, device_only])
def test_the_planner_never_takes_more(baseline: Any, frequency: Any) -> None:
    best = plan_cut_and_frequency(_terms(), **_WHO)
    assert baseline(_terms(), frequency=frequency, **_WHO).cost.total_j >= best.cost.total_j


def test_within_the_bound_the_optimal_clock_is_just_fast_enough() -> None:
    slow, fast = (server_only(_terms(), frequency=clock, **_WHO).cost.total_s for clock in ("optimal", "max"))
    bound = (slow + fast) / 2
    decision = server_only(_terms(), frequency="optimal", max_delay_s=bound, **_WHO)
    assert decision.binding == "delay"
    assert decision.cost.total_s == pytest.approx(bound)


@pytest.mark.parametrize(
    ("frequency", "clock", "binding"),
    [
        ("optimal", 2e9, "max frequency (delay bound missed)"),
        ("max", 2e9, "fixed (delay bound missed)"),
        ("nominal", 1.5e9, "fixed (delay bound missed)"),
    ],
)
def test_a_missed_bound_is_told_and_does_not_end_the_run(frequency: Any, clock: float, binding: str) -> None:
    with pytest.raises(InfeasibleError):
        plan_cut_and_frequency(_terms(), max_delay_s=0.01, **_WHO)
    decision = device_only(_terms(), frequency=frequency, max_delay_s=0.01, **_WHO)
    assert (decision.cut, decision.frequency_hz, decision.binding) == (5, clock, binding)
    assert decision.cost.total_s > 0.01
    assert f"clock set by {binding}" in decision.reason


def test_a_held_clock_stays_where_it_is_even_if_the_largest_would_meet_the_bound() -> None:
    slow, fast = (server_only(_terms(), frequency=clock, **_WHO).cost.total_s for clock in ("nominal", "max"))
    bound = (slow + fast) / 2
    decision = server_only(_terms(), frequency="nominal", max_delay_s=bound, **_WHO)
    assert (decision.frequency_hz, decision.binding) == (1.5e9, "fixed (delay bound missed)")
    assert server_only(_terms(), frequency="max", max_delay_s=bound, **_WHO).binding == "fixed"


def test_of_several_codecs_the_one_of_least_energy() -> None:
    decision = server_only(_terms(("none", "int8", "float16")), frequency="max", **_WHO)
    assert decision.codec == "int8"
    assert decision.runner_up is not None and decision.runner_up.codec == "float16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"battery_j": 0.001}, "let the device have"),
        ({"device": replace(_DEVICE, memory_bytes=1.0)}, "give the device"),
        ({"server": replace(_SERVER, memory_bytes=1.0)}, "give the server"),
        ({"link": LinkState(uplink_bps=0, downlink_bps=0)}, "in reach again"),
    ],
)
@pytest.mark.parametrize("max_delay_s", [0.01, math.inf])
def test_what_no_baseline_can_pay(changes: dict[str, Any], message: str, max_delay_s: float) -> None:
    with pytest.raises(InfeasibleError, match=message):
        device_only(_terms(), frequency="optimal", max_delay_s=max_delay_s, **(_WHO | changes))


@pytest.mark.parametrize("cut", [0, 6, -1])
def test_no_such_cut(cut: int) -> None:
    with pytest.raises(CutError, match=re.escape(f"`cut` is {cut}; expected 1..5")):
        fixed_cut(_terms(), cut, frequency="max", **_WHO)


def _view(*, clock_is_ours: bool = True, battery_j: float | None = None, local_epochs: int = 1) -> DeviceView:
    outlook = Outlook(
        device=_DEVICE,
        server=_SERVER,
        link=_LINK,
        battery_j=battery_j,
        terms=lambda epochs, codecs: _terms(tuple(codecs), epochs),
        clock_is_ours=clock_is_ours,
    )
    return DeviceView(
        node_id=1,
        name="0",
        server_round=1,
        turn=0,
        num_blocks=6,
        num_examples=40,
        num_batches=10,
        local_epochs=local_epochs,
        outlook=outlook,
    )


@pytest.mark.parametrize(("policy", "baseline"), [(ServerOnly, server_only), (DeviceOnly, device_only)])
def test_as_policies(policy: Any, baseline: Any) -> None:
    for frequency in ("max", "nominal", "optimal"):
        made = policy(frequency=frequency, max_delay_s=0.5, codec="int8")
        assert made.needs_outlook is True and made.codecs == ("int8",)
        decision = made.choose(_view(local_epochs=3))
        assert decision == baseline(_terms(("int8",), 3), frequency=frequency, max_delay_s=0.5, **_WHO)
        assert decision == made.plan(_view().outlook, 3)
        held = made.choose(_view(clock_is_ours=False))
        assert held == baseline(_terms(("int8",)), frequency="max", max_delay_s=0.5, **_WHO)
    with pytest.raises(InfeasibleError, match="let the device have"):
        policy(frequency="max").choose(_view(battery_j=0.001))


@pytest.mark.parametrize("policy", [ServerOnly, DeviceOnly])
def test_policies_out_of_range(policy: Any) -> None:
    with pytest.raises(ConfigError, match="`frequency` is 'slow'; expected 'optimal', 'max' or 'nominal'"):
        policy(frequency="slow")
    with pytest.raises(ConfigError, match="`max_delay_s` is 0.0; expected more than 0 seconds"):
        policy(frequency="max", max_delay_s=0.0)
    with pytest.raises(ConfigError, match=f"{policy.__name__} has no outlook on the turn"):
        policy(frequency="max").choose(replace(_view(), outlook=None))
