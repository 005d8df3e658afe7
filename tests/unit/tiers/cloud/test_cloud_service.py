"""The service behind its protocol: what an edge may ask for, in which order, and that one's mistakes are its own."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, HandshakeError, PeerLostError, ProtocolError, SplitKDError
from flwr_splitkd.models import SerialAdapterConfig
from flwr_splitkd.tiers.cloud import CloudService, CloudSetup, CloudTask, TaskSettings, open_cloud
from flwr_splitkd.tiers.cloud.served import ServedTask
from flwr_splitkd.tiers.cloud.store import TaskStore
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.tiers.units import decode_all, encode_all
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from tiny_llms import VOCAB, tiny_llm

SLM, WAIT_S = 24, 20.0
MASK, LABELS = torch.ones(2, 5, dtype=torch.long), torch.tensor([[5, 6, 7], [8, 9, -100]])
SECRETS = {"north": b"n" * 32, "south": b"s" * 32}
SETTINGS = TaskSettings(
    slm_width=SLM, peft=SerialAdapterConfig(bottleneck=4), optimizer=OptimizerSettings(learning_rate=1e-2)
)


def setup(folder: Path, **changes: Any) -> CloudSetup:
    given = {
        "llm": partial(tiny_llm, "gpt2"),
        "tasks": {"qa": SETTINGS, "own": SETTINGS},
        "task_edges": {"own": frozenset({"south"})},
        "edges": SECRETS,
        "state_folder": folder,
        "commit_every_steps": 2,
        "grace_period_s": 0.5,
        **changes,
    }
    return CloudSetup(**given)  # type: ignore[arg-type]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[CloudService]:
    one = open_cloud(setup(tmp_path))
    yield one
    one.close()


def hidden(step: int = 0, device: int = 0) -> Tensor:
    return torch.randn(2, 5, SLM, generator=torch.Generator().manual_seed(100 * device + step))


class Edge:
    """An edge that says what a test wants it to say."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def open(self, start: int = pb.TASK_START_FRESH, state: Any = None, **where: Any) -> pb.TaskOpened:
        self.link.send(pb.OpenTask(start=start, **where), encode_all(state or {}))  # type: ignore[arg-type]
        opened: pb.TaskOpened = self.link.receive("TaskOpened", WAIT_S).body
        return opened

    def ask(
        self, step: int = 0, device: int = 0, mode: int = pb.MODE_TRAIN, tokens: int = 0, **changes: Any
    ) -> WireMessage:
        given = {"hidden": hidden(step, device), "mask": MASK, "labels": LABELS, **changes}
        tensors = encode_all({name: tensor for name, tensor in given.items() if tensor is not None})
        body = pb.Intermediate(mode=mode, device=device, step=step, max_new_tokens=tokens)  # type: ignore[arg-type]
        self.link.send(body, tensors)
        while (message := self.link.receive("IntermediateGradient|Committed", WAIT_S)).kind != "IntermediateGradient":
            pass
        return message

    def step(self, step: int, *keys: tuple[int, int]) -> pb.PeftStepped:
        self.link.send(pb.PeftStep(step=step, contributions=[pb.Contribution(device=d, step=s) for d, s in keys]))
        while (message := self.link.receive("PeftStepped|Committed", WAIT_S)).kind != "PeftStepped":
            pass
        stepped: pb.PeftStepped = message.body
        return stepped

    def weights(self) -> dict[str, Tensor]:
        self.link.send(pb.FetchState())
        while (message := self.link.receive("TaskState|Committed", WAIT_S)).kind != "TaskState":
            pass
        return decode_all(message.tensors)


@contextlib.contextmanager
def dialled(service: CloudService, edge: str = "north", task: str = "qa", **changes: Any) -> Iterator[Edge]:
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "session_id": str(time.monotonic_ns()),
        "edge": edge,
        "token": SECRETS[edge],
        "task": task,
        "encoder_width": SLM,
        "codecs": supported_codecs(),
        "link_id": str(time.monotonic_ns()),
        **changes,
    }
    with connect(service.address, pb.CloudHello(**fields)) as link:
        yield Edge(link)


def fails(
    service: CloudService, pattern: str, say: Callable[[Edge], object], kind: type[Exception] = ProtocolError
) -> None:
    """What an edge says is refused with these words, its stream ends, and others are served as before."""
    with dialled(service) as edge:
        edge.open()
        before = edge.weights()
        with pytest.raises(kind, match=pattern):
            say(edge)
            edge.link.receive("nothing", WAIT_S)
    with dialled(service) as edge:
        edge.open(pb.TASK_START_CONTINUE)
        after = edge.weights()
    assert all(torch.equal(after[name], before[name]) for name in before)


# ---- the handshake


@pytest.mark.parametrize(
    ("edge", "changes", "pattern"),
    [
        ("north", {"task": "other"}, r"The task is 'other'; expected one of \['qa'\]"),
        ("north", {"task": "own"}, r"The task is 'own'; expected one of \['qa'\]\. .*let this edge use it"),
        ("south", {"encoder_width": 25}, "output is 25 wide; expected 24, as task 'qa' is configured"),
        ("south", {"token": b"wrong"}, "does not know an edge 'south' with this token"),
    ],
)
def test_refused(service: CloudService, edge: str, changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises((HandshakeError, ProtocolError), match=pattern):
        with dialled(service, edge, **changes):
            pytest.fail("it was let in")


def test_a_task_of_its_own(service: CloudService) -> None:
    with dialled(service, "south", "own") as edge:
        opened = edge.open()
        assert (opened.next_step, opened.vocab_size, opened.HasField("last")) == (0, VOCAB, False)


# ---- what ends a stream


def test_an_opening_of_no_kind(service: CloudService) -> None:
    with (
        dialled(service) as edge,
        pytest.raises(ProtocolError, match="opens its task with the start 0; expected 1 to 4"),
    ):
        edge.open(pb.TASK_START_UNSPECIFIED)


def test_steps_out_of_order(service: CloudService) -> None:
    for step in (1, 7):
        fails(
            service,
            f"asks for step {step}; expected 0. Nothing was applied",
            lambda edge, step=step: edge.step(step, (0, 0)),
        )


def test_a_step_that_was_taken(service: CloudService) -> None:
    with dialled(service) as edge:
        edge.open()
        edge.ask(0)
        edge.step(0, (0, 0))
        taken = edge.weights()
        with pytest.raises(ProtocolError, match="asks for step 0; expected 1"):
            edge.step(0, (0, 0))
    with dialled(service) as edge:
        assert edge.open(pb.TASK_START_CONTINUE).next_step == 1
        assert all(torch.equal(tensor, taken[name]) for name, tensor in edge.weights().items())


def test_contributions_that_do_not_wait(service: CloudService) -> None:
    fails(service, "names device 3's step 0; expected", lambda edge: edge.step(0, (3, 0)))
    fails(service, "expected at least one key", lambda edge: edge.step(0))
    fails(service, "each once", lambda edge: (edge.ask(0), edge.step(0, (0, 0), (0, 0))))


def test_another_edges_contributions(service: CloudService) -> None:
    with dialled(service, "south") as south:
        south.open()
        south.ask(0)
        with dialled(service) as edge:
            edge.open(pb.TASK_START_CONTINUE)
            with pytest.raises(ProtocolError, match="names device 0's step 0; expected"):
                edge.step(0, (0, 0))
        assert south.step(0, (0, 0)).step == 0


def test_devices_beyond_the_bits_that_keep_edges_apart(service: CloudService) -> None:
    fails(service, f"names device {1 << 32}; expected below {1 << 32}", lambda edge: edge.ask(device=1 << 32))


def test_rounds_without_a_name(service: CloudService) -> None:
    fails(service, "ends round 1 of run ''; expected a name", lambda edge: edge.link.send(pb.EndRound(server_round=1)))
    fails(service, "ends round 0 of run 'r'", lambda edge: edge.link.send(pb.EndRound(run="r")))


def test_given_states_that_do_not_fit(service: CloudService) -> None:
    for state, pattern in (
        ({"weight/stranger": torch.ones(1)}, "stranger"),
        ({"weight/projection.bias": torch.ones(1)}, r"shape \(1,\)"),
        ({"weight/projection.bias": torch.full((32,), float("nan"))}, "projection.bias"),
    ):
        with dialled(service) as edge, pytest.raises(SplitKDError, match=pattern):
            edge.open(pb.TASK_START_GIVEN, state)


# ---- what fails one device


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"hidden": torch.randn(2, 5, SLM + 1)},
            f"shape .2, 5, {SLM + 1}.; expected floats of shape .batch, positions, {SLM}",
        ),
        (
            {"hidden": torch.full((2, 5, SLM), float("nan"))},
            "`hidden` has 240 of 240 values NaN or infinite; expected none",
        ),
        ({"hidden": torch.ones(2, 5, SLM, dtype=torch.long)}, "`hidden` is torch.int64"),
        ({"hidden": torch.randn(0, 5, SLM)}, "batch of at least 1"),
        ({"hidden": None}, "expected 'hidden' as well"),
        ({"mask": torch.ones(2, 4, dtype=torch.long)}, "`mask` is torch.int64 of shape"),
        ({"labels": torch.full((2, 3), VOCAB)}, f"`labels` has the token {VOCAB}; expected 0..{VOCAB - 1}"),
        ({"labels": torch.full((2, 3), -7)}, "`labels` has the token -7"),
        ({"labels": torch.ones(3, 3, dtype=torch.long)}, "`labels` has 3 rows; expected 2"),
        ({"labels": None}, "expected 'labels' as well"),
        ({"mode": pb.MODE_DELIVER}, "mode 3; expected to train or to evaluate"),
        ({"mode": pb.MODE_EVALUATE, "tokens": 1 << 31}, f"`max_new_tokens` is {1 << 31}; expected at most 4096"),
        (
            {"hidden": torch.randn(2, 99, SLM), "mask": torch.ones(2, 99, dtype=torch.long)},
            "103 positions long; expected at",
        ),
    ],
)
def test_one_devices_data(service: CloudService, changes: dict[str, Any], pattern: str) -> None:
    with dialled(service) as edge:
        edge.open()
        edge.ask(0, device=0)
        answer = edge.ask(0, device=1, **changes)
        assert (answer.body.device, answer.body.step, answer.tensors) == (1, 0, {})
        assert answer.body.HasField("failure")

        assert re.search(pattern, answer.body.failure.message), answer.body.failure.message
        assert "gradient" in edge.ask(0, device=2).tensors
        assert edge.step(0, (0, 0), (2, 0)).grad_norm > 0
        assert "gradient" in edge.ask(1, device=1).tensors  # its next batch


def test_what_nobody_foresaw(
    service: CloudService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch for which the memory does not suffice is no reason to cut everybody off."""

    def no_memory(*_args: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 7 TiB")

    with dialled(service) as edge:
        edge.open()
        with monkeypatch.context() as context:
            context.setattr(CloudTask, "_backward", no_memory)
            failure = edge.ask(0).body.failure
        assert (failure.code, failure.message) == (
            pb.FAILURE_CODE_INTERNAL,
            "OutOfMemoryError: tried to allocate 7 TiB",
        )
        assert "Task qa: device 0 of edge north" in caplog.text
        assert not edge.ask(0).body.HasField("failure")
        assert edge.step(0, (0, 0)).grad_norm > 0


def test_two_gradients_under_one_key(service: CloudService) -> None:
    with dialled(service) as edge:
        edge.open()
        edge.ask(0)
        assert "gradient of device 0's step 0 waits already" in edge.ask(0).body.failure.message
        edge.step(0, (0, 0))
        assert not edge.ask(0).body.HasField("failure")


def test_gradients_that_no_step_names_have_a_bound(service: CloudService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr_splitkd.tiers.cloud.service._MOST_PENDING", 3)
    with dialled(service) as edge, dialled(service, "south") as south:
        edge.open()
        south.open(pb.TASK_START_CONTINUE)
        failures = [edge.ask(step).body.HasField("failure") for step in range(4)]
        assert failures == [False, False, False, True]
        assert not south.ask(0).body.HasField("failure")
        edge.link.send(pb.EndRound(run="run", server_round=1))  # which forgets them
        edge.link.receive("Committed", WAIT_S)
        edge.link.receive("Committed", WAIT_S)
        assert not edge.ask(0).body.HasField("failure")


# ---- several edges of one task


def test_commits_tell_each_edge_what_is_durable_of_its_own(service: CloudService) -> None:
    with dialled(service) as north, dialled(service, "south") as south:
        north.open()
        south.open(pb.TASK_START_CONTINUE)
        north.ask(0)
        assert north.step(0, (0, 0)).step == 0
        south.ask(0)
        assert south.step(0, (0, 0)).step == 0  # the task's second step, and with it a commit
        for edge in (north, south):
            told = edge.link.receive("Committed", WAIT_S).body
            assert (told.next_step, told.server_round) == (1, 0)


def test_the_newest_steps_answer_is_told_again(service: CloudService) -> None:
    with dialled(service) as edge:
        edge.open()
        edge.ask(0)
        stepped = edge.step(0, (0, 0))
    with dialled(service) as edge:
        opened = edge.open(pb.TASK_START_CONTINUE)
        assert opened.last == stepped and opened.next_step == 1


def test_the_one_that_comes_next_waits_for_the_one_before(
    service: CloudService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last request may still be at work: the gradients of both have the same names."""
    at_work, go = threading.Event(), threading.Event()
    differentiate = CloudTask.differentiate

    def slow(task: CloudTask, *args: Any, **kwargs: Any) -> Any:
        at_work.set()
        assert go.wait(WAIT_S)
        return differentiate(task, *args, **kwargs)

    monkeypatch.setattr(CloudTask, "differentiate", slow)
    with ThreadPoolExecutor(1) as pool:
        with dialled(service) as edge:
            edge.open()
            first = pool.submit(edge.ask, 0)
            assert at_work.wait(WAIT_S)
            with dialled(service) as again:
                timer = threading.Timer(0.3, go.set)
                timer.start()
                again.open(pb.TASK_START_CONTINUE)
                assert go.is_set() and service._tasks["qa"].task.pending == ()
                assert not again.ask(0).body.HasField("failure")
                assert again.step(0, (0, 0)).step == 0
            with pytest.raises(HandshakeError, match="Another process"):
                first.result(WAIT_S)


# ---- the end


def test_close_makes_steps_durable_and_tells_the_edges(tmp_path: Path) -> None:
    service = open_cloud(setup(tmp_path, commit_every_steps=100))
    with dialled(service) as edge:
        edge.open()
        edge.ask(0)
        edge.step(0, (0, 0))
        weights = edge.weights()
        service.close()
        with pytest.raises(PeerLostError, match="The cloud is being shut down"):
            edge.link.receive("Committed", WAIT_S)
    latest = TaskStore(tmp_path / "qa").latest()
    assert latest is not None and latest[1]["iterations"] == {"north": 1}
    assert all(torch.equal(latest[0][name], tensor) for name, tensor in weights.items())


def test_secrets_are_in_no_log(service: CloudService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    test_a_task_of_its_own(service)
    with pytest.raises(HandshakeError):
        with dialled(service, token=b"almost" + SECRETS["north"]):
            pytest.fail("it was let in")
    assert "opened task own" in caplog.text
    assert not any(secret.decode() in caplog.text for secret in SECRETS.values())


def test_commits_of_no_steps(tmp_path: Path) -> None:
    task: Any = None
    with pytest.raises(ConfigError, match="`commit_every_steps` is 0; expected at least 1"):
        ServedTask(task=task, store=TaskStore(tmp_path), commit_every_steps=0)
