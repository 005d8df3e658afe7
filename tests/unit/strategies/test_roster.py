"""Who is behind each node: asked once, known from then on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import TABLE_II_DEVICES, Workload, to_json
from flwr_splitkd.records import Enrolment
from flwr_splitkd.schedulers import DeviceView, FixedEpochs, OptimalCut
from flwr_splitkd.strategies import enrolment
from flwr_splitkd.strategies.planner import Planner, PlannerBasis
from flwr_splitkd.strategies.roster import Roster
from small_shape import small_shape


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> None:
    # Flower's own cannot be made outside a run.
    monkeypatch.setattr(
        enrolment,
        "Message",
        lambda **fields: SimpleNamespace(**fields, metadata=SimpleNamespace(dst_node_id=fields["dst_node_id"])),
    )


class _Grid:
    """Nodes 1 and 2 answer, 3 has no handler, 4 is silent, 5 answers something else."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        nodes = [message.dst_node_id for message in messages]
        self.asked += nodes
        return [f"message {node}" for node in nodes]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        return [self._reply(int(name.split()[1]), name) for name in message_ids if name != "message 4"]

    def _reply(self, node: int, name: str) -> Any:
        profile = json.dumps(to_json(TABLE_II_DEVICES[9])) if node == 2 else "{" if node == 1 else ""
        content = Enrolment(name=f"orin-{node}", num_batches=10 * node, num_examples=40 * node, profile=profile)
        return SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=name),
            has_error=lambda: node == 3,
            error=SimpleNamespace(reason="no query handler"),
            content=content.to_content() if node < 4 else Enrolment.ask(),
        )


def _roster() -> tuple[Roster, Planner]:
    shape = small_shape(4)
    planner = Planner(sequence_length=32)
    basis = PlannerBasis(
        student=shape,
        teacher=None,
        workload=Workload(batch_size=1, sequence_length=32, num_batches=1),
        handover_bytes=np.ones(3),
        max_batches=0,
        codec="none",
    )
    planner.open(basis)
    return Roster(planner, 4), planner


def test_nodes_are_asked_once_and_those_that_answer_have_a_forecast() -> None:
    roster, planner = _roster()
    grid: Any = _Grid()
    for _ in range(2):
        roster.enrol(grid, [1, 2, 3, 4, 5], timeout_s=0.3)
    assert grid.asked == [1, 2, 3, 4, 5]
    made = roster.candidates([1, 2, 3], {2: 7}, 1, OptimalCut(), FixedEpochs(1))
    assert [(c.node_id, c.name, c.turns) for c in made] == [(1, "orin-1", 0), (2, "orin-2", 7), (3, "", 0)]
    one, two, three = (candidate.forecast for candidate in made)
    assert one is not None and two is not None and three is None
    assert two.num_examples == 80 and two.duration_s > one.duration_s  # twice the batches on a slower device
    assert two.device == TABLE_II_DEVICES[9]
    assert one.device == planner.fleet.default_device  # its profile could not be used


@pytest.mark.parametrize(
    "profile",
    [
        "[" * 100_000,
        '{"name": "x", "cores": 1, "frequency_hz": 1' + "0" * 400 + "}",
        '{"name": "x", "cores": 1, "frequency_hz": 1e150, "power_coefficient": 1e10}',
        "3",
    ],
)
def test_a_profile_that_comes_from_outside(profile: str) -> None:
    assert enrolment.profile_of(Enrolment(name="x", profile=profile)) is None


def test_a_device_without_loaded_data_is_taken_to_have_as_much_as_the_others() -> None:
    roster, _ = _roster()
    sizes = {"server_round": 1, "turn": 0, "num_blocks": 4}
    for node, batches in ((1, 10), (2, 20), (3, 0)):
        roster.meet(DeviceView(node_id=node, name=str(node), num_examples=4 * batches, num_batches=batches, **sizes))
    made = roster.candidates([3], {}, 1, OptimalCut(), FixedEpochs(1))
    assert made[0].forecast is not None and made[0].forecast.num_examples == 60
