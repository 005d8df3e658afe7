"""The edge's end against a cloud that a test writes: who waits is answered, whatever comes back, and in whatever order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, DataError, HandshakeError, PeerLostError, ProtocolError, TensorError
from flwr_splitkd.tiers.edge.chain import CloudAccess, CloudLink
from flwr_splitkd.tiers.units import decode_all, encode_all
from flwr_splitkd.wire.cloud_server import CloudServer, CloudSession
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WAIT_S = 10.0
SECRET = b"s" * 32
HIDDEN, MASK, LABELS = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2, dtype=torch.long)
GRADIENT = torch.full((2, 3, 4), 0.5)


class Cloud:
    """Its words are a test's: every session's link comes out of `sessions`."""

    def __init__(self) -> None:
        self._sessions: queue.Queue[CloudSession] = queue.Queue()
        self.server = CloudServer(edges={"edge": SECRET}, check=self.check, grace_period_s=0.3)
        self.server.start(self._sessions.put)
        self.refusal = ""

    def check(self, hello: pb.CloudHello) -> None:
        if self.refusal:
            raise HandshakeError(self.refusal)

    def session(self, next_step: int = 0, start: int = pb.TASK_START_CONTINUE, **opened: Any) -> Link:
        """The next stream, with its task open."""
        link = self._sessions.get(timeout=WAIT_S).link
        opening = link.receive("OpenTask", WAIT_S)
        assert opening.body.start == start
        self.opening = opening
        link.send(pb.TaskOpened(next_step=next_step, vocab_size=96, **opened))
        return link

    def lose(self, link: Link) -> None:
        """As a process that ends: the edge has to dial again, and this side knows nothing of before."""
        link.fail(PeerLostError("the cloud is being shut down"))


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    one = Cloud()
    yield one
    one.server.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    one = ThreadPoolExecutor(8)
    yield one
    one.shutdown(wait=False)  # who waits here still is let go by the link's end


@pytest.fixture
def link(cloud: Cloud) -> Iterator[CloudLink]:
    one = new_link(cloud)
    yield one
    one.close()


def new_link(cloud: Cloud, **changes: Any) -> CloudLink:
    given = {
        "address": cloud.server.address,
        "edge": "edge",
        "token": SECRET,
        "task": "qa",
        "patience_s": 20.0,
        **changes,
    }
    return CloudLink(CloudAccess(**given), encoder_width=4)


def opened(
    cloud: Cloud,
    link: CloudLink,
    pool: ThreadPoolExecutor,
    start: Any = pb.TASK_START_FRESH,
    next_step: int = 0,
    **where: Any,
) -> Link:
    waiting = pool.submit(link.open, start, **where)
    theirs = cloud.session(next_step, start)
    waiting.result(WAIT_S)
    return theirs


def differentiated(link: CloudLink, pool: ThreadPoolExecutor, device: int, step: int) -> Future[Any]:
    return pool.submit(link.differentiate, device, step, HIDDEN, MASK, LABELS)


def answer(theirs: Link, device: int, step: int, gradient: Tensor = GRADIENT, **more: Any) -> None:
    body = pb.IntermediateGradient(device=device, step=step, mode=pb.MODE_TRAIN, loss=step, num_tokens=4, **more)
    theirs.send(body, encode_all({} if "failure" in more else {"gradient": gradient}))


def answered(theirs: Link, device: int, step: int) -> WireMessage:
    """Receive exactly this request, and answer it."""
    message = theirs.receive("Intermediate", WAIT_S)
    assert (message.body.device, message.body.step) == (device, step)
    answer(theirs, device, step)
    return message


def stepped(theirs: Link, step: int) -> pb.PeftStep:
    body: pb.PeftStep = theirs.receive("PeftStep", WAIT_S).body
    assert body.step == step
    theirs.send(pb.PeftStepped(step=step, learning_rate=0.1, grad_norm=step + 1.0))
    return body


def iteration(link: CloudLink, theirs: Link, pool: ThreadPoolExecutor, step: int) -> None:
    waiting = differentiated(link, pool, 0, step)
    answered(theirs, 0, step)
    waiting.result(WAIT_S)
    taking = pool.submit(link.step, [(0, step)])
    stepped(theirs, step)
    assert taking.result(WAIT_S).step == step


def kinds(link: CloudLink) -> list[str]:
    """What would be sent again."""
    return [
        f"{one.body.DESCRIPTOR.name} {one.body.step}" if hasattr(one.body, "step") else one.body.DESCRIPTOR.name
        for one in link._journal
    ]


# ---- opening


def test_opening(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool, pb.TASK_START_ROUND, 7, run="run", server_round=3)
    assert (cloud.opening.body.run, cloud.opening.body.server_round) == ("run", 3)
    assert link.opened.vocab_size == 96
    taking = pool.submit(link.step, [(2, 5), (3, 6)])
    body = stepped(theirs, 7)  # it goes on from where the cloud is
    assert [(one.device, one.step) for one in body.contributions] == [(2, 5), (3, 6)]
    assert taking.result(WAIT_S).grad_norm == 8


def test_opening_with_weights(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    waiting = pool.submit(link.open, pb.TASK_START_GIVEN, state={"weight/x": GRADIENT})
    cloud.session(start=pb.TASK_START_GIVEN)
    waiting.result(WAIT_S)
    assert decode_all(cloud.opening.tensors)["weight/x"].equal(GRADIENT)


def test_refusals_and_absence_come_at_once(cloud: Cloud) -> None:
    cloud.refusal = "no such task"
    with pytest.raises(ProtocolError, match="no such task"):
        new_link(cloud).open(pb.TASK_START_FRESH)
    with pytest.raises(HandshakeError, match="does not know an edge 'edge' with this token"):
        new_link(cloud, token=b"wrong").open(pb.TASK_START_FRESH)
    cloud.server.stop()
    with pytest.raises(PeerLostError, match="Start it with `flwr-splitkd cloud`, or check its address"):
        new_link(cloud).open(pb.TASK_START_FRESH)


def test_the_secret_is_in_no_description() -> None:
    access = CloudAccess(address="a:1", edge="edge", token=SECRET, task="qa", root_certificate=b"pem")
    assert SECRET.decode() not in repr(access) and "pem" not in repr(access)


# ---- answers


def test_answers_in_any_order_find_who_asked(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    waiting = {device: differentiated(link, pool, device, device + 10) for device in range(3)}
    for _ in range(3):
        theirs.receive("Intermediate", WAIT_S)
    for device in (2, 0, 1):
        answer(theirs, device, device + 10, torch.full((2, 3, 4), float(device)))
    for device, future in waiting.items():
        said = future.result(WAIT_S)
        assert said.loss == device + 10 and said.gradient.equal(torch.full((2, 3, 4), float(device)))
    assert all(count > 0 for count in link.bytes)


@pytest.mark.parametrize(
    ("gradient", "error", "pattern"),
    [
        (torch.ones(2, 3, 5), TensorError, r"gradient has shape \(2, 3, 5\); expected \(2, 3, 4\)"),
        (
            torch.full((2, 3, 4), float("inf")),
            ArithmeticError,
            "The cloud's gradient of step 0 of device 0 has 24 of 24",
        ),
    ],
)
def test_gradients_that_cannot_be(
    cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor, gradient: Tensor, error: type[Exception], pattern: str
) -> None:
    theirs = opened(cloud, link, pool)
    waiting = differentiated(link, pool, 0, 0)
    theirs.receive("Intermediate", WAIT_S)
    answer(theirs, 0, 0, gradient)
    with pytest.raises(error, match=pattern):
        waiting.result(WAIT_S)


def test_a_failure_is_one_devices_and_is_not_sent_again(
    cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor
) -> None:
    theirs = opened(cloud, link, pool)
    bad = differentiated(link, pool, 0, 0)
    theirs.receive("Intermediate", WAIT_S)
    answer(theirs, 0, 0, failure=pb.Failure(code=pb.FAILURE_CODE_DATA, message="no tokens"))
    with pytest.raises(DataError, match="The cloud reported: no tokens"):
        bad.result(WAIT_S)
    assert kinds(link) == []
    again = differentiated(link, pool, 0, 0)  # of the same device and step
    answered(theirs, 0, 0)
    assert again.result(WAIT_S).gradient.equal(GRADIENT)


def test_an_answer_that_nobody_asked_for(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    waiting = pool.submit(link.weights)
    theirs.receive("FetchState", WAIT_S)
    theirs.send(pb.PeftStepped(step=3))
    with pytest.raises(ProtocolError, match="The cloud answered PeftStepped to what nobody asked"):
        waiting.result(WAIT_S)
    with pytest.raises(ProtocolError, match="nobody asked"):
        link.weights()


def test_the_same_step_of_a_device_twice(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    """A device that is started again within a round brings its steps again: both count, each in its own iteration."""
    theirs = opened(cloud, link, pool)
    iteration(link, theirs, pool, 0)
    waiting = differentiated(link, pool, 0, 0)
    answered(theirs, 0, 0)
    assert waiting.result(WAIT_S).gradient.equal(GRADIENT)
    theirs.send(pb.Committed(next_step=1))
    evaluating = pool.submit(link.weights)  # by whose answer the commit was heard of
    theirs.receive("FetchState", WAIT_S)
    theirs.send(pb.TaskState())
    evaluating.result(WAIT_S)
    assert kinds(link) == ["Intermediate 0"]  # the second one is in no step yet


# ---- what is kept


def test_what_is_durable_is_not_kept(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    for step in range(3):
        iteration(link, theirs, pool, step)
    assert len(kinds(link)) == 6
    theirs.send(pb.Committed(next_step=2))
    ending = pool.submit(link.end_round, "run", 4)
    assert theirs.receive("EndRound", WAIT_S).body.server_round == 4
    left = ["Intermediate 2", "PeftStep 2", "EndRound"]
    deadline_s = time.monotonic() + WAIT_S
    while kinds(link) != left and time.monotonic() < deadline_s:  # nobody waits for that Committed
        time.sleep(0.005)
    assert kinds(link) == left
    theirs.send(pb.Committed(next_step=3, server_round=4))
    ending.result(WAIT_S)
    assert kinds(link) == []


def test_a_stragglers_batch_is_forgotten_with_its_round(
    cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor
) -> None:
    theirs = opened(cloud, link, pool)
    straggler = differentiated(link, pool, 7, 0)
    answered(theirs, 7, 0)
    straggler.result(WAIT_S)
    ending = pool.submit(link.end_round, "run", 1)
    theirs.receive("EndRound", WAIT_S)
    theirs.send(pb.Committed(next_step=0, server_round=1))
    ending.result(WAIT_S)
    assert kinds(link) == []


def test_a_commit_told_before_the_answer(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    """Another edge of the task may have asked for it."""
    theirs = opened(cloud, link, pool)
    taking = pool.submit(link.step, [(0, 0)])
    theirs.receive("PeftStep", WAIT_S)
    theirs.send(pb.Committed(next_step=1))
    theirs.send(pb.PeftStepped(step=0, grad_norm=2.0))
    assert taking.result(WAIT_S).grad_norm == 2.0


@pytest.mark.parametrize(("run", "server_round"), [("", 1), ("run", 0)])
def test_rounds_without_a_name(cloud: Cloud, link: CloudLink, run: str, server_round: int) -> None:
    with pytest.raises(ConfigError, match=f"Round {server_round} of run '{run}' ends; expected a name"):
        link.end_round(run, server_round)


# ---- the cloud comes back


def test_what_is_not_durable_is_sent_again_in_order(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    for step in range(3):
        iteration(link, theirs, pool, step)
    theirs.send(pb.Committed(next_step=1))
    cloud.lose(theirs)
    theirs = cloud.session(next_step=1)
    waiting = differentiated(link, pool, 0, 3)
    for step in (1, 2):
        answered(theirs, 0, step)
        stepped(theirs, step)
    answered(theirs, 0, 3)
    assert waiting.result(WAIT_S).loss == 3
    assert link.num_reopened == 1


def test_who_waits_gets_the_new_clouds_answer(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    waiting = [differentiated(link, pool, 0, 0), pool.submit(link.weights)]
    for _ in waiting:
        theirs.receive("Intermediate|FetchState", WAIT_S)
    cloud.lose(theirs)
    theirs = cloud.session()
    for _ in waiting:
        if theirs.receive("Intermediate|FetchState", WAIT_S).kind == "Intermediate":
            answer(theirs, 0, 0)
        else:
            theirs.send(pb.TaskState(), encode_all({"weight/x": GRADIENT}))
    assert waiting[0].result(WAIT_S).gradient.equal(GRADIENT)
    assert waiting[1].result(WAIT_S)["x"].equal(GRADIENT)


def test_the_answer_to_a_durable_step_was_lost(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    taking = pool.submit(link.step, [(0, 0)])
    theirs.receive("PeftStep", WAIT_S)
    cloud.lose(theirs)
    cloud.session(next_step=1, last=pb.PeftStepped(step=0, learning_rate=0.5, grad_norm=3.0))
    result = taking.result(WAIT_S)
    assert (result.step, result.learning_rate, result.grad_norm) == (0, 0.5, 3.0)
    assert kinds(link) == []


@pytest.mark.parametrize("next_step", [0, 3])
def test_a_cloud_that_is_another_one(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor, next_step: int) -> None:
    """Behind what it said was durable, or ahead of what was asked for."""
    theirs = opened(cloud, link, pool)
    iteration(link, theirs, pool, 0)
    ending = pool.submit(link.end_round, "run", 1)
    theirs.receive("EndRound", WAIT_S)
    theirs.send(pb.Committed(next_step=1, server_round=1))
    ending.result(WAIT_S)
    cloud.lose(theirs)
    waiting = pool.submit(link.weights)
    cloud.session(next_step)
    with pytest.raises(ProtocolError, match=f"came back at step {next_step} of task 'qa'; expected 1 or what it last"):
        waiting.result(WAIT_S)


def test_refused_when_it_comes_back(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    """For example because its configuration has changed: no use to go on dialling."""
    theirs = opened(cloud, link, pool)
    waiting = pool.submit(link.weights)
    theirs.receive("FetchState", WAIT_S)
    cloud.refusal = "no such task any more"
    cloud.lose(theirs)
    with pytest.raises(ProtocolError, match="no such task any more"):
        waiting.result(WAIT_S)


@pytest.mark.slow
def test_patience_is_of_each_absence(cloud: Cloud, pool: ThreadPoolExecutor) -> None:
    """Two short ones, further apart than the patience, are not one long one."""
    link = new_link(cloud, patience_s=1.5)
    theirs = opened(cloud, link, pool)
    for _ in range(2):
        cloud.lose(theirs)
        theirs = cloud.session()
        time.sleep(1.0)
    assert link.num_reopened == 2
    cloud.server.stop()
    began_s = time.monotonic()
    waiting = [pool.submit(link.weights), differentiated(link, pool, 0, 0)]
    for future in waiting:
        with pytest.raises(PeerLostError):
            future.result(WAIT_S)
    assert 1.0 < time.monotonic() - began_s < 8.0
    link.close()


# ---- the end


def test_close_ends_whoever_waits(cloud: Cloud, link: CloudLink, pool: ThreadPoolExecutor) -> None:
    theirs = opened(cloud, link, pool)
    waiting = [differentiated(link, pool, 0, 0), pool.submit(link.step, [(0, 0)])]
    for _ in waiting:
        theirs.receive("Intermediate|PeftStep", WAIT_S)
    link.close()
    for future in waiting:
        with pytest.raises(PeerLostError):
            future.result(WAIT_S)
    with pytest.raises(PeerLostError):
        link.weights()
    assert not [one for one in threading.enumerate() if one.name == "splitkd-cloud-link"]
    link.close()


def test_close_before_open(cloud: Cloud) -> None:
    link = new_link(cloud)
    link.close()
    with pytest.raises(PeerLostError, match="is closed"):
        link.weights()
