"""A cluster over gRPC, each device a process: one is killed, the others end what they began."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_split_equals_unsplit import LOSS, OPTIMIZER, Process
from tiny_models import MODELS

from flwr_splitkd.errors import PeerLostError
from flwr_splitkd.tiers.edge import ClusterTurn, EdgeService, EdgeSetup, TurnOutcome, TurnSettings
from flwr_splitkd.wire.server import Session

RUN = 42
MODEL = next(iter(MODELS))
TIMEOUT_S = 120.0


@contextmanager
def edge_in(folder: Path, **changes: Any) -> Iterator[EdgeService]:
    """An edge that keeps its commits in the folder; `changes` are to its setup."""
    student, teacher = MODELS[MODEL]
    setup = EdgeSetup(
        student=student,
        teacher=teacher,
        loss=LOSS,
        task="causal-lm",
        tied_embeddings="refuse",
        train_embeddings=True,
        blocks=(),
        optimizer=OPTIMIZER,
        optimizer_handover="full",
        turn=TurnSettings(max_grad_norm=1.0),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
        grace_period_s=1.0,
    )
    setup = replace(setup, **changes)
    edge = setup.open(setup.build_student(), folder / "commits", ticket_lifetime_s=600)
    try:
        yield edge
    finally:
        edge.close()


def call(edge: EdgeService, process: Process, device: int, batches: int, folder: Path) -> Session:
    session = edge.expect(run_id=RUN, node_id=device, server_round=1)
    process.start_turn(
        {
            "model": MODEL,
            "address": edge.server.address,
            "session_id": session.ticket.session_id,
            "token": session.ticket.token.hex(),
            "run_id": RUN,
            "batches": batches,
            "cache": str(folder / f"device-{device}"),
        }
    )
    return session


def kill_in_its_turn(session: Session, process: Process) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        if session.link is not None and session.link.payload_bytes_received:
            os.kill(int(str(process.pid)), signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_device_is_left_out_and_the_others_end_their_turns(tmp_path: Path) -> None:
    processes = [Process(device) for device in range(3)]
    try:
        with edge_in(tmp_path) as edge:
            before = {name: tensor.clone() for name, tensor in edge.student.model.state_dict().items()}
            # The one that is killed has more to do than the others, so that it is killed in its turn.
            sessions = [call(edge, process, i, 200 if i == 1 else 4, tmp_path) for i, process in enumerate(processes)]
            with edge.server.changed:
                assert edge.server.changed.wait_for(lambda: all(one.connected for one in sessions), TIMEOUT_S)
            killer = threading.Thread(target=kill_in_its_turn, args=(sessions[1], processes[1]))
            killer.start()
            turns = [
                ClusterTurn(session=session, cut=1 + i % 2, local_epochs=1, info={"device": str(i)})
                for i, session in enumerate(sessions)
            ]
            outcomes = edge.serve_cluster(turns, info={})
            killer.join()
            assert isinstance(outcomes[1], PeerLostError)
            assert sessions[1].ended_s is None  # it may come back
            for i in (0, 2):
                outcome = outcomes[i]
                assert isinstance(outcome, TurnOutcome)
                assert outcome.num_steps == 4
                assert processes[i].finish_turn()["steps"] == 4
                assert sessions[i].ended_s is not None
            info = edge.student.last_info
            assert [one["device"] for one in info["cluster"]] == ["0", "2"]
            after = edge.student.model.state_dict()
            assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    finally:
        for process in processes:
            process.close()
