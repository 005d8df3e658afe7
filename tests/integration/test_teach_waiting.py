"""The teacher for a device that waits, over gRPC, each device a process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_clusters_of_processes import TIMEOUT_S, call, edge_in
from test_split_equals_unsplit import Process
from torch import Tensor

from flwr_splitkd.tiers.edge import EdgeService, TurnOutcome
from flwr_splitkd.wire.server import Session

pytestmark = pytest.mark.slow


_CACHE = {"teacher_cache_bytes": 1 << 24}


def connected(edge: EdgeService, sessions: list[Session]) -> None:
    with edge.server.changed:
        assert edge.server.changed.wait_for(lambda: all(one.connected for one in sessions), TIMEOUT_S)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    both = [Process(device) for device in range(2)]
    yield both
    for process in both:
        process.close()


def test_the_next_device_s_turn_finds_it_done_and_trains_the_same(processes: list[Process], tmp_path: Path) -> None:
    students: list[dict[str, Tensor]] = []
    outcomes: list[TurnOutcome] = []
    for teach_waiting in (False, True):
        folder = tmp_path / str(teach_waiting)
        with edge_in(folder, teach_waiting=teach_waiting, **_CACHE) as edge:
            sessions = [call(edge, process, i, 40 if i == 0 else 6, folder) for i, process in enumerate(processes)]
            connected(edge, sessions)
            for i, session in enumerate(sessions):
                waiting = sessions[i + 1 :]
                outcome = edge.serve(
                    session, mode="train", cut=1 + i, local_epochs=1, info={}, waiting=lambda w=waiting: w
                )
                assert processes[i].finish_turn()["steps"] == outcome.num_steps
            outcomes.append(outcome)
            students.append({name: tensor.clone() for name, tensor in edge.student.model.state_dict().items()})
    assert all(torch.equal(tensor, students[1][name]) for name, tensor in students[0].items())
    without, with_it = outcomes
    assert with_it.num_steps == without.num_steps == 6
    assert with_it.teacher_s < without.teacher_s / 2
    assert with_it.uplink_payload_bytes < without.uplink_payload_bytes


def test_a_device_that_is_killed_while_it_waits_harms_nobody(processes: list[Process], tmp_path: Path) -> None:
    with edge_in(tmp_path, teach_waiting=True, **_CACHE) as edge:
        sessions = [call(edge, process, i, 20, tmp_path) for i, process in enumerate(processes)]
        connected(edge, sessions)
        killed = False

        def waiting() -> list[Session]:
            nonlocal killed
            link = sessions[1].link
            if not killed and link is not None and link.payload_bytes_received:  # in the midst of it
                os.kill(int(str(processes[1].pid)), signal.SIGKILL)
                killed = True
                time.sleep(0.5)
            return sessions[1:]

        outcome = edge.serve(sessions[0], mode="train", cut=1, local_epochs=1, info={}, waiting=waiting)
        assert killed
        assert outcome.num_steps == processes[0].finish_turn()["steps"] == 20
