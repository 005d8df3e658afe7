from __future__ import annotations

from collections import Counter

from flwr_splitkd.strategies.chain.sampling import sample_nodes

NODES = [907, 11, 500, 3, 42]


def test_all_of_them_in_their_order() -> None:
    assert sample_nodes(NODES, 5, seed=1, server_round=1, evaluating=False) == NODES
    assert sample_nodes(NODES, 9, seed=1, server_round=1, evaluating=False) == NODES


def test_every_device_has_its_turn_and_draws_repeat_with_the_seed() -> None:
    drawn = [sample_nodes(NODES, 2, seed=3, server_round=number, evaluating=False) for number in range(1, 201)]
    assert drawn == [sample_nodes(NODES, 2, seed=3, server_round=number, evaluating=False) for number in range(1, 201)]
    assert drawn != [sample_nodes(NODES, 2, seed=3, server_round=number, evaluating=True) for number in range(1, 201)]
    assert drawn != [sample_nodes(NODES, 2, seed=4, server_round=number, evaluating=False) for number in range(1, 201)]
    counts = Counter(node for nodes in drawn for node in nodes)
    # 80 expected of each; five standard deviations are 35.
    assert set(counts) == set(NODES) and all(45 < count < 115 for count in counts.values())
    assert all(NODES.index(first) < NODES.index(second) for first, second in drawn)


def test_the_draw_is_of_places() -> None:
    """A device with another node id has the place that it had."""
    others = [node + 10_000 for node in NODES]
    for server_round in range(1, 20):
        first = sample_nodes(NODES, 3, seed=0, server_round=server_round, evaluating=False)
        second = sample_nodes(others, 3, seed=0, server_round=server_round, evaluating=False)
        assert second == [node + 10_000 for node in first]
