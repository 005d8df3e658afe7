"""Rounds over a grid and an edge that answer at once: who is called when, and what is written down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from recorded_runs import outcome
from torch import nn

from flwr_splitkd import SplitKD
from flwr_splitkd.errors import ConfigError, InfeasibleError, NoDeviceError, PeerLostError
from flwr_splitkd.schedulers import DeviceView, RandomOrder
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies import split_kd
from flwr_splitkd.strategies.callbacks import Callbacks
from flwr_splitkd.strategies.progress import Progress
from flwr_splitkd.strategies.result import SplitKDResult
from flwr_splitkd.strategies.rounds import RoundRunner
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

NODES = [1, 2, 3]


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> None:
    # Flower's own cannot be made outside a run.
    monkeypatch.setattr(split_kd, "Message", lambda **fields: SimpleNamespace(**fields))


class _Federation:
    """A grid and an edge in one, whose devices connect at once; writes down what happened in which order.

    Parameters
    ----------
    failing
        Nodes whose turn fails.
    replies_after
        What happens before Flower has replies; they are there at once when empty.
    """

    def __init__(self, folder: Path, *, failing: Iterable[int] = (), replies_after: str = "", **settings: Any) -> None:
        self.events: list[str] = []
        self.replies_after = replies_after
        self.online, self.failing = list(NODES), set(failing)
        self.run = SimpleNamespace(run_id=7)
        self.server = SimpleNamespace(
            address="127.0.0.1:1", root_certificate=b"", changed=threading.Condition(), end=lambda session: None
        )
        self.student = SimpleNamespace(layout=SimpleNamespace(num_blocks=4), last_commit="000000")
        self._sessions: dict[int, Session] = {}
        self.strategy = SplitKD(student=lambda: nn.Identity(), **settings)
        self.strategy._edge = self  # type: ignore[assignment]
        self.progress = self.strategy._progress = Progress(run="7")
        self.rounds = RoundRunner(
            self.strategy,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            SplitKDResult(),
            RunFolder(folder),
            Callbacks(()),
            self.progress,
            timeout_s=1.0,
        )

    def train(self, server_round: int, *, call_ahead: bool = True) -> list[str]:
        """Serve a round and end it; return what happened."""
        self.events.clear()
        self.rounds.train(server_round, ConfigRecord(), call_ahead=call_ahead)
        self.progress.round_done = True
        return list(self.events)

    # ---- the grid

    def get_node_ids(self) -> list[int]:
        return self.online

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        (message,) = messages
        node_id = message.dst_node_id
        server_round = message.content["config"]["server-round"]
        self.events.append(f"call {node_id} for round {server_round}")
        link = Link(peer=f"device {node_id}")
        Stream(pb.DownlinkFrame, peer=link.peer).attach(link)
        session = self._sessions[node_id]
        session.hello, session.link = pb.Hello(device_name=str(node_id), num_batches=1, num_examples=1), link
        return [f"message {node_id}"]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        if self.replies_after not in ("", *self.events):
            return []
        self.events += [f"reply of {message.split()[1]}" for message in message_ids]
        return [
            SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=i), has_error=lambda: True, error=_Said())
            for i in message_ids
        ]

    # ---- the edge

    def expect(self, *, run_id: int, node_id: int, server_round: int) -> Session:
        fields = {"run_id": run_id, "node_id": node_id, "server_round": server_round}
        self._sessions[node_id] = Session(Ticket(session_id=str(node_id), token=b"t", expires_s=1e9, **fields))
        return self._sessions[node_id]

    def serve(self, session: Session, **_: Any) -> Any:
        self.events.append(f"serve {session.ticket.node_id}")
        session.ended_s = 0.0
        if session.ticket.node_id in self.failing:
            raise PeerLostError("it broke")
        return outcome(1)

    def dismiss(self, session: Session, reason: str) -> None:
        session.ended_s = 0.0
        self.events.append(f"dismiss {session.ticket.node_id}: {reason}")


class _Said:
    reason = "a reply without metrics is enough here"


def test_each_turn_tells_when_it_began(tmp_path: Path) -> None:
    federation = _Federation(tmp_path, failing=[2])
    serve = federation.serve

    def take(session: Session, **settings: Any) -> Any:
        time.sleep(0.05)
        return serve(session, **settings)

    federation.serve = take  # type: ignore[method-assign]
    federation.train(1)
    federation.train(2)
    turns = list(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert [turn["node_id"] for turn in turns] == [1, 2, 3, 1, 2, 3]
    began_s = [turn["started_s"] for turn in turns if "error" not in turn]
    assert [later - earlier > 0.09 for earlier, later in pairwise(began_s)] == [True, False, True]
    assert all(later - earlier > 0.04 for earlier, later in pairwise(began_s))


def test_replies_are_taken_as_they_come(tmp_path: Path) -> None:
    """Flower keeps whatever is not, and its simulation looks through all of that for every node."""
    events = _Federation(tmp_path).train(1, call_ahead=False)
    assert [event for event in events if not event.startswith("call")] == [
        *("serve 1", "reply of 1", "serve 2", "reply of 2", "serve 3", "reply of 3")
    ]


def test_the_next_round_is_called_before_replies_are_awaited(tmp_path: Path) -> None:
    federation = _Federation(tmp_path, replies_after="call 2 for round 2")
    first = federation.train(1)
    replies = ["reply of 1", "reply of 2", "reply of 3"]
    assert first[-6:] == ["serve 3", "call 1 for round 2", "call 2 for round 2", *replies]
    federation.replies_after = "serve 3"
    second = federation.train(2, call_ahead=False)
    assert second == ["serve 1", "call 3 for round 2", "serve 2", "serve 3", *replies]


def test_nobody_is_called_ahead_of_the_last_round_or_of_an_evaluation_on_devices(tmp_path: Path) -> None:
    assert _Federation(tmp_path / "last").train(1, call_ahead=False)[-2:] == ["serve 3", "reply of 3"]
    evaluating = _Federation(tmp_path / "evaluating", fraction_evaluate=0.5)
    assert evaluating.train(1)[-2:] == ["serve 3", "reply of 3"]


def test_nobody_is_called_ahead_while_too_few_are_there(tmp_path: Path) -> None:
    federation = _Federation(tmp_path, min_available_nodes=3)
    serve = federation.serve

    def leave(session: Session, **settings: Any) -> Any:
        federation.online = [1, 2]
        return serve(session, **settings)

    federation.serve = leave  # type: ignore[method-assign]
    assert federation.train(1)[-2:] == ["serve 3", "reply of 3"]


def test_nobody_is_called_ahead_when_the_round_came_to_nothing(tmp_path: Path) -> None:
    federation = _Federation(tmp_path, failing=NODES)
    with pytest.raises(NoDeviceError, match="Round 1 had 3 turns and completed 0"):
        federation.train(1)
    assert not any("round 2" in event for event in federation.events)


def test_the_round_is_not_over_because_the_next_one_was_called(tmp_path: Path) -> None:
    federation = _Federation(tmp_path)
    federation.rounds.train(1, ConfigRecord(), call_ahead=True)
    progress = federation.progress
    assert (progress.server_round, progress.order, list(progress.served)) == (1, NODES, NODES)
    assert progress.next_order == NODES
    progress.round_done = True
    federation.rounds.train(2, ConfigRecord())
    assert (progress.server_round, list(progress.served), progress.next_order) == (2, NODES, [])
    assert progress.turns_taken == dict.fromkeys(NODES, 2)


def test_who_was_called_for_a_round_that_does_not_take_place_is_sent_away(tmp_path: Path) -> None:
    federation = _Federation(tmp_path)
    federation.train(1)
    federation.events.clear()
    federation.rounds.call_off("the run stops")
    federation.rounds.call_off("the run stops")
    assert federation.events == ["dismiss 1: the run stops", "dismiss 2: the run stops"]


def test_a_resumed_run_calls_those_who_were_chosen_ahead(tmp_path: Path) -> None:
    """The random order of a round is drawn once, also if the run was resumed after that."""

    def federation(name: str, seed: int) -> _Federation:
        return _Federation(tmp_path / name, selection=RandomOrder(np.random.default_rng(seed)))

    before = federation("before", 3)
    before.train(1)
    committed = json.loads(json.dumps(before.strategy.remember().to_json()))
    resumed = federation("resumed", 4)
    resumed.strategy._progress = resumed.rounds._progress = Progress.from_commit({"progress": committed}, run="7")
    resumed.strategy._progress.restore_policies(resumed.strategy._policies())
    for server_round in (2, 3):
        orders = []
        for one in (before, resumed):
            one.rounds.train(server_round, ConfigRecord(), call_ahead=True)
            one.strategy._progress.round_done = True
            orders.append([event for event in one.events if event.startswith("serve")][-3:])
        assert orders[0] == orders[1]


class _NotOnTwo:
    """A policy for which device 2 is too small."""

    min_cut = 2

    def choose(self, device: DeviceView) -> int:
        if device.node_id == 2:
            raise InfeasibleError("device 2 has 1 GiB of memory; expected 2 GiB")
        return 1


def test_a_round_goes_on_without_a_device_that_cannot_take_its_turn(tmp_path: Path) -> None:
    federation = _Federation(tmp_path, cut=_NotOnTwo())
    federation.train(1, call_ahead=False)
    served = [event for event in federation.events if event.startswith(("serve", "dismiss"))]
    reason = "the device is left out of round 1: device 2 has 1 GiB of memory; expected 2 GiB"
    assert served == ["serve 1", f"dismiss 2: {reason}", "serve 3"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("error", "") for line in lines] == ["", "device 2 has 1 GiB of memory; expected 2 GiB", ""]
    assert federation.progress.turns_taken == {1: 1, 3: 1}


class _Nobody:
    """A policy that leaves everyone out."""

    def order(self, candidates: Any, num_turns: int, server_round: int) -> list[int]:
        return []


def test_a_round_without_anybody_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoDeviceError, match="_Nobody chose none of 3 devices for round 1; expected at least 1"):
        _Federation(tmp_path, selection=_Nobody()).train(1, call_ahead=False)


def test_evaluation_asks_those_too_that_cannot_train(tmp_path: Path) -> None:
    federation = _Federation(tmp_path, cut=_NotOnTwo(), fraction_evaluate=1.0)
    cuts: list[int] = []
    serve = federation.serve
    federation.serve = lambda session, **plan: cuts.append(plan["cut"]) or serve(session, **plan)  # type: ignore[method-assign,func-returns-value]
    federation.rounds.evaluate(1, ConfigRecord())
    assert cuts == [1, 2, 1]  # never below the policy's privacy floor
    assert [event for event in federation.events if event.startswith(("serve", "dismiss"))] == [
        "serve 1",
        "serve 2",
        "serve 3",
    ]


# ---- clusters


class _Clustered(_Federation):
    """A federation whose edge serves clusters."""

    def serve_cluster(self, turns: Any, *, info: Any, run: str) -> list[Any]:
        nodes = [turn.session.ticket.node_id for turn in turns]
        self.events.append(f"serve {nodes}")
        self.info = info
        for turn in turns:
            assert turn.info == {"node_id": turn.session.ticket.node_id, "device": str(turn.session.ticket.node_id)}
            turn.session.ended_s = 0.0
        return [PeerLostError("it broke") if node in self.failing else outcome(1) for node in nodes]


def test_a_round_of_clusters(tmp_path: Path) -> None:
    federation = _Clustered(tmp_path, cluster_size=2)
    served = [event for event in federation.train(1) if event.startswith("serve")]
    assert served == ["serve [1, 2]", "serve [3]"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["turn"], line["node_id"]) for line in lines] == [(1, 1), (2, 2), (3, 3)]
    assert lines[0]["started_s"] == lines[1]["started_s"] < lines[2]["started_s"]
    assert federation.progress.turns_taken == dict.fromkeys(NODES, 1)


def test_who_is_lost_in_a_cluster_has_had_no_turn(tmp_path: Path) -> None:
    federation = _Clustered(tmp_path, cluster_size=3, failing=[2])
    federation.train(1, call_ahead=False)
    assert list(federation.progress.served) == [1, 3]
    errors = [json.loads(line).get("error") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert errors == [None, "it broke", None]


def test_a_device_that_cannot_take_its_turn_is_left_out_of_its_cluster(tmp_path: Path) -> None:
    federation = _Clustered(tmp_path, cluster_size=3, cut=_NotOnTwo())
    served = [event for event in federation.train(1, call_ahead=False) if event.startswith(("serve", "dismiss"))]
    assert served == [
        "dismiss 2: the device is left out of round 1: device 2 has 1 GiB of memory; expected 2 GiB",
        "serve [1, 3]",
    ]


def test_a_resumed_run_knows_who_was_in_the_last_cluster(tmp_path: Path) -> None:
    federation = _Clustered(tmp_path, cluster_size=2)
    federation.online = [1, 2, 3]
    federation.rounds.train(1, ConfigRecord(), call_ahead=False)
    info = {**federation.info, "cluster": [{"node_id": 3, "device": "3"}]}
    progress = Progress.from_commit(json.loads(json.dumps(info)), run="7")
    assert progress.served == {1: "1", 2: "2", 3: "3"}
    assert progress.turns_taken == dict.fromkeys(NODES, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster_size": 0}, "`cluster_size` is 0; expected at least 1"),
        ({"cluster_size": 2, "commit_every_steps": 5}, "`commit_every_steps` is 5 and `cluster_size` 2; expected 0"),
    ],
)
def test_settings_of_clusters_are_checked(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SplitKD(student=nn.Identity, **settings)
