"""Split training over gRPC between processes equals unsplit training, tensor by tensor and bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_models import MODELS, batches
from torch import Tensor, nn

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.models import HeadTap, find_head, inner_model, token_embedding
from flwr_splitkd.split import Layout, export_optimizer_state, find_layout, seed_dropout
from flwr_splitkd.tiers.edge import EdgeService, EdgeSetup, TurnOutcome, TurnSettings
from flwr_splitkd.tiers.optimizer import OptimizerSettings, warmup_schedule
from flwr_splitkd.wire.codec import codec_code, round_trip

HERE = Path(__file__).parent
SEED = 7
RUN = 42
MAX_GRAD_NORM = 0.2
OPTIMIZER = OptimizerSettings(learning_rate=3e-3, weight_decay=0.1)
LOSS = DistillationLoss(temperature=2.0, kd_ratio=0.6, beta=0.3)
SCHEDULE = warmup_schedule("linear", num_warmup_steps=5, num_training_steps=40)


@dataclass(frozen=True)
class Turn:
    """One turn of the test run."""

    device: int
    cut: int


# Three devices with a cut each; then the first one comes back with another cut.
TURNS = (Turn(0, 1), Turn(1, 2), Turn(2, 3), Turn(0, 3))
EPOCHS, BATCHES, ACCUMULATION = 1, 10, 2  # 5 optimiser steps of 2 micro-batches each a turn: 20 steps


class Process:
    """A device in a process of its own."""

    def __init__(self, device: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "device_process.py"), str(device)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=HERE,
        )
        self.pid = self._read()["pid"]

    def start_turn(self, ticket: dict[str, object]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(ticket) + "\n")
        self._process.stdin.flush()

    def finish_turn(self) -> dict[str, object]:
        return self._read()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _read(self) -> dict[str, object]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the device process died; its traceback is above"
        answer: dict[str, object] = json.loads(line)
        return answer


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    """Three devices for all runs; each run brings their models and caches."""
    started: list[Process] = []
    try:
        for device in range(3):
            started.append(Process(device))
        yield started
    finally:
        for process in started:
            process.close()


def open_edge(model: str, task: str, codecs: tuple[str, str], folder: Path) -> EdgeService:
    student, teacher = MODELS[model]
    setup = EdgeSetup(
        student=student,
        teacher=teacher,
        loss=LOSS,
        task=task,  # type: ignore[arg-type]
        tied_embeddings="refuse",
        train_embeddings=True,
        blocks=(),
        optimizer=OPTIMIZER,
        optimizer_handover="full",
        turn=TurnSettings(
            seed=SEED,
            max_grad_norm=MAX_GRAD_NORM,
            gradient_accumulation_steps=ACCUMULATION,
            uplink_codec=codecs[0],  # type: ignore[arg-type]
            downlink_codec=codecs[1],  # type: ignore[arg-type]
            lr_schedule=SCHEDULE,
        ),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
    )
    return setup.open(setup.build_student(), folder / "commits", ticket_lifetime_s=600)


def split_training(
    model: str, task: str, codecs: tuple[str, str], processes: list[Process], folder: Path
) -> tuple[EdgeService, list[TurnOutcome]]:
    edge = open_edge(model, task, codecs, folder)
    outcomes = []
    try:
        for turn in TURNS:
            session = edge.expect(run_id=RUN, node_id=turn.device, server_round=1)
            ticket = {
                "model": model,
                "address": edge.server.address,
                "session_id": session.ticket.session_id,
                "token": session.ticket.token.hex(),
                "run_id": RUN,
                "batches": BATCHES,
                "cache": str(folder / f"device-{turn.device}"),
            }
            processes[turn.device].start_turn(ticket)
            with edge.server.changed:
                assert edge.server.changed.wait_for(lambda session=session: session.connected, 60)
            outcomes.append(edge.serve(session, mode="train", cut=turn.cut, local_epochs=EPOCHS, info={}))
            processes[turn.device].finish_turn()
    finally:
        edge.close()
    return edge, outcomes


class _Quantize(torch.autograd.Function):
    """The cut's codecs inside an unsplit model: one on the activations, the other on their gradient."""

    @staticmethod
    def forward(ctx, hidden: Tensor, up: int, down: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.down = down
        return round_trip(hidden, up)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def, override]
        return round_trip(gradient, ctx.down), None, None


@contextmanager
def quantized_at(model: nn.Module, layout: Layout, cut: int, codecs: tuple[str, str]) -> Iterator[None]:
    up, down = (codec_code(name) for name in codecs)

    def before(_module, args, kwargs):  # type: ignore[no-untyped-def]
        return (_Quantize.apply(args[0], up, down), *args[1:]), kwargs

    handle = model.get_submodule(layout.block_names[cut]).register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def unsplit_training(model: str, task: str, codecs: tuple[str, str]) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
    """The same 20 steps on whole models in this process, with torch's own clipping and scheduler."""
    student, teacher = inner_model(MODELS[model][0]()), MODELS[model][1]().eval().requires_grad_(False)
    layout, head, teacher_head = find_layout(student), find_head(student), find_head(teacher)
    embedding, scale = token_embedding(teacher)
    optimizer = OPTIMIZER.build(parameter for parameter in student.parameters() if parameter.requires_grad)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULE)
    step = 0
    student.train()
    with seed_dropout(student, layout, SEED) as seeds:
        for turn in TURNS:
            data = batches(turn.device, BATCHES)
            for start in range(0, BATCHES, ACCUMULATION):
                group = data[start : start + ACCUMULATION]
                labels = [shifted(batch["labels"], task) for batch in group]
                num_tokens = sum(int((item != -100).sum()) for item in labels)
                for index, (batch, target) in enumerate(zip(group, labels, strict=True)):
                    seeds.at(step, index)
                    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                    with quantized_at(student, layout, turn.cut, codecs), HeadTap(student) as tap:
                        student(**inputs)
                    hidden = tap.hidden
                    embeds = torch.nn.functional.embedding(inputs["input_ids"], embedding) * scale
                    with torch.no_grad(), HeadTap(teacher) as teacher_tap:
                        teacher(
                            inputs_embeds=round_trip(embeds, codec_code(codecs[0])),
                            attention_mask=inputs["attention_mask"],
                        )
                    loss = LOSS.from_hidden(
                        hidden.flatten(0, 1),
                        head,
                        teacher_tap.hidden.flatten(0, 1),
                        teacher_head,
                        target.flatten(),
                        num_tokens=num_tokens,
                    ).loss
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
    return student, export_optimizer_state(optimizer, student.named_parameters())


def shifted(labels: Tensor, task: str) -> Tensor:
    if task != "causal-lm":
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)


@pytest.mark.parametrize(
    ("model", "task", "codecs"),
    [
        ("llama", "causal-lm", ("none", "none")),
        ("llama", "causal-lm", ("int8", "bfloat16")),
        ("llama-lora", "causal-lm", ("none", "none")),
        ("bert", "masked-lm", ("none", "none")),
    ],
)
def test_split_training_equals_unsplit(
    model: str,
    task: str,
    codecs: tuple[str, str],
    processes: list[Process],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pids = [process.pid for process in processes]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        edge, outcomes = split_training(model, task, codecs, processes, tmp_path)
        whole, moments = unsplit_training(model, task, codecs)
    finally:
        torch.set_num_threads(threads)

    initial, split, unsplit = (
        inner_model(MODELS[model][0]()).state_dict(),
        edge.student.model.state_dict(),
        whole.state_dict(),
    )
    assert list(split) == list(unsplit)
    with capsys.disabled():
        print(
            f"\n{model}, codecs {codecs}: edge pid {os.getpid()}, device pids {pids}, {edge.student.next_step} AdamW steps"
        )
        print(f"bytes handed over per turn, both ways: {[outcome.handover_bytes for outcome in outcomes]}")
    assert len({os.getpid(), *pids}) == 4
    assert edge.student.next_step == 20
    different = [name for name in unsplit if not torch.equal(split[name], unsplit[name])]
    assert not different, different
    # The comparison must be able to fail: training moved every matrix (some biases have no gradient).
    matrices = [(name, p) for name, p in whole.named_parameters() if p.dim() > 1]
    moved = {name for name, _ in matrices if not torch.equal(initial[name], unsplit[name])}
    assert moved == {name for name, p in matrices if p.requires_grad}
    assert edge.student.moments.keys() == moments.keys()
    for name, entries in moments.items():
        for key, tensor in entries.items():
            assert torch.equal(edge.student.moments[name][key], tensor), (name, key)
