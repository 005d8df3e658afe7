"""A session that only reads stands beside the one that trains, of the same edge and task, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.tiers.cloud import CloudService, CloudSetup, TaskSettings, open_cloud
from flwr_splitkd.tiers.edge.chain import CloudAccess, CloudLink
from flwr_splitkd.tiers.edge.chain.question import _open_cloud
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from tiny_llms import VOCAB, tiny_llm

WIDTH, TOKEN = 16, b"0123456789abcdef"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudService]:
    service = open_cloud(
        CloudSetup(
            llm=tiny_llm,
            tasks={"qa": TaskSettings(slm_width=WIDTH)},
            edges={"kitchen": TOKEN},
            state_folder=tmp_path,
            commit_every_steps=1,
        )
    )
    yield service
    service.close()


def link_to(cloud: CloudService, *, reads_only: bool, start: pb.TaskStart = pb.TASK_START_CONTINUE) -> CloudLink:
    access = CloudAccess(
        address=cloud.address, edge="kitchen", token=TOKEN, task="qa", reads_only=reads_only, patience_s=5.0
    )
    link = CloudLink(access, encoder_width=WIDTH)
    try:
        link.open(start)
    except BaseException:
        link.close()
        raise
    return link


def sample(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 5, WIDTH, generator=generator)
    return hidden, torch.ones(2, 5, dtype=torch.int64), torch.randint(3, VOCAB, (2, 3), generator=generator)


def train(cloud: CloudService, between: Callable[[int], None]) -> dict[str, Tensor]:
    """Three steps from the start; `between` is called while a gradient waits."""
    link = link_to(cloud, reads_only=False, start=pb.TASK_START_FRESH)
    try:
        for step in range(3):
            link.differentiate(0, step, *sample(step))
            between(step)
            link.step([(0, step)])
        assert link.num_reopened == 0
        return link.weights()
    finally:
        link.close()


def test_questions_in_the_midst_of_training_change_nothing(cloud: CloudService) -> None:
    hidden, mask, _ = sample(9)
    answers: list[list[list[int]]] = []

    def question(_: int) -> None:
        link = link_to(cloud, reads_only=True)
        try:
            answer = link.evaluate(0, 0, hidden, mask, None, 4)
            assert answer.tokens is not None and answer.num_tokens == 0 and answer.compute_s > 0
            answers.append(answer.tokens.tolist())
        finally:
            link.close()

    alone = train(cloud, lambda _: None)
    beside = train(cloud, question)
    assert len(answers) == 3 and len(answers[0]) == 2
    assert alone.keys() == beside.keys() and all(torch.equal(alone[name], beside[name]) for name in alone)


def test_without_the_field_the_later_session_takes_the_place_of_the_first(cloud: CloudService) -> None:
    first = link_to(cloud, reads_only=False)
    reader = link_to(cloud, reads_only=True)
    second = link_to(cloud, reads_only=False)
    try:
        with pytest.raises(SplitKDError, match="Another process has opened task"):
            first.weights()
        assert second.weights() and second.num_reopened == 0
        assert reader.weights() and reader.num_reopened == 0
    finally:
        for link in (second, first, reader):
            link.close()


@pytest.mark.parametrize("what", ["differentiate", "step", "end_round"])
def test_a_reader_cannot_train_and_its_end_is_nobody_elses(cloud: CloudService, what: str) -> None:
    trainer = link_to(cloud, reads_only=False)
    reader = link_to(cloud, reads_only=True)
    try:
        trainer.differentiate(0, 0, *sample(0))
        before = trainer.weights()
        attempts: dict[str, Callable[[], object]] = {
            "differentiate": partial(reader.differentiate, 0, 1, *sample(1)),
            "step": partial(reader.step, [(0, 0)]),
            "end_round": partial(reader.end_round, "run", 1),
        }
        with pytest.raises(SplitKDError, match=r"sent \w+ to change the module of task 'qa'.*reads_only"):
            attempts[what]()
        after = trainer.weights()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert trainer.step([(0, 0)]).step == 0 and trainer.num_reopened == 0  # its gradient still waited
    finally:
        reader.close()
        trainer.close()


def test_a_reader_cannot_choose_where_the_module_begins(cloud: CloudService) -> None:
    with pytest.raises(SplitKDError, match="sent OpenTask to change the module"):
        link_to(cloud, reads_only=True, start=pb.TASK_START_FRESH)


def test_an_edge_for_one_question_only_reads_whatever_its_access_says(cloud: CloudService) -> None:
    trainer = link_to(cloud, reads_only=False)
    access = CloudAccess(address=cloud.address, edge="kitchen", token=TOKEN, task="qa")
    link = _open_cloud(access, WIDTH)
    try:
        assert link.access.reads_only and not access.reads_only
        assert trainer.weights() and trainer.num_reopened == 0
    finally:
        link.close()
        trainer.close()


def test_what_is_said_of_a_cloud_that_refuses_or_is_not_there(cloud: CloudService) -> None:
    access = CloudAccess(address=cloud.address, edge="kitchen", token=TOKEN, task="poems")
    with pytest.raises(ProtocolError, match=r"The task is 'poems'; expected one of \['qa'\]"):
        _open_cloud(access, WIDTH)
    access = CloudAccess(address="127.0.0.1:1", edge="kitchen", token=TOKEN, task="qa")
    with pytest.raises(PeerLostError, match=r"nobody listens at this address\. Start it with `flwr-splitkd cloud`"):
        _open_cloud(access, WIDTH)
