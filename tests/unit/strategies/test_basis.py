"""What a planner in a run reckons with, from the run's own settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from flwr_splitkd import SplitKD
from flwr_splitkd.costs import named_shape
from flwr_splitkd.strategies.basis import planner_basis


@pytest.mark.parametrize(
    ("settings", "joined"),
    [({}, 1), ({"cluster_size": 5}, 5), ({"cluster_size": 5, "batch_devices": False}, 1)],
)
def test_devices_that_share_a_batch_count_for_the_servers_memory(settings: dict[str, Any], joined: int) -> None:
    strategy = SplitKD(student=lambda: nn.Linear(2, 2), num_microbatches=4, **settings)
    model = nn.Linear(2, 2)
    layout = SimpleNamespace(block_of=lambda name: 0)
    student = SimpleNamespace(model=model, layout=layout, handover_bytes=lambda: [1.0] * 5)
    edge: Any = SimpleNamespace(student=student, teacher=None, clock=None)
    planner: Any = SimpleNamespace(student=named_shape("gpt2/6"), teacher=None, sequence_length=32)
    workload = planner_basis(planner, strategy.setup, edge, cluster_size=strategy.cluster_size).workload
    assert workload.joined_devices == joined
    assert (workload.num_microbatches, workload.pipeline_depth) == (4, 4)
