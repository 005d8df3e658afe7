"""How long clusters take: bounds, limits, and who waits for whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flwr_splitkd.costs import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    LinkState,
    MemberTurn,
    Workload,
    cluster_s,
    cut_terms,
    member_turn,
    named_shape,
    turn_cost,
)
from flwr_splitkd.errors import ConfigError

TURN = MemberTurn(
    cut=2, num_steps=10, device_s=6.0, uplink_s=2.0, server_s=3.0, downlink_s=1.0, before_s=0.5, after_s=0.25
)


def test_one_device_is_the_turn_itself() -> None:
    assert cluster_s([TURN]) == pytest.approx(12.75)
    assert cluster_s([TURN], clipped=True) == pytest.approx(12.75)
    shape = named_shape("llama-3.2-1b")
    terms = cut_terms(shape, None, Workload(batch_size=4, sequence_length=64, num_batches=7), GENERIC_DEVICE)
    link = LinkState(uplink_bps=2e7, downlink_bps=5e7)
    settings = {"frequency_hz": GENERIC_SERVER.max_frequency_hz, "server": GENERIC_SERVER, "link": link}
    cost = turn_cost(terms, 3, device=GENERIC_DEVICE, **settings)
    assert cluster_s([member_turn(terms, 3, **settings)]) == pytest.approx(cost.total_s)
    down = LinkState(uplink_bps=0.0, downlink_bps=5e7)
    assert cluster_s([member_turn(terms, 3, **{**settings, "link": down})]) == np.inf


def test_devices_work_at_the_same_time_and_the_edge_for_one_after_another() -> None:
    # 0.9 s a step elsewhere, 0.3 s on the edge: with two the edge is hidden but for its own.
    for num_devices in (2, 5):
        expected_s = 0.5 + 10 * (0.9 + 0.3 * num_devices) + 0.25
        assert cluster_s([TURN] * num_devices) == pytest.approx(expected_s)
    assert cluster_s([TURN] * 5) < 5 * cluster_s([TURN])


def test_the_edge_works_for_the_fast_while_it_waits_for_the_slow() -> None:
    slow = replace(TURN, cut=4, uplink_s=20.0)
    alone_s = cluster_s([slow])
    assert cluster_s([TURN, slow]) == pytest.approx(alone_s)
    # At the same cut they are computed for together, when the slow one has come.
    assert cluster_s([replace(TURN, cut=4), slow]) == pytest.approx(alone_s + 3.0)


def test_it_takes_at_least_what_the_slowest_and_the_edge_take() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        turns = [
            MemberTurn(
                cut=int(rng.integers(1, 4)),
                num_steps=int(rng.integers(1, 6)),
                **{f"{stage}_s": float(rng.random()) for stage in ("device", "uplink", "server", "downlink", "before")},
            )
            for _ in range(int(rng.integers(1, 6)))
        ]
        alone_s = [cluster_s([turn]) for turn in turns]
        together_s = cluster_s(turns)
        assert max(*alone_s, sum(turn.server_s for turn in turns)) <= together_s + 1e-9
        assert together_s <= sum(alone_s) + 1e-9
        assert together_s <= cluster_s(turns, clipped=True) + 1e-9


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        cluster_s([])
    with pytest.raises(ConfigError, match="`uplink_s` is -1"):
        replace(TURN, uplink_s=-1.0)
    with pytest.raises(ConfigError, match="`num_steps` is -1"):
        replace(TURN, num_steps=-1)
