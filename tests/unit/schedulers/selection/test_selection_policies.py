"""Who takes a turn in a round."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from flwr_splitkd.schedulers import Candidate, FewestTurnsFirst, RandomOrder, RoundRobin, SelectionPolicy


def _candidates(turns: dict[int, int]) -> list[Candidate]:
    return [Candidate(node_id=node_id, turns=count) for node_id, count in turns.items()]


@pytest.mark.parametrize("policy", [RoundRobin(), RandomOrder(np.random.default_rng(0)), FewestTurnsFirst()])
@pytest.mark.parametrize("num_turns", [0, 1, 3, 5])
def test_each_node_at_most_once_and_no_more_than_asked(policy: SelectionPolicy, num_turns: int) -> None:
    nodes = {50: 1, 11: 0, 90: 2, 23: 0, 42: 1}
    order = policy.order(_candidates(nodes), num_turns, 1)
    assert len(order) == num_turns == len(set(order))
    assert set(order) <= set(nodes)


@pytest.mark.parametrize("policy", [RoundRobin(), RandomOrder(np.random.default_rng(0)), FewestTurnsFirst()])
def test_nobody_online(policy: SelectionPolicy) -> None:
    assert policy.order([], 3, 1) == []


@pytest.mark.parametrize(("num_nodes", "num_turns"), [(5, 2), (10, 3), (4, 3), (7, 7), (6, 4), (9, 1)])
def test_round_robin_covers_everyone_evenly(num_nodes: int, num_turns: int) -> None:
    """After any number of rounds nobody is more than one turn ahead, and the circle is walked in order."""
    nodes = {100 - node: 0 for node in range(num_nodes)}
    circle = sorted(nodes)
    visited: list[int] = []
    counts: Counter[int] = Counter(dict.fromkeys(nodes, 0))
    for server_round in range(1, 4 * num_nodes + 1):
        order = RoundRobin().order(_candidates(nodes), num_turns, server_round)
        visited += order
        counts.update(order)
        assert max(counts.values()) - min(counts.values()) <= 1, f"after round {server_round}: {counts}"
    assert visited == [circle[turn % num_nodes] for turn in range(len(visited))]


def test_round_robin_does_not_depend_on_the_order_of_the_nodes() -> None:
    nodes = {3: 0, 1: 0, 2: 0}
    assert RoundRobin().order(_candidates(nodes), 2, 2) == RoundRobin().order(
        _candidates(dict(sorted(nodes.items()))), 2, 2
    )


def test_random_order_repeats_with_its_generator_and_covers_everyone() -> None:
    nodes = _candidates(dict.fromkeys(range(6), 0))
    first, second = (RandomOrder(np.random.default_rng(3)) for _ in range(2))
    rounds = [first.order(nodes, 2, server_round) for server_round in range(1, 40)]
    assert rounds == [second.order(nodes, 2, server_round) for server_round in range(1, 40)]
    assert {node for order in rounds for node in order} == set(range(6))
    assert len({tuple(order) for order in rounds}) > 5  # fresh each round


def test_fewest_turns_first_with_ties_by_node_id() -> None:
    nodes = {5: 2, 4: 0, 3: 1, 2: 0, 1: 2}
    assert FewestTurnsFirst().order(_candidates(nodes), 4, 1) == [2, 4, 3, 1]


def test_fewest_turns_first_lets_a_late_comer_catch_up() -> None:
    turns = {1: 3, 2: 3, 3: 0}
    served = []
    for server_round in range(1, 5):
        (node,) = FewestTurnsFirst().order(_candidates(turns), 1, server_round)
        turns[node] += 1
        served.append(node)
    assert served == [3, 3, 3, 1]
