"""Local epochs from a delay bound, a battery, and the size of the data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flwr_splitkd.costs import DeviceProfile, LinkState, ModelShape, ServerProfile, Workload, cut_terms
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import DeadlineEpochs, DeviceView, OptimalCut, Outlook, TargetExamples

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
_SERVER = ServerProfile(
    name="server", min_frequency_hz=0.5e9, max_frequency_hz=2e9, cores=16, power_coefficient=1e-26, static_power_w=20.0
)


def _device(
    *,
    speed: float = 1.0,
    rate_bps: float = 1e8,
    num_batches: int = 10,
    battery_j: float | None = None,
    clock_is_ours: bool = True,
) -> DeviceView:
    device = DeviceProfile(name="device", frequency_hz=speed * 1e9, cores=16, power_coefficient=1e-26)
    workload = Workload(batch_size=4, sequence_length=32, num_batches=num_batches)
    outlook = Outlook(
        device=device,
        server=_SERVER,
        link=LinkState(uplink_bps=rate_bps, downlink_bps=rate_bps),
        battery_j=battery_j,
        terms=lambda epochs, codecs: cut_terms(
            _STUDENT, None, replace(workload, local_epochs=epochs), device, codecs=codecs
        ),
        clock_is_ours=clock_is_ours,
    )
    return DeviceView(
        node_id=1,
        name="0",
        server_round=1,
        turn=0,
        num_blocks=6,
        num_examples=4 * num_batches,
        num_batches=num_batches,
        outlook=outlook,
    )


def _one_by_one(cut: OptimalCut, device: DeviceView, max_epochs: int) -> int:
    assert device.outlook is not None
    most = 1
    for epochs in range(1, max_epochs + 1):
        try:
            cut.plan(device.outlook, epochs)
        except InfeasibleError:
            continue
        most = epochs
    return most


def test_the_most_that_the_bounds_allow() -> None:
    """As found by trying every number."""
    rng, seen = np.random.default_rng(0), Counter[int]()
    for _ in range(60):
        device = _device(
            speed=float(rng.uniform(0.2, 3)),
            rate_bps=float(rng.uniform(2e7, 1e9)),
            num_batches=int(rng.integers(1, 30)),
            battery_j=float(10 ** rng.uniform(-1, 2)) if rng.random() < 0.5 else None,
            clock_is_ours=bool(rng.integers(2)),
        )
        cut = OptimalCut(max_delay_s=float(10 ** rng.uniform(-1.5, 1.5)), codecs=("none", "int8"))
        epochs = DeadlineEpochs(13, cut).choose(device)
        assert epochs == _one_by_one(cut, device, 13)
        seen[epochs] += 1
    assert len(seen) > 6 and seen[1] and seen[13]


def test_what_is_chosen_can_be_planned_and_one_more_cannot() -> None:
    cut, device = OptimalCut(max_delay_s=3.0), _device()
    epochs = DeadlineEpochs(1000, cut).choose(device)
    assert 1 < epochs < 1000
    assert cut.choose(replace(device, local_epochs=epochs)).cost.total_s <= 3.0 * (1 + 1e-9)
    with pytest.raises(InfeasibleError, match="max_delay_s"):
        cut.choose(replace(device, local_epochs=epochs + 1))


def test_faster_devices_and_links_and_less_data_allow_more() -> None:
    policy = DeadlineEpochs(1000, OptimalCut(max_delay_s=3.0, min_cut=3))
    usual = policy.choose(_device())
    assert policy.choose(_device(speed=2.0)) > usual
    assert policy.choose(_device(rate_bps=1e9)) > usual
    assert policy.choose(_device(num_batches=5)) > usual
    assert policy.choose(_device(battery_j=5.0)) < usual


def test_without_bounds_it_is_the_largest() -> None:
    assert DeadlineEpochs(7, OptimalCut()).choose(_device()) == 7


@pytest.mark.parametrize("device", [_device(battery_j=0.0), _device(rate_bps=0.0), _device(rate_bps=1e3)])
@pytest.mark.parametrize("max_epochs", [1, 2, 9])
def test_one_if_nothing_is_feasible(device: DeviceView, max_epochs: int) -> None:
    assert DeadlineEpochs(max_epochs, OptimalCut(max_delay_s=1.0)).choose(device) == 1


def test_needs_an_outlook() -> None:
    policy = DeadlineEpochs(3, OptimalCut())
    assert policy.needs_outlook is True
    with pytest.raises(
        ConfigError, match="DeadlineEpochs has no outlook on the turn; expected a strategy with a planner"
    ):
        policy.choose(replace(_device(), outlook=None))


@pytest.mark.parametrize(
    ("num_examples", "epochs"),
    [(100, 1), (50, 2), (33, 3), (40, 3), (41, 2), (1000, 1), (10, 8), (1, 8), (0, 8)],
)
def test_about_the_same_number_of_samples(num_examples: int, epochs: int) -> None:
    assert TargetExamples(100, max_epochs=8).choose(replace(_device(), num_examples=num_examples)) == epochs


def test_no_other_number_comes_nearer_to_the_target() -> None:
    for num_examples in range(1, 200):
        epochs = TargetExamples(60, max_epochs=20).choose(replace(_device(), num_examples=num_examples))
        distance = min(abs(60 - passes * num_examples) for passes in range(1, 21))
        assert abs(60 - epochs * num_examples) == distance


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeadlineEpochs(0, OptimalCut()), "`max_epochs` is 0; expected at least 1"),
        (lambda: TargetExamples(0, 3), "`target_examples` is 0; expected at least 1"),
        (lambda: TargetExamples(10, -1), "`max_epochs` is -1; expected at least 1"),
    ],
)
def test_epochs_out_of_range(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_endless_bound_with_a_battery() -> None:
    cut, device = OptimalCut(max_delay_s=math.inf), _device(battery_j=20.0)
    epochs = DeadlineEpochs(500, cut).choose(device)
    assert 1 < epochs == _one_by_one(cut, device, 500) < 500
