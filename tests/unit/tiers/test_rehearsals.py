"""The teacher for devices that wait: the same training, with the teacher's work done before the turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_turns import Federation, llama, sentences
from torch import Tensor

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers.edge import EdgeTeacher, TurnSettings, teaching
from flwr_splitkd.tiers.edge.pace import Paces
from flwr_splitkd.tiers.edge.rehearsal import Rehearsals
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.wire.codec import encode
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

SETTINGS = TurnSettings(num_microbatches=2)
WIDTH = 20
SEQUENCE_BYTES = 6 * WIDTH * 4
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


def test_a_device_that_has_no_more_says_so(tmp_path: Path) -> None:
    """The edge asks nothing more of it then, and its turn begins at once."""
    one = federation(tmp_path)
    ended_s = time.monotonic() + 1
    _, report = one.turn(0, 2, sentences(2), before=waits(one, lambda: time.monotonic() > ended_s))
    assert report is not None and report.num_steps == 2


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
    cache.put("another", b"1" * 16, torch.zeros(6, WIDTH))
    waited_s = time.monotonic() + 2
    kept: list[list[bytes]] = []

    def until() -> bool:
        if time.monotonic() > waited_s:
            kept.append(cache.names("another"))  # in its own turn the device may take the room
        return bool(kept)

    one.turn(0, 2, sentences(4), before=waits(one, until))
    assert len(kept) == 1 and kept.pop() == [b"1" * 16]
    assert len(passes) == 8 + 1, "the one that found no room is done again"


def lies(one: Federation, *messages: dict[str, Tensor], num_batches: int = 9) -> SplitKDError:
    """How a waiting device ends that sends these tensors, one message after each answer."""
    rehearsals = rehearsals_of(one)
    with connected_links() as (edge, device):
        session = session_of(edge, pb.Hello(device_name="odd", num_batches=num_batches))
        assert rehearsals.work([session])
        device.receive("Begin", 5)
        for number, tensors in enumerate(messages):
            device.send(pb.TeacherData(step=number), {name: encode(tensor) for name, tensor in tensors.items()})
            assert edge.wait_message(5)
            assert rehearsals.work([session])
            try:
                device.receive("Backward", 5)
            except SplitKDError as error:
                assert edge.error is not None and not rehearsals.work([session])
                return error
    raise AssertionError("it was let through")


def data_of(rows: list[int], names: int, positions: int = 6) -> dict[str, Tensor]:
    keys = torch.arange(16 * names, dtype=torch.uint8).reshape(names, 16)
    return {
        "keys": keys,
        "rows": torch.tensor(rows, dtype=torch.int64),
        "embeddings": torch.ones(len(rows), positions, WIDTH),
        "inputs/attention_mask": torch.ones(len(rows), positions, dtype=torch.int64),
    }


def test_what_is_wrong_with_a_waiting_device_stays_its_own(tmp_path: Path) -> None:
    one = federation(tmp_path)
    assert isinstance(lies(one, data_of([3], 1)), ProtocolError)
    wrong_width = {**data_of([0], 1), "embeddings": torch.ones(1, 6, 5)}
    assert "do not go through the teacher" in str(lies(one, wrong_width))
    assert isinstance(
        lies(one, {**data_of([0], 1), "embeddings": torch.full((1, 6, WIDTH), float("nan"))}), SplitKDError
    )


def test_no_more_than_a_pass_over_its_data_is_rehearsed(tmp_path: Path) -> None:
    error = lies(federation(tmp_path), *[data_of([0], 1)] * 4, num_batches=1)
    assert "more than its Hello told of" in str(error)


def test_names_of_sequences_that_are_not_kept_are_no_harm_before_the_turn(tmp_path: Path, passes: list[int]) -> None:
    """Only what is sent is looked at: of what is named beside it, nothing is needed yet."""
    one = federation(tmp_path)
    assert isinstance(lies(one, data_of([0], 1), data_of([1], 3, positions=4), data_of([7], 1)), ProtocolError)
    assert passes == [1, 1]


def test_nobody_waits_longer_than_told_for_what_a_device_owes(tmp_path: Path) -> None:
    rehearsals = rehearsals_of(federation(tmp_path))
    with connected_links() as (edge, device):
        session = session_of(edge, pb.Hello(device_name="slow", num_batches=1))
        assert rehearsals.work([session])
        device.receive("Begin", 5)
        with pytest.raises(PeerLostError, match="has not sent the rest .* after 0.2 s"):
            rehearsals.end(session, 0.2)


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
