"""The teacher's outcome kept: a later epoch with the cache against without, and what top-64 does to the student.

First part: a turn of two local epochs in two processes over loopback gRPC, with one pinned thread each, with and without a
cache. Second part: students distilled on the built-in text with a vocabulary of 8,192, from all of the teacher's logits and from
64 of each token; unsplit, since split training equals it (tests/integration/test_split_equals_unsplit.py), each on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "split_kd"))

from _report import Row, report
from _step_processes import STEP_WORKER, Job, Worker, differences, pinned, quartile_distance, workers
from split_kd_app import task
from split_kd_app.teacher import TeacherRecipe, cached_teacher, llama_config, log_progress, seeded_llama

from flwr_splitkd import data
from flwr_splitkd.data import DataConfig, Document, make_loader, text_blocks, train_tokenizer
from flwr_splitkd.distill import DistillationLoss, Others, top_k_logits
from flwr_splitkd.models import HeadTap, PretrainedModel, find_head
from flwr_splitkd.processes import worker_processes
from flwr_splitkd.tiers.optimizer import OptimizerSettings

CUT = 4
CACHE_BYTES = 1 << 30
VOCAB, TOP_K = 8192, 64
BOUND = 0.01
LOSS = DistillationLoss(kd_ratio=0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """A turn: seconds of a step and bytes up in a step of its second epoch, and the student's digest."""

    step_s: float
    uplink_bytes: float
    teacher_s: float
    student: str


def main() -> None:
    """Measure both parts, print the table, write the JSON."""
    arguments = _arguments()
    rows, notes = _cached_epochs(arguments)
    if arguments.seeds:
        more = _some_logits(arguments)
        rows, notes = rows + more[0], notes + more[1]
    name = "teacher_cache" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, rows, notes=notes, json_path=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: two pairs of few steps, students hardly trained"
    )
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs of turns (5)")
    parser.add_argument("--steps", type=int, default=12, help="steps of an epoch (12)")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind; 0 leaves the second part out (3)")
    parser.add_argument("--train-steps", type=int, default=400, help="steps of a student (400)")
    parser.add_argument("--teacher-steps", type=int, default=600, help="steps of the teacher, trained once (600)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.steps = 2, 3
        arguments.seeds, arguments.train_steps, arguments.teacher_steps = 1, 4, 4
    return arguments


# ---- a second epoch


def _cached_epochs(arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    cached: list[Epochs] = []
    plain: list[Epochs] = []
    # The first epoch is the warm-up.
    job = Job(cut=CUT, warmup=0, steps=arguments.steps - 1)
    with workers(pinned(), STEP_WORKER, ("edge", "device")) as (edge, device):
        about = edge.about
        for _ in range(arguments.pairs):
            plain.append(_turn(edge, device, job, cache_bytes=0))
            cached.append(_turn(edge, device, job, cache_bytes=CACHE_BYTES))
    rows = []
    for what, unit in (("step_s", "s/step"), ("uplink_bytes", "bytes/step")):
        ratios = [getattr(one, what) / getattr(other, what) for one, other in zip(cached, plain, strict=True)]
        rows.append(
            Row(
                name=f"second epoch with the cache / without: {unit}",
                value=statistics.median(getattr(one, what) for one in cached),
                unit=unit,
                reference=statistics.median(getattr(one, what) for one in plain),
                ratio=statistics.median(ratios),
                spread=quartile_distance(ratios),
                n=len(ratios),
            )
        )
    equal = all(one.student == other.student for one, other in zip(cached, plain, strict=True))
    teacher = [statistics.median(run.teacher_s for run in runs) for runs in (plain, cached)]
    return rows, [
        f"second epoch: the demo's models, batches of {about['batch_size']} x {about['sequence_length']} tokens, cut {CUT}, "
        f"{arguments.pairs} alternating pairs of turns of 2 epochs of {arguments.steps} steps; one pinned thread each. The teacher "
        f"computes {teacher[0]:.4f} s a step without the cache, {teacher[1]:.4f} s with it. Losses and students are "
        f"{'equal' if equal else 'NOT equal'} bit for bit."
    ]


def _turn(edge: Worker, device: Worker, job: Job, *, cache_bytes: int) -> Epochs:
    message = job.message() | {"trace": True, "local_epochs": 2, "teacher_cache_bytes": cache_bytes}
    with edge.awake(), device.awake():
        edge.ask(message)
        device.ask(message | edge.answer())
        on_device, on_edge = device.answer(), edge.answer()
    steps = message["steps"]
    teacher_s: dict[int, float] = defaultdict(float)
    for where, stage, step, _, _, duration_s in on_edge["spans"]:
        if (where, stage) == ("edge", "teacher"):
            teacher_s[step] += duration_s
    second = range(steps, 2 * steps)
    return Epochs(
        step_s=statistics.median(differences(on_device["starts_s"])[steps:]),
        uplink_bytes=statistics.median(on_device["step_bytes"][steps:]),
        teacher_s=statistics.median(teacher_s[step] for step in second),
        student=on_edge["student"],
    )


# ---- some of the logits


class Way(NamedTuple):
    """What of the teacher a student is distilled from: all logits, or `TOP_K` with what stands for the others."""

    name: str
    others: Others | None = None


ALL = Way("all logits")
SAMPLED, EVEN = Way(f"top {TOP_K}", "sampled"), Way(f"top {TOP_K}, the others even", "even")


def _some_logits(arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Held-out perplexity of students of 64 logits over that of students of all."""
    recipe = TeacherRecipe(steps=arguments.teacher_steps, warmup_steps=min(20, arguments.teacher_steps))
    tokenizer, _ = _lesson(recipe)  # before the processes begin, since it may have to be trained
    cases = [(seed, way) for seed in range(arguments.seeds) for way in (ALL, SAMPLED, EVEN)]
    found: dict[Way, list[float]] = {ALL: [], SAMPLED: [], EVEN: []}
    rest: dict[Way, list[float]] = {SAMPLED: [], EVEN: []}
    with worker_processes(_alone) as pool:
        outcomes = pool.map(partial(_student, recipe, arguments.train_steps), cases)
        for (seed, way), (perplexity, left_out) in zip(cases, outcomes, strict=True):
            found[way].append(perplexity)
            if left_out is not None:
                rest[way].append(left_out)
            print(f"seed {seed}, {way.name}: perplexity {perplexity:.2f}", flush=True)
    rows, ratios = [], {}
    for way in (SAMPLED, EVEN):
        ratios[way] = [few / every for few, every in zip(found[way], found[ALL], strict=True)]
        rows.append(
            Row(
                name=f"held-out perplexity, {way.name} / all logits",
                value=statistics.median(found[way]),
                unit="perplexity",
                reference=statistics.median(found[ALL]),
                ratio=statistics.median(ratios[way]),
                spread=quartile_distance(ratios[way]),
                n=len(ratios[way]),
            )
        )
    token_bytes = 8 * (TOP_K + 1), 4 * recipe.hidden_size
    return rows, [
        f"top {TOP_K}: vocabulary {len(tokenizer)}, teacher of {recipe.steps} steps, students of {arguments.train_steps} steps of "
        f"4 x {recipe.sequence_length} tokens, {arguments.seeds} seeds; ratios {_listed(ratios[SAMPLED])}, with the others even "
        f"{_listed(ratios[EVEN])}; not kept exactly: {statistics.mean(rest[SAMPLED]):.1%} and {statistics.mean(rest[EVEN]):.1%} of "
        f"the teacher's probability. Bound within {BOUND:.0%}: "
        f"{'met' if abs(statistics.median(ratios[SAMPLED]) - 1) <= BOUND else 'missed'}. In the cache a token takes "
        f"{token_bytes[0]} bytes instead of {token_bytes[1]} here; with a teacher 4,096 wide in bfloat16 these would be 8,192."
    ]


def _listed(ratios: list[float]) -> str:
    return ", ".join(f"{one:.4f}" for one in ratios)


def _lesson(recipe: TeacherRecipe) -> tuple[Any, Path]:
    """Return the tokenizer, and the folder of the teacher, which is trained if the cache has none."""
    documents: Sequence[Document] = data.split_documents(DataConfig(), num_partitions=1).teacher.documents
    tokenizer = train_tokenizer(documents, VOCAB)
    return tokenizer, cached_teacher(documents, tokenizer, recipe=recipe, progress=log_progress)


def _alone() -> None:
    torch.set_num_threads(1)


def _student(recipe: TeacherRecipe, steps: int, case: tuple[int, Way]) -> tuple[float, float | None]:
    """Train one; return its held-out perplexity, and the mean probability that was not kept exactly."""
    seed, way = case
    tokenizer, folder = _lesson(recipe)
    teacher = PretrainedModel(folder)().train(False).requires_grad_(False)
    documents = data.split_documents(DataConfig(), num_partitions=1).devices[0].documents
    batches = itertools.cycle(
        make_loader(text_blocks(documents, tokenizer, recipe.sequence_length), 4, shuffle=True, seed=seed)
    )
    config = llama_config(tokenizer, hidden_size=128, intermediate_size=320, num_layers=8, num_heads=4)
    student = seeded_llama(config, seed)
    left_out = _distil(student, teacher, batches, steps, way.others)
    return task.evaluate(student, task.heldout_loader(tokenizer=tokenizer))["perplexity"], left_out


def _distil(student: nn.Module, teacher: nn.Module, batches: Any, steps: int, others: Others | None) -> float | None:
    """Train; return the mean probability that was not kept exactly."""
    optimizer = OptimizerSettings(learning_rate=3e-3).build(student.parameters())
    head, teacher_head = find_head(student.train()), find_head(teacher)
    left_out = []
    for step, batch in enumerate(itertools.islice(batches, steps)):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=LOSS.ignore_index).flatten()
        with HeadTap(student) as tap:
            student(**inputs)
        with torch.no_grad(), HeadTap(teacher) as teacher_tap:
            teacher(**inputs)
        taught: Any = teacher_tap.hidden.flatten(0, 1)
        if others is not None:
            taught, mass = top_k_logits(taught, teacher_head, k=TOP_K, temperature=LOSS.temperature, others=others)
            left_out.append(float(mass.mean()))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        LOSS.from_hidden(tap.hidden.flatten(0, 1), head, taught, teacher_head, labels).loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return statistics.mean(left_out) if left_out else None


if __name__ == "__main__":
    main()
