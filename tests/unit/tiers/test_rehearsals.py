"""The teacher for devices that wait: the same training, with the teacher's work done before the turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_turns import Federation, llama, sentences
from torch import Tensor

from flwr_splitkd.errors import PeerLostError, ProtocolError
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers.edge import EdgeTeacher, TurnSettings, teaching
from flwr_splitkd.tiers.edge.pace import Paces
from flwr_splitkd.tiers.edge.rehearsal import Rehearsals
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

SETTINGS = TurnSettings(num_microbatches=2)
SEQUENCE_BYTES = 6 * 16 * 4
"""A sequence's outcome: positions, the teacher's width, bytes of a value."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sequences in each of the teacher's passes."""
    seen: list[int] = []
    outputs = EdgeTeacher.outputs

    def counted(self: EdgeTeacher, data: teaching.TeacherData) -> Tensor:
        seen.append(len(data.embeddings))
        return outputs(self, data)

    monkeypatch.setattr(EdgeTeacher, "outputs", counted)
    yield seen


def federation(folder: Path, room: int = 1 << 20) -> Federation:
    cache = TeacherCache(folder / "teacher-cache", memory_bytes=room, disk_bytes=0)
    return Federation(folder, teacher=llama(20), settings=SETTINGS, cache=cache)


def rehearsals_of(one: Federation) -> Rehearsals:
    teacher, cache = one.objective.teacher, one.cache
    assert teacher is not None and cache is not None
    return Rehearsals(one.objective, teacher, cache, SETTINGS, Paces(SETTINGS, 4))


def session_of(link: Link, hello: pb.Hello) -> Session:
    ticket = new_ticket(run_id=1, node_id=2, server_round=1, expires_s=time.monotonic() + 60)
    return Session(ticket, link=link, hello=hello)


def waits(one: Federation, until: Callable[[], bool]) -> Callable[[Link, pb.Hello], None]:
    """What the edge does before the device's turn: rehearse until there is nothing more to do, or `until` holds."""

    def before(link: Link, hello: pb.Hello) -> None:
        rehearsals, session = rehearsals_of(one), session_of(link, hello)
        due_s = time.monotonic() + 20
        while not until():
            assert time.monotonic() < due_s
            if not rehearsals.work([session]):
                time.sleep(0.001)
        rehearsals.end(session, 20)

    return before


def test_a_turn_finds_what_was_rehearsed_and_trains_the_same(tmp_path: Path, passes: list[int]) -> None:
    plain, waited = federation(tmp_path / "plain"), federation(tmp_path / "waited")
    expected, _ = plain.turn(0, 2, sentences(4))
    assert passes == [1] * 8
    passes.clear()
    cache = waited.cache
    assert cache is not None
    outcome, _ = waited.turn(0, 2, sentences(4), before=waits(waited, lambda: len(cache) == 8))
    assert passes == [1] * 8, "all of it before the turn"
    assert outcome.teacher_s < expected.teacher_s / 4
    assert outcome.loss == expected.loss
    assert all(torch.equal(tensor, plain.weights()[name]) for name, tensor in waited.weights().items())


def test_what_was_not_rehearsed_in_time_is_done_in_the_turn(tmp_path: Path, passes: list[int]) -> None:
    plain, waited = federation(tmp_path / "plain"), federation(tmp_path / "waited")
    plain.turn(0, 2, sentences(4))
    passes.clear()
    waited.turn(0, 2, sentences(4), before=waits(waited, lambda: len(passes) == 3))
    assert passes == [1] * 8
    assert all(torch.equal(tensor, plain.weights()[name]) for name, tensor in waited.weights().items())


def test_the_teacher_s_part_travels_once(tmp_path: Path) -> None:
    plain, waited = federation(tmp_path / "plain"), federation(tmp_path / "waited")
    expected, _ = plain.turn(0, 2, sentences(2))
    assert waited.objective.teacher is not None
    part = sum(t.nbytes for unit in waited.objective.teacher.units.values() for t in unit.values())
    cache = waited.cache
    assert cache is not None
    outcome, _ = waited.turn(0, 2, sentences(2), before=waits(waited, lambda: len(cache) == 4))
    assert outcome.handover_downlink_bytes == expected.handover_downlink_bytes - part + 4 * 16  # and the names


def test_a_full_cache_ends_it_and_nobody_s_outcomes_give_way(tmp_path: Path, passes: list[int]) -> None:
    one = federation(tmp_path, room=3 * SEQUENCE_BYTES)
    cache = one.cache
    assert cache is not None
    cache.put("another", b"1" * 16, torch.zeros(6, 16))
    waited_s = time.monotonic() + 2
    kept: list[list[bytes]] = []

    def until() -> bool:
        if time.monotonic() > waited_s:
            kept.append(cache.names("another"))  # in its own turn the device may take the room
        return bool(kept)

    one.turn(0, 2, sentences(4), before=waits(one, until))
    assert len(kept) == 1 and kept.pop() == [b"1" * 16]
    assert len(passes) == 8


def test_a_device_that_waits_and_breaks_the_protocol_is_let_go_alone(tmp_path: Path) -> None:
    one = federation(tmp_path)
    rehearsals = rehearsals_of(one)
    with connected_links() as (edge, device):
        session = session_of(edge, pb.Hello(device_name="odd"))
        assert rehearsals.work([session])
        assert device.receive("Begin", 5).body.mode == pb.MODE_REHEARSE
        device.send(pb.GradientNorms(step=0, norms=[1.0]))
        due_s = time.monotonic() + 5
        while not edge.has_message and time.monotonic() < due_s:
            time.sleep(0.001)
        assert rehearsals.work([session]), "something was done: it was told off"
        with pytest.raises(ProtocolError, match="sent GradientNorms; expected TeacherData"):
            device.receive("Backward", 5)
        assert not rehearsals.work([session])
        rehearsals.end(session, 1)


def test_a_device_that_goes_while_it_waits_harms_nobody(tmp_path: Path) -> None:
    one = federation(tmp_path)
    rehearsals = rehearsals_of(one)
    with connected_links() as (edge, device):
        session = session_of(edge, pb.Hello(device_name="gone"))
        assert rehearsals.work([session])
        device.fail(PeerLostError("its battery is empty"))
        due_s = time.monotonic() + 5
        while edge.error is None and time.monotonic() < due_s:
            time.sleep(0.001)
        rehearsals.work([session])
        assert not rehearsals.work([session])
