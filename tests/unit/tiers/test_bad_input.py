"""Bad input in a turn: a clear error on both sides, the student as it was, and the next turn as if nothing had happened."""

from __future__ import annotations

import functools
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.clients import SplitKDClient
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import (
    CutError,
    DataError,
    HandshakeError,
    NonFiniteError,
    PeerLostError,
    ProtocolError,
    SplitKDError,
    TensorError,
)
from flwr_splitkd.models import build_skeleton, fingerprint
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import CommitLog, DeviceCache, tensor_file
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers import device as device_tier
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.edge import EdgeService, EdgeStudent, EdgeTeacher, Objective, TurnPlan, TurnSettings, run_turn
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import decode, encode, supported_codecs
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import DataPlaneServer, Session
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

CPU = torch.device("cpu")
VOCAB, LAYERS, CUT = 40, 4, 2
Tensors = dict[str, EncodedTensor]
Meddle = Callable[[Any, Tensors], Iterable[tuple[Any, Tensors]]]
"""What is sent instead of a message: bodies with their tensors."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no waiting for the disk; that commits are durable is the store's own tests' business."""
    monkeypatch.setattr(tensor_file, "_sync", lambda path: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def _batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, VOCAB, (count, 2, 6), generator=generator)
    return [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one.clone()} for one in ids]


class _Edge:
    """A student with its teacher, a commit log and the turns that it serves over the in-memory transport."""

    def __init__(self, folder: Path, *, loss: DistillationLoss | None = None, learning_rate: float = 1e-2) -> None:
        model = _llama(1)
        self.folder = folder
        self.log = CommitLog(folder / "commits")
        self.student = EdgeStudent(
            model,
            find_layout(model),
            optimizer=OptimizerSettings(learning_rate=learning_rate),
            handover="full",
            log=self.log,
        )
        teacher = EdgeTeacher(_llama(2, hidden_size=20), has_head=True, compute_device=CPU)
        self.objective = Objective(model, teacher, loss or DistillationLoss(kd_ratio=0.5), "causal-lm")
        self.turns = 0

    def state(self) -> dict[str, Tensor]:
        """Every weight and every moment."""
        state = {name: tensor.clone() for name, tensor in self.student.model.state_dict().items()}
        for name, entries in self.student.moments.items():
            state.update({f"{key} of {name}": tensor.clone() for key, tensor in entries.items()})
        return state

    def turn(
        self,
        *,
        uplink: Meddle | None = None,
        downlink: Meddle | None = None,
        batches: list[Any] | None = None,
        **settings: Any,
    ) -> tuple[BaseException | None, BaseException | None]:
        """Take a whole turn with a device of its own; what each side raised."""
        self.turns += 1
        cache = DeviceCache(self.folder / f"cache-{self.turns}")
        errors: dict[str, BaseException] = {}

        def device(link: Link) -> None:
            skeleton = build_skeleton(_llama)
            try:
                device_tier.run_turn(
                    _meddled(link, uplink),
                    model=skeleton,
                    layout=find_layout(skeleton),
                    data=DeviceData(batches or _batches()),
                    cache=cache,
                    compute_device=CPU,
                    begin_timeout_s=20,
                    step_timeout_s=20,
                )
            except BaseException as error:
                errors["device"] = error
                link.fail(error)

        plan = TurnPlan(mode="train", cut=CUT, local_epochs=1, first_step=0, info={"turn": self.turns})
        with connected_links() as (edge_link, device_link):
            thread = threading.Thread(target=device, args=(device_link,))
            thread.start()
            try:
                run_turn(
                    _meddled(edge_link, downlink),
                    pb.Hello(),
                    student=self.student,
                    objective=self.objective,
                    settings=TurnSettings(**{"step_timeout_s": 20.0, **settings}),
                    plan=plan,
                )
            except SplitKDError as error:
                errors["edge"] = error
            thread.join(30)
            assert not thread.is_alive()
        return errors.get("edge"), errors.get("device")


class _Meddled(Link):
    """A link whose sent messages are altered before they are framed."""

    def __init__(self, link: Link, meddle: Meddle) -> None:
        self.__dict__ = link.__dict__  # the same stream
        self.meddle = meddle

    def send(self, body: Any, tensors: Mapping[str, EncodedTensor] | None = None) -> None:
        for changed_body, changed in self.meddle(body, dict(tensors or {})):
            super().send(changed_body, changed)


def _meddled(link: Link, meddle: Meddle | None) -> Link:
    return _Meddled(link, meddle) if meddle else link


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@functools.cache
def _after_two_good_turns() -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        clean = _Edge(Path(folder))
        assert clean.turn() == clean.turn() == (None, None)
        return clean.state()


def _refused(tmp_path: Path, kind: type[SplitKDError], message: str, **turn: Any) -> tuple[_Edge, BaseException | None]:
    """A turn fails for the right reason, is undone, and does not show in the turn after it."""
    edge = _Edge(tmp_path / "bad")
    assert edge.turn() == (None, None)  # so that there are moments to lose
    before, commit = edge.state(), edge.log.latest
    edge_error, device_error = edge.turn(**turn)
    assert type(edge_error) is kind, repr(edge_error)
    assert re.search(message, str(edge_error)), str(edge_error)
    assert device_error is not None
    assert _equal(edge.state(), before)
    assert edge.log.latest == commit == CommitLog(tmp_path / "bad" / "commits").latest
    assert edge.turn() == (None, None)
    assert _equal(edge.state(), _after_two_good_turns())
    return edge, device_error


def test_a_turn_changes_the_student(tmp_path: Path) -> None:
    """What the other tests lean on: without meddling both halves learn, and a commit follows."""
    edge = _Edge(tmp_path)
    before = edge.state()
    assert edge.turn() == (None, None)
    after = edge.state()
    assert edge.log.latest is not None and edge.log.latest.info["next_step"] == 3
    for block in range(LAYERS):
        name = f"model.layers.{block}.mlp.up_proj.weight"
        assert not torch.equal(before[name], after[name])
        assert f"exp_avg of {name}" in after


# ---- what can be wrong with a message


def _change(kind: str, change: Callable[[Any, Tensors], None], at: int = 1) -> Meddle:
    """Change the `at`-th message of a kind, counted from 0."""
    seen = [0]

    def meddle(body: Any, tensors: Tensors) -> Iterable[tuple[Any, Tensors]]:
        if body.DESCRIPTOR.name == kind:
            if seen[0] == at:
                change(body, tensors)
            seen[0] += 1
        yield body, tensors

    return meddle


def _put(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensors], None]:
    def change(_body: Any, tensors: Tensors) -> None:
        tensors[name] = encode(make(decode(_owned(tensors[name]))))

    return change


def _owned(encoded: EncodedTensor) -> EncodedTensor:
    return EncodedTensor(encoded.dtype, encoded.shape, encoded.codec, bytes(encoded.payload))


def _one(value: float) -> Callable[[Tensor], Tensor]:
    """The same tensor with one value changed."""

    def make(tensor: Tensor) -> Tensor:
        tensor.view(-1)[4] = value
        return tensor

    return make


def _set(**fields: Any) -> Callable[[Any, Tensors], None]:
    def change(body: Any, _tensors: Tensors) -> None:
        for name, value in fields.items():
            setattr(body, name, value)

    return change


def _drop(name: str) -> Callable[[Any, Tensors], None]:
    def change(_body: Any, tensors: Tensors) -> None:
        del tensors[name]

    return change


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (NonFiniteError, "smashed data of step 1 has 1 of 192 values NaN", _put("smashed", _one(float("nan")))),
        (NonFiniteError, "smashed data of step 1 has 1 of 192 values", _put("smashed", _one(float("-inf")))),
        (TensorError, r"torch.float64 of shape \(2, 6, 16\); expected torch.float32", _put("smashed", Tensor.double)),
        (TensorError, r"shape \(2, 6, 8\); expected torch.float32 with 16", _put("smashed", lambda t: t[..., :8])),
        (DataError, r"has shape \(6, 16\) and labels \(12,\)", _put("smashed", lambda t: t[:1])),
        (DataError, f"{VOCAB + 2}", _put("labels", _one(VOCAB + 2))),
        (DataError, r"has shape \(12, 16\) and labels \(8,\)", _put("labels", lambda t: t[:, :4])),
        (ProtocolError, r"has 1 tensors, .*; expected 'smashed' as well", _drop("smashed")),
        (ProtocolError, "expected 'labels' as well", _drop("labels")),
        (ProtocolError, "sent step 2, micro-batch 0; expected step 1, micro-batch 0: one was lost", _set(step=2)),
        (ProtocolError, "sent step 0, micro-batch 0; expected step 1, micro-batch 0: one was dupl", _set(step=0)),
        (ProtocolError, "sent step 1, micro-batch 1; expected step 1, micro-batch 0", _set(microbatch=1)),
        (ProtocolError, "announces 0 micro-batches in step 1; expected", _set(num_microbatches=0)),
        (DataError, "`num_tokens` is 3; expected at least 10", _set(step_num_tokens=3)),
    ],
)
def test_a_forward_that_is_refused(
    tmp_path: Path, kind: type[SplitKDError], message: str, change: Callable[[Any, Tensors], None]
) -> None:
    _, told = _refused(tmp_path, kind, message, uplink=_change("Forward", change))
    assert "the edge reported" in str(told)


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (NonFiniteError, "teacher embeddings of step 1 has 1 of 240 values", _put("embeddings", _one(float("inf")))),
        # It goes with the student's smashed data too; newer transformers take a mask of ones for none and the teacher passes.
        (
            ProtocolError,
            "do not go through the (edge's half|teacher)",
            _put("inputs/attention_mask", lambda t: t[:, :3]),
        ),
        (
            ProtocolError,
            r"Teacher embeddings of shape \(2, 6, 8\) with .* do not go through the teacher",
            _put("embeddings", lambda t: t[..., :8]),
        ),
        (ProtocolError, "expected 'embeddings' as well", _drop("embeddings")),
        (ProtocolError, r"is of step 2, micro-batch 0, after \(0, 0\)", _set(step=2)),
        (ProtocolError, "is of step 1, micro-batch 1", _set(microbatch=1)),
    ],
)
def test_teacher_data_that_are_refused(
    tmp_path: Path, kind: type[SplitKDError], message: str, change: Callable[[Any, Tensors], None]
) -> None:
    _, told = _refused(tmp_path, kind, message, uplink=_change("TeacherData", change))
    assert "the edge reported" in str(told)


def _twice(kind: str) -> Meddle:
    def meddle(body: Any, tensors: Tensors) -> Iterable[tuple[Any, Tensors]]:
        yield body, tensors
        if body.DESCRIPTOR.name == kind:
            again = type(body)()
            again.CopyFrom(body)
            again.ClearField("tensors")
            yield again, tensors

    return meddle


def test_a_forward_twice(tmp_path: Path) -> None:
    message = (
        "sent step 0, micro-batch 0; expected step 1, micro-batch 0: one was duplicated. Nothing of it was applied"
    )
    _refused(tmp_path, ProtocolError, message, uplink=_twice("Forward"))


def test_a_microbatch_left_out(tmp_path: Path) -> None:
    def meddle(body: Any, tensors: Tensors) -> Iterable[tuple[Any, Tensors]]:
        if body.DESCRIPTOR.name == "Forward" and body.step == 0:
            body.num_microbatches = 3
        yield body, tensors

    message = "announces 2 micro-batches in step 0; expected 3 as before"

    def only_first(body: Any, tensors: Tensors) -> Iterable[tuple[Any, Tensors]]:
        if getattr(body, "microbatch", 1) == 0:
            yield from meddle(body, tensors)
        else:
            yield body, tensors

    _refused(tmp_path, ProtocolError, message, uplink=only_first, gradient_accumulation_steps=2, batches=_batches(4))


def test_the_turn_ends_within_a_step(tmp_path: Path) -> None:
    def meddle(body: Any, tensors: Tensors) -> Iterable[tuple[Any, Tensors]]:
        if body.DESCRIPTOR.name == "Forward" and body.microbatch == 1:
            yield pb.TurnDone(num_steps=1), {}
        else:
            yield body, tensors

    message = "sent TurnDone within step 0, after micro-batch 0 of 2; expected whole steps"
    _refused(tmp_path, ProtocolError, message, uplink=meddle, gradient_accumulation_steps=2, batches=_batches(4))


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("setup_s", -1.0),
        ("compute_s", float("nan")),
        ("receive_s", float("inf")),
        ("exchange_s", 1e308),
        ("setup_s", 600.0),
    ],
)
def test_times_that_cannot_be(tmp_path: Path, field: str, seconds: float) -> None:
    def lie(body: Any, _tensors: Tensors) -> None:
        setattr(body.times, field, seconds)

    _refused(
        tmp_path, ProtocolError, f"reports a `{field}` of .*; expected 0 to", uplink=_change("TurnDone", lie, at=0)
    )


@pytest.mark.parametrize(
    ("joules", "parts", "message"),
    [
        (-1.0, ["VDD_IN"], r"reports -1.0 J; expected 0 to \d+, which are 100000 W for the turn's"),
        (float("nan"), ["VDD_IN"], "reports nan J; expected 0 to"),
        (float("inf"), ["VDD_IN"], "reports inf J; expected 0 to"),
        (1e12, ["VDD_IN"], "reports 1000000000000.0 J; expected 0 to"),
        (1.0, [], "reports joules of 0 parts; expected 1 to 64"),
        (1.0, ["GPU"] * 65, "reports joules of 65 parts; expected 1 to 64"),
    ],
)
def test_joules_that_cannot_be(tmp_path: Path, joules: float, parts: list[str], message: str) -> None:
    def lie(body: Any, _tensors: Tensors) -> None:
        body.times.energy.joules = joules
        body.times.energy.parts[:] = parts

    _refused(tmp_path, ProtocolError, message, uplink=_change("TurnDone", lie, at=0))


# ---- what comes back at the end of the turn

_NAME = "model.layers.1.mlp.up_proj.weight"


def _extra(name: str, tensor: Tensor) -> Callable[[Any, Tensors], None]:
    def change(_body: Any, tensors: Tensors) -> None:
        tensors[name] = encode(tensor)

    return change


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (ProtocolError, rf"handed back \d+ tensors; expected the \d+ .*'{_NAME}'", _drop(f"weight/{_NAME}")),
        (
            ProtocolError,
            "handed back .* first that differs is 'lm_head.weight'",
            _extra("weight/lm_head.weight", torch.zeros(VOCAB, 16)),
        ),
        (ProtocolError, "first that differs is 'zebra'", _extra("weight/zebra", torch.zeros(2))),
        (
            ProtocolError,
            "has a tensor 'zebra'; expected weight/<name> or moment/<key>/<name>",
            _extra("zebra", torch.zeros(2)),
        ),
        (TensorError, rf"`{_NAME}` has shape \(16, 24\); expected \(24, 16\)", _put(f"weight/{_NAME}", lambda t: t.T)),
        (TensorError, f"`{_NAME}`.*torch.float64", _put(f"weight/{_NAME}", Tensor.double)),
        (
            ProtocolError,
            rf"moment 'exp_avg' of '{_NAME}' with shape \(3,\)",
            _put(f"moment/exp_avg/{_NAME}", lambda t: t.view(-1)[:3]),
        ),
        (
            ProtocolError,
            r"moment 'exp_avg' of 'lm_head.weight' with shape \(2,\)",
            _extra("moment/exp_avg/lm_head.weight", torch.zeros(2)),
        ),
        (
            NonFiniteError,
            f"'{_NAME}' at the turn's end has 1 of 384 values NaN",
            _put(f"weight/{_NAME}", _one(float("nan"))),
        ),
        (
            NonFiniteError,
            f"'exp_avg_sq of {_NAME}' at the turn's end has 1 of 384 values",
            _put(f"moment/exp_avg_sq/{_NAME}", _one(float("inf"))),
        ),
        (ProtocolError, "reports 2 steps; expected the 3 that were served", _set(num_steps=2)),
    ],
)
def test_a_half_that_is_not_taken_back(
    tmp_path: Path, kind: type[SplitKDError], message: str, change: Callable[[Any, Tensors], None]
) -> None:
    _refused(tmp_path, kind, message, uplink=_change("TurnDone", change, at=0))


# ---- clipping


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (
            ProtocolError,
            r"sent 1 gradient norms for step 1; expected \d+ for step 1",
            lambda b, t: b.norms.__delitem__(slice(1, None)),
        ),
        (ProtocolError, r"gradient norms for step 7; expected \d+ for step 1", _set(step=7)),
        (NonFiniteError, "gradient norm of step 1", lambda b, t: b.norms.__setitem__(0, float("nan"))),
        (NonFiniteError, "gradient norm of step 1", lambda b, t: b.norms.__setitem__(0, float("inf"))),
    ],
)
def test_gradient_norms_that_are_refused(
    tmp_path: Path, kind: type[SplitKDError], message: str, change: Callable[[Any, Tensors], None]
) -> None:
    _refused(tmp_path, kind, message, uplink=_change("GradientNorms", change), max_grad_norm=1.0)


# ---- the way back


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (NonFiniteError, "gradient of step 1 has 1 of 192 values NaN", _put("gradient", _one(float("nan")))),
        (ProtocolError, r"gradient of step 1 has shape \(2, 6, 8\)", _put("gradient", lambda t: t[..., :8])),
        (ProtocolError, r"answered step and micro-batch \(0, 0\); expected \(1, 0\)", _set(step=0)),
        (ProtocolError, "Backward has the tensors .*; expected 'gradient'", _drop("gradient")),
        (ProtocolError, "answer to micro-batch 0 of 1 in step 1 lacks an update", lambda b, t: b.ClearField("update")),
    ],
)
def test_an_answer_that_the_device_refuses(
    tmp_path: Path, kind: type[SplitKDError], message: str, change: Callable[[Any, Tensors], None]
) -> None:
    _refused(tmp_path, kind, "the device reported: .*" + message, downlink=_change("Backward", change))


# ---- numbers that go bad by themselves


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    edge = _Edge(tmp_path, loss=DistillationLoss(temperature=1e-42))
    before = edge.state()
    error, told = edge.turn()
    assert type(error) is NonFiniteError and "The loss of step 0 has 1 of 1 values NaN or infinite" in str(error)
    assert "The loss of step 0" in str(told)
    assert _equal(edge.state(), before)


def test_a_last_step_that_ruins_both_halves_is_not_committed(tmp_path: Path) -> None:
    """No loss comes after it that would tell."""
    edge = _Edge(tmp_path)
    before = edge.state()
    error, _ = edge.turn(batches=_batches(1), lr_schedule=lambda step: float("inf"))
    assert type(error) is NonFiniteError and "at the turn's end" in str(error)
    assert _equal(edge.state(), before)
    assert edge.log.latest is not None and edge.log.latest.number == 0


def test_a_device_that_stops_in_mid_turn(tmp_path: Path) -> None:
    def meddle(body: Any, tensors: Tensors) -> Iterable[tuple[Any, Tensors]]:
        if body.DESCRIPTOR.name == "Forward" and body.step == 2:
            raise KeyboardInterrupt
        yield body, tensors

    _refused(tmp_path, PeerLostError, "the device reported: KeyboardInterrupt", uplink=meddle)


# ---- a device's data


@pytest.mark.parametrize("make", [lambda: [], lambda: torch.utils.data.DataLoader([])])
def test_an_empty_partition(make: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match="`data` has 0 batches; expected at least 1"):
        SplitKDClient(student=_llama, data=make())


def test_data_without_a_length() -> None:
    with pytest.raises(DataError, match="`data` is a generator without a length; expected a DataLoader"):
        SplitKDClient(student=_llama, data=(batch for batch in _batches()))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2, 6), "A batch is a Tensor; expected a pair of data and labels, or a mapping of tensors"),
        ((torch.ones(2, 6), torch.ones(2), 3), "A batch is a tuple; expected a pair of data and labels"),
        ({}, "A batch is a dict; expected a pair of data and labels, or a mapping of tensors"),
        ({"input_ids": [[1, 2]]}, "`input_ids` of a batch is a list; expected a tensor"),
    ],
)
def test_a_batch_that_is_no_mapping_of_tensors(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DeviceData([batch])


@pytest.mark.parametrize(
    ("late", "message"),
    [
        ({"attention_mask": torch.ones(2, 6)}, "A batch has ['attention_mask']; expected `labels` among them"),
        ({"input_ids": torch.ones(2, 6, dtype=torch.int64), "labels": torch.ones(2, 6)}, "`labels` are torch.float32"),
    ],
)
def test_a_bad_batch_in_mid_turn(tmp_path: Path, late: dict[str, Tensor], message: str) -> None:
    _refused(tmp_path, DataError, "the device reported: .*" + re.escape(message), batches=[*_batches(2), late])


# ---- over real gRPC


class _Service:
    """An edge service and its sessions."""

    def __init__(self, folder: Path) -> None:
        self.edge = _Edge(folder)
        self.service = EdgeService(
            DataPlaneServer(),
            student=self.edge.student,
            objective=self.edge.objective,
            settings=TurnSettings(),
            ticket_lifetime_s=60,
        )
        self.session: Session = self.service.expect(run_id=1, node_id=2, server_round=3)

    def hello(self, model: LlamaForCausalLM) -> pb.Hello:
        ticket = self.session.ticket
        return pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            session_id=ticket.session_id,
            token=ticket.token,
            run_id=1,
            node_id=2,
            server_round=3,
            student=fingerprint_to_wire(fingerprint(model, find_layout(model))),
            codecs=supported_codecs(),
        )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[_Service]:
    running = _Service(tmp_path)
    yield running
    running.service.close()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (lambda: _llama(vocab_size=VOCAB + 8), f"student has vocab_size {VOCAB + 8}; expected {VOCAB} as on the edge"),
        (lambda: _llama().bfloat16(), "student has dtype 'bfloat16'; expected 'float32' as on the edge"),
        (lambda: _llama(hidden_size=32), "student has hidden_size 32; expected 16"),
        (lambda: _llama(num_hidden_layers=5), "student has num_blocks 5; expected 4"),
        (lambda: _llama(intermediate_size=32), "student has digest"),
    ],
)
def test_halves_of_different_models_do_not_meet(
    service: _Service, student: Callable[[], LlamaForCausalLM], message: str
) -> None:
    with pytest.raises(HandshakeError, match=re.escape(message)):
        with connect(service.service.server.address, service.hello(student())):
            pytest.fail("it was let in")


@pytest.mark.parametrize("cut", [0, LAYERS, 99, -1])
def test_a_cut_out_of_range(service: _Service, cut: int) -> None:
    message = f"`cut` is {cut}; expected 1..{LAYERS - 1} for a {LAYERS}-layer"
    with connect(service.service.server.address, service.hello(_llama())) as device:
        before = service.edge.state()
        with pytest.raises(CutError, match=message):
            service.service.serve(service.session, mode="train", cut=cut, local_epochs=1, info={})
        with pytest.raises(SplitKDError, match=f"the edge at .* reported: {message}"):
            device.receive("Begin", 10)
        assert _equal(service.edge.state(), before)
        assert service.service.student.next_step == 0


@pytest.mark.parametrize("cut", [LAYERS, 99, -1])
def test_a_cut_out_of_range_of_the_student(tmp_path: Path, cut: int) -> None:
    with pytest.raises(CutError, match=f"`cut` is {cut}; expected"):
        _Edge(tmp_path).student.half(cut)


def test_a_session_that_has_not_connected_cannot_be_served(service: _Service) -> None:
    with pytest.raises(ValueError, match="Only a connected session can be served"):
        service.service.serve(service.session, mode="train", cut=1, local_epochs=1, info={})


def test_messages_keep_their_type() -> None:
    """What the meddling above leans on: a received message is a body with its tensors."""
    with connected_links() as (edge, device):
        device.send(pb.Forward(), {"smashed": encode(torch.ones(2))})
        message = edge.receive("Forward", 10)
    assert isinstance(message, WireMessage) and decode(message.tensors["smashed"]).tolist() == [1.0, 1.0]
