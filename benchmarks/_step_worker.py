"""One process of the split-step benchmarks: ``edge``, ``device``, or ``unsplit`` for both in one.

Started by `_step_processes`. Prints a line when it is ready, then reads one JSON job a line from stdin and
answers with one JSON line; the edge answers twice: with a ticket for the device, and when the turn is over.

The models, the batch and the settings are those of the demo app, with random weights and random tokens.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "split_kd"))

from split_kd_app import task
from split_kd_app.config import AppConfig
from split_kd_app.teacher import TeacherRecipe

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.models import HeadTap, build_skeleton, find_head, fingerprint
from flwr_splitkd.split import find_layout, seed_dropout
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.store.tensor_file import digest
from flwr_splitkd.tiers.device import DeviceData, run_turn
from flwr_splitkd.tiers.edge import EdgeSetup, TurnSettings
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

_PR_SET_PDEATHSIG = 1  # prctl(2)

Job = Mapping[str, Any]
Answer = dict[str, Any]

DEMO = AppConfig()
LOSS = DistillationLoss(temperature=DEMO.temperature, kd_ratio=DEMO.kd_ratio, beta=DEMO.beta, teacher_vocab="slice")
OPTIMIZER = OptimizerSettings(learning_rate=DEMO.learning_rate, weight_decay=DEMO.weight_decay)
RUN_ID, NODE_ID = 1, 2
# Enough different batches that no step sees the one before it again.
DISTINCT_BATCHES = 8
TIMEOUT_S = 120.0


def build_teacher() -> nn.Module:
    """Return the demo's teacher before its training: time does not depend on the weights."""
    return TeacherRecipe().model(task.load_tokenizer())


def has_microbatches() -> bool:
    """Whether the package can split a batch into micro-batches and overlap them."""
    return "num_microbatches" in {field.name for field in fields(TurnSettings)}


def batches(count: int, batch_size: int | None = None) -> list[dict[str, Tensor]]:
    """Return full batches of random tokens, the same in every process; None is the demo's batch size."""
    generator = torch.Generator().manual_seed(0)
    vocab = len(task.load_tokenizer())
    distinct = []
    for _ in range(DISTINCT_BATCHES):
        ids = torch.randint(vocab, (batch_size or DEMO.batch_size, DEMO.sequence_length), generator=generator)
        distinct.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return [distinct[index % DISTINCT_BATCHES] for index in range(count)]


def run_edge(job: Job, folder: Path) -> Answer:
    """Serve one turn."""
    pipeline = {
        name: job[name]
        for name in ("num_microbatches", "pipeline_depth")
        if job[name] is not None and has_microbatches()
    }
    setup = EdgeSetup(
        student=task.build_student,
        teacher=build_teacher,
        loss=LOSS,
        task="causal-lm",
        tied_embeddings="refuse",
        train_embeddings=True,
        blocks=(),
        optimizer=OPTIMIZER,
        optimizer_handover="full",
        turn=TurnSettings(
            seed=DEMO.seed,
            max_grad_norm=job["max_grad_norm"],
            step_timeout_s=TIMEOUT_S,
            trace=job.get("trace", False),
            **pipeline,
        ),
        teacher_cache_bytes=job.get("teacher_cache_bytes", 0),
        data_address=job.get("data_address", "127.0.0.1:0"),
        advertised_address=None,
        tls=None,
        insecure="data_address" in job,  # in a network namespace of its own
        compute_device=torch.device("cpu"),
    )
    edge = setup.open(setup.build_student(), folder, ticket_lifetime_s=TIMEOUT_S)
    try:
        session = edge.expect(run_id=RUN_ID, node_id=NODE_ID, server_round=1)
        ticket = session.ticket
        say(address=edge.server.address, session_id=ticket.session_id, token=ticket.token.hex())
        with edge.server.changed:
            edge.server.changed.wait_for(lambda: session.connected, TIMEOUT_S)
        if session.link is None:
            raise RuntimeError(f"The device did not connect within {TIMEOUT_S:g} s.")
        recorder = Recorder(session.link)
        outcome = edge.serve(session, mode="train", cut=job["cut"], local_epochs=job.get("local_epochs", 1), info={})
    finally:
        edge.close()
    return recorder.answer() | {
        "student": digest(edge.student.model.state_dict()),
        "spans": [list(span) for span in outcome.spans],
    }


def run_device(job: Job, folder: Path) -> Answer:
    """Take part in one turn."""
    model = build_skeleton(task.build_student)
    layout = find_layout(model)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=job["session_id"],
        token=bytes.fromhex(job["token"]),
        run_id=RUN_ID,
        node_id=NODE_ID,
        server_round=1,
        student=fingerprint_to_wire(fingerprint(model, layout)),
        codecs=supported_codecs(),
    )
    data = DeviceData(batches(job["steps"], job["batch_size"]))
    with connect(job["address"], hello) as link:
        recorder = Recorder(link)
        run_turn(
            link,
            model=model,
            layout=layout,
            data=data,
            cache=DeviceCache(folder),
            compute_device=torch.device("cpu"),
            begin_timeout_s=TIMEOUT_S,
            step_timeout_s=TIMEOUT_S,
        )
    return recorder.answer()


def run_unsplit(job: Job, folder: Path) -> Answer:
    """Take the same steps on whole models, micro-batch after micro-batch, with torch's own clipping."""
    student, teacher = task.build_student().train(), build_teacher().eval().requires_grad_(False)
    layout, head, teacher_head = find_layout(student), find_head(student), find_head(teacher)
    optimizer = OPTIMIZER.build(student.parameters())
    num_microbatches = job["num_microbatches"] or 1
    starts_s: list[float] = []
    losses: list[float] = []
    with seed_dropout(student, layout, DEMO.seed) as seeds:
        for step, batch in enumerate(batches(job["steps"], job["batch_size"])):
            starts_s.append(time.perf_counter())
            labels = next_tokens(batch["labels"])
            num_tokens = int((labels != LOSS.ignore_index).sum())
            loss = 0.0
            for index in range(num_microbatches):
                seeds.at(step, index)
                inputs = {name: batch[name].chunk(num_microbatches)[index] for name in ("input_ids", "attention_mask")}
                with HeadTap(student) as tap:
                    student(**inputs)
                with torch.no_grad(), HeadTap(teacher) as teacher_tap:
                    teacher(**inputs)
                terms = LOSS.from_hidden(
                    tap.hidden.flatten(0, 1),
                    head,
                    teacher_tap.hidden.flatten(0, 1),
                    teacher_head,
                    labels.chunk(num_microbatches)[index].flatten(),
                    num_tokens=num_tokens,
                )
                terms.loss.backward()  # type: ignore[no-untyped-call]
                loss += float(terms.loss.detach())
            losses.append(loss)
            if job["max_grad_norm"] is not None:
                nn.utils.clip_grad_norm_(student.parameters(), job["max_grad_norm"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {"starts_s": starts_s, "losses": losses, "student": digest(student.state_dict())}


def next_tokens(labels: Tensor) -> Tensor:
    """Return the label of each position: the token after it."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=LOSS.ignore_index)


class Recorder:
    """Notes when a link sends and receives, and which tensors it sends.

    Parameters
    ----------
    link
        Its two methods are replaced by ones that look at the clock and call the originals.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._events: list[tuple[str, str, float, float]] = []
        self._starts_s: list[float] = []
        self._step_bytes: dict[int, int] = {}
        self._tensors: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
        self._send, self._receive = link.send, link.receive
        link.send, link.receive = self.send, self.receive  # type: ignore[method-assign]

    def send(self, body: Any, tensors: Mapping[str, EncodedTensor] | None = None) -> None:
        """Send, and note it."""
        start_s = time.perf_counter()
        if isinstance(body, pb.Forward) and body.microbatch == 0:
            self._starts_s.append(start_s)
        if isinstance(body, pb.Forward | pb.TeacherData):
            payload = sum(len(tensor.payload) for tensor in (tensors or {}).values())
            self._step_bytes[body.step] = self._step_bytes.get(body.step, 0) + payload
        self._send(body, tensors)
        self._events.append(("send", body.DESCRIPTOR.name, start_s, time.perf_counter()))
        self._tensors[body.DESCRIPTOR.name] = {
            name: (tensor.shape, pb.DType.Name(tensor.dtype).removeprefix("DTYPE_").lower())
            for name, tensor in (tensors or {}).items()
        }

    def receive(self, expected: str, timeout_s: float) -> Any:
        """Receive, and note it."""
        start_s = time.perf_counter()
        message = self._receive(expected, timeout_s)
        self._events.append(("receive", message.kind, start_s, time.perf_counter()))
        return message

    def answer(self) -> Answer:
        """Return what was noted."""
        return {
            "events": self._events,
            "starts_s": self._starts_s,
            "step_bytes": [self._step_bytes[step] for step in sorted(self._step_bytes)],
            "tensors": self._tensors,
        }


ROLES: dict[str, Callable[[Job, Path], Answer]] = {
    "edge": run_edge,
    "device": run_device,
    "unsplit": run_unsplit,
}


def say(**answer: Any) -> None:
    """Print one JSON line for the parent."""
    print(json.dumps(answer), flush=True)


def main(roles: Mapping[str, Callable[[Job, Path], Answer]] = ROLES) -> None:
    """Work until stdin ends."""
    run = roles[sys.argv[1]]
    _end_with_the_parent()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    say(
        pid=os.getpid(),
        torch=torch.__version__,
        batch_size=DEMO.batch_size,
        sequence_length=DEMO.sequence_length,
        has_microbatches=has_microbatches(),
    )
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="split-step-") as folder:
            say(**run(json.loads(line), Path(folder)))


def _end_with_the_parent() -> None:
    """A process that is asleep does not see that its stdin has ended, so the kernel has to end it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
