"""How a round is parted into clusters."""

from __future__ import annotations

from flwr_splitkd.costs import GENERIC_DEVICE, DeviceProfile, LinkState
from flwr_splitkd.schedulers import AlikeTogether, Candidate, Forecast, InOrder


def candidate(node_id: int, uplink_bps: float, device: DeviceProfile = GENERIC_DEVICE) -> Candidate:
    forecast = Forecast(
        device=device,
        link=LinkState(uplink_bps=uplink_bps, downlink_bps=uplink_bps),
        battery_j=None,
        num_examples=1,
        duration_s=1.0,
        device_j=1.0,
        total_j=1.0,
    )
    return Candidate(node_id=node_id, forecast=forecast)


def test_in_order_takes_as_many_as_fit() -> None:
    assert InOrder().part([5, 3, 1, 2, 4], 2, []) == [[5, 3], [1, 2], [4]]
    assert InOrder().part([5, 3], 1, []) == [[5], [3]]
    assert InOrder().part([], 3, []) == []


def test_alike_go_together_in_the_order_of_their_first() -> None:
    slow, fast = 1e6, 1e9
    known = [candidate(1, fast), candidate(2, slow), candidate(3, fast), candidate(4, slow), candidate(5, slow)]
    assert AlikeTogether().part([2, 1, 3, 4, 5], 3, known) == [[2, 4, 5], [1, 3]]
    assert AlikeTogether().part([2, 1, 3, 4, 5], 1, known) == [[2], [1], [3], [4], [5]]


def test_a_cluster_is_never_larger_than_the_size() -> None:
    known = [candidate(node_id, 1e6) for node_id in range(7)]
    parts = AlikeTogether().part(list(range(7)), 3, known)
    assert max(map(len, parts)) <= 3
    assert sorted(node_id for part in parts for node_id in part) == list(range(7))


def test_who_is_not_known_is_with_others_that_are_not() -> None:
    known = [candidate(1, 1e6), candidate(4, 1e6), Candidate(node_id=2), Candidate(node_id=3)]
    assert AlikeTogether().part([2, 1, 3, 4], 2, known) == [[2, 3], [1, 4]]
