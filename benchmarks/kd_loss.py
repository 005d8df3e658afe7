"""Memory and time of the chunked distillation loss against a dense one.

Both compute CE + KL (temperature 2, ``kd_ratio`` 0.5, forward KL) from the same float32 hidden states and
heads: vocabulary 128,256, student 2,048 wide, teacher 4,096. The dense reference holds the logits of both
models and leaves the gradients to autograd, as a training loop without this package would.

Memory: each case runs in a fresh process, which allocates the inputs, makes one step over two tokens (so that
libraries have set up their own buffers), resets its high-water mark (``/proc/self/clear_refs``) and makes one
forward and backward pass. The figure is the high-water mark of resident memory minus resident memory just
before. Time: one process, both cases in turn, forward and backward, median and spread of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _report import Row, report
from torch import Tensor

from flwr_splitkd.distill import DistillationLoss, Head

VOCAB, STUDENT_WIDTH, TEACHER_WIDTH = 128_256, 2_048, 4_096
TEMPERATURE, KD_RATIO = 2.0, 0.5
# Of dense's, by whether the student's head is trainable; see benchmarks/README.md.
MEMORY_BOUND = {False: 0.30, True: 1.0}
TIME_BOUND = 1.6

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def main() -> None:
    """Measure every case, print the table, write the JSON."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        kind, trainable = arguments.memory_of.split(":")
        print(_extra_memory_bytes(kind, trainable == "trainable", arguments.tokens[0], arguments.chunk_size))
        return

    rows: list[Row] = []
    notes = [
        f"float32 weights and hidden states, CPU, {arguments.threads} threads, chunk_size "
        f"{arguments.chunk_size}, vocabulary {VOCAB}, widths {STUDENT_WIDTH}/{TEACHER_WIDTH}, "
        f"torch {torch.__version__}.",
        "memory: high-water mark of resident memory above the inputs, a fresh process per case; "
        "time: forward + backward, medians; ratio: median of the pairs' ratios; spread: their "
        "quartile distance.",
    ]
    for tokens in arguments.tokens:
        for trainable in (False, True):
            name = f"{tokens:,} tokens, {'trainable' if trainable else 'frozen'} head"
            memory = _memory_row(name, tokens, trainable, arguments)
            seconds = _time_row(name, tokens, trainable, arguments)
            rows += [memory, seconds]
            for row, bound in ((memory, MEMORY_BOUND[trainable]), (seconds, TIME_BOUND)):
                verdict = "met" if row.ratio is not None and row.ratio <= bound else "missed"
                notes.append(f"{row.name}: ratio {row.ratio:.3f}, bound {bound:.2f}: {verdict}")
    report("kd_loss", rows, notes=notes, json_path=arguments.json)


def dense_step(inputs: Inputs) -> None:
    """Forward and backward pass with the logits of both models in memory."""
    student_hidden, student_weight, teacher_hidden, teacher_weight, labels = inputs
    with torch.no_grad():
        teacher = F.log_softmax(F.linear(teacher_hidden, teacher_weight) / TEMPERATURE, dim=-1)
    logits = F.linear(student_hidden, student_weight)
    cross_entropy = F.cross_entropy(logits, labels)
    student = F.log_softmax(logits / TEMPERATURE, dim=-1)
    # Leaner than a straightforward loop: nothing is kept longer than autograd needs it.
    del logits
    kl = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    del student, teacher
    ((1 - KD_RATIO) * cross_entropy + KD_RATIO * TEMPERATURE**2 * kl).backward()


def chunked_step(inputs: Inputs, chunk_size: int) -> None:
    """Forward and backward pass with the package's loss."""
    student_hidden, student_weight, teacher_hidden, teacher_weight, labels = inputs
    loss = DistillationLoss(temperature=TEMPERATURE, kd_ratio=KD_RATIO, chunk_size=chunk_size)
    student, teacher = Head(weight=student_weight), Head(weight=teacher_weight)
    loss.from_hidden(student_hidden, student, teacher_hidden, teacher, labels).loss.backward()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2_048], help="tokens per batch (512 2048)")
    parser.add_argument("--repeats", type=int, default=5, help="alternating pairs per time ratio (5)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (2)")
    parser.add_argument(
        "--chunk-size",
        type=int,
        default=DistillationLoss().chunk_size,
        help="tokens per chunk (the default's)",
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def _inputs(tokens: int, trainable: bool) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, width: int, scale: float) -> Tensor:
        return torch.empty(rows, width).normal_(std=scale, generator=generator)

    student_hidden = normal(tokens, STUDENT_WIDTH, 1.0).requires_grad_()
    student_weight = normal(VOCAB, STUDENT_WIDTH, STUDENT_WIDTH**-0.5).requires_grad_(trainable)
    teacher_hidden = normal(tokens, TEACHER_WIDTH, 1.0)
    teacher_weight = normal(VOCAB, TEACHER_WIDTH, TEACHER_WIDTH**-0.5)
    labels = torch.randint(VOCAB, (tokens,), generator=generator)
    return student_hidden, student_weight, teacher_hidden, teacher_weight, labels


def _step(kind: str, chunk_size: int) -> Callable[[Inputs], None]:
    return dense_step if kind == "dense" else lambda inputs: chunked_step(inputs, chunk_size)


def _clear_gradients(inputs: Inputs) -> None:
    for tensor in inputs:
        tensor.grad = None


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}: this benchmark needs Linux")


def _extra_memory_bytes(kind: str, trainable: bool, tokens: int, chunk_size: int) -> int:
    inputs = _inputs(tokens, trainable)
    step = _step(kind, chunk_size)
    hidden, weight, teacher_hidden, teacher_weight, labels = inputs
    warm_hidden = hidden.detach()[:2].requires_grad_()
    step((warm_hidden, weight.detach(), teacher_hidden[:2], teacher_weight, labels[:2]))
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    step(inputs)
    return _status_bytes("VmHWM") - before


def _memory_row(name: str, tokens: int, trainable: bool, arguments: argparse.Namespace) -> Row:
    extra = {}
    for kind in ("dense", "chunked"):
        case = f"{kind}:{'trainable' if trainable else 'frozen'}"
        command = [sys.executable, __file__, "--memory-of", case, "--tokens", str(tokens)]
        command += ["--threads", str(arguments.threads), "--chunk-size", str(arguments.chunk_size)]
        extra[kind] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    gib = {kind: value / 2**30 for kind, value in extra.items()}
    ratio = gib["chunked"] / gib["dense"]
    return Row(name=f"{name}: memory", value=gib["chunked"], unit="GiB", reference=gib["dense"], ratio=ratio)


def _time_row(name: str, tokens: int, trainable: bool, arguments: argparse.Namespace) -> Row:
    inputs = _inputs(tokens, trainable)
    seconds: dict[str, list[float]] = {"dense": [], "chunked": []}
    # One pair more than counted: the first one warms up.
    for _ in range(arguments.repeats + 1):
        for kind, taken in seconds.items():
            _clear_gradients(inputs)
            start = time.perf_counter()
            _step(kind, arguments.chunk_size)(inputs)
            taken.append(time.perf_counter() - start)
    ratios = [c / d for c, d in zip(seconds["chunked"][1:], seconds["dense"][1:], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [0.0, 0.0, 0.0]
    print(json.dumps({"name": name, "seconds": seconds}), file=sys.stderr, flush=True)
    return Row(
        name=f"{name}: time",
        value=statistics.median(seconds["chunked"][1:]),
        unit="s",
        reference=statistics.median(seconds["dense"][1:]),
        ratio=statistics.median(ratios),
        spread=quartiles[2] - quartiles[0],
        n=len(ratios),
    )


if __name__ == "__main__":
    main()
