"""What a commit remembers of a run, and what a resumed run makes of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.errors import StoreError
from flwr_splitkd.schedulers import Candidate, CutCycle, DeviceView, FixedCut, RandomCut, RandomOrder
from flwr_splitkd.strategies.progress import Progress, Unfinished


def _stored(progress: Progress, **turn: Any) -> dict[str, Any]:
    """Through the JSON of a manifest."""
    info: dict[str, Any] = json.loads(json.dumps({"progress": progress.to_json(), **turn}))
    return info


def _in_round_two() -> Progress:
    progress = Progress(run="7", server_round=1, turns_taken={10: 1, 20: 1, 30: 1})
    progress.begin_round(2, [30, 10, 20])
    progress.complete(30, "three")
    return progress


def test_a_new_run_begins_with_its_first_round() -> None:
    progress = Progress.from_commit({"event": "start", "next_step": 0}, run="7")
    assert (progress.run, progress.next_round, progress.num_turns) == ("7", 1, 0)


def test_after_a_turn_its_device_has_had_it() -> None:
    info = _stored(_in_round_two(), node_id=10, device="one", finished=True, order_step=5, done_steps=5)
    progress = Progress.from_commit(info, run="another")
    assert (progress.run, progress.next_round, progress.order) == ("7", 2, [30, 10, 20])
    assert progress.served == {30: "three", 10: "one"}
    assert progress.turns_taken == {10: 2, 20: 1, 30: 2}
    assert not progress.unfinished


def test_within_a_turn_the_rest_of_it_is_left() -> None:
    before = _in_round_two()
    before.unfinished[20] = Unfinished(3, 2)
    info = _stored(before, node_id=10, device="one", finished=False, order_step=8, done_steps=4)
    progress = Progress.from_commit(info, run="7")
    assert progress.served == {30: "three"}
    assert progress.unfinished == {20: Unfinished(3, 2), 10: Unfinished(order_step=8, done_steps=4)}
    progress.complete(10, "one")
    assert progress.unfinished == {20: Unfinished(3, 2)}


def test_after_a_round_comes_the_next_one() -> None:
    progress = _in_round_two()
    progress.round_done = True
    assert Progress.from_commit(_stored(progress), run="7").next_round == 3


def test_a_device_that_comes_back_as_another_node_is_known_by_name() -> None:
    progress = _in_round_two()
    assert progress.had_turn(30, "three")
    assert progress.had_turn(99, "three")
    assert not progress.had_turn(10, "three")  # a node of this round, whatever its name
    assert not progress.had_turn(99, "four")


def test_a_commit_that_cannot_be_read() -> None:
    with pytest.raises(StoreError, match="remembers .*which cannot be read: KeyError"):
        Progress.from_commit({"progress": {"run": "7"}}, run="7")


def test_policies_go_on_where_they_were() -> None:
    candidates = [Candidate(node_id=node_id, turns=0) for node_id in range(6)]
    views = [
        DeviceView(node_id=i, name=str(i), server_round=1, turn=i, num_blocks=9, num_examples=1, num_batches=1)
        for i in range(6)
    ]

    def policies() -> dict[str, Any]:
        return {
            "selection": RandomOrder(np.random.default_rng(3)),
            "cut": RandomCut(1, 8, np.random.default_rng(4)),
            "dealt": CutCycle([1, 3, 5]),
            "fixed": FixedCut(2),
        }

    first = policies()
    for view in views[:3]:
        first["selection"].order(candidates, 6, 1)
        first["cut"].choose(view)
        first["dealt"].choose(view)
    progress = Progress(run="7")
    progress.remember_policies(first)
    assert sorted(progress.policies) == ["cut", "dealt", "selection"]
    again = policies()
    Progress.from_commit(_stored(progress), run="7").restore_policies(again)
    assert again["selection"].order(candidates, 6, 2) == first["selection"].order(candidates, 6, 2)
    assert [again["cut"].choose(view) for view in views] == [first["cut"].choose(view) for view in views]
    assert [again["dealt"].choose(view) for view in reversed(views)] == [
        first["dealt"].choose(view) for view in reversed(views)
    ]


def test_generators_with_arrays_in_their_state_survive_json() -> None:
    order = RandomOrder(np.random.Generator(np.random.MT19937(5)))
    candidates = [Candidate(node_id=node_id, turns=0) for node_id in range(9)]
    order.order(candidates, 9, 1)
    state = json.loads(json.dumps(order.state_dict()))
    again = RandomOrder(np.random.Generator(np.random.MT19937(0)))
    again.load_state_dict(state)
    assert again.order(candidates, 9, 2) == order.order(candidates, 9, 2)
