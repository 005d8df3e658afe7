"""What bfloat16, compiled blocks and a fused optimiser are worth on this machine's edge.

One micro-batch after another as a turn computes them on the edge, without devices and without a wire: the teacher, the student's
half forward and backward with the distillation loss, and an optimiser step. Each row has one option and, in alternation, none; the
ratio is that of a step's seconds. The notes say how long the first step took, which is when torch compiles, and what rounding
otherwise has made of the loss after as many steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from _report import Row, report
from _step_processes import quartile_distance
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.split import DeviceHalf, EdgeHalf, find_layout
from flwr_splitkd.tiers.edge import EdgeCompute, EdgeTeacher, Objective
from flwr_splitkd.tiers.edge.teacher import TeacherData
from flwr_splitkd.tiers.optimizer import OptimizerSettings

CUT = 2
HEAD_WIDTH = 64
STUDENT_SEED, TEACHER_SEED = 0, 1
OPTIONS = {
    "bfloat16": EdgeCompute(autocast="bfloat16"),
    "compiled blocks": EdgeCompute(compile=True),
    "fused optimiser": EdgeCompute(fused_optimizer=True),
    "all three": EdgeCompute(autocast="bfloat16", compile=True, fused_optimizer=True),
}


def main() -> None:
    """Measure every option, print the table, write the JSON."""
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows, notes = [], [_conditions(arguments)]
    for name, compute in OPTIONS.items():
        plain, faster = EdgeStep(EdgeCompute(), arguments), EdgeStep(compute, arguments)
        first_s = _seconds(faster, arguments)
        _seconds(plain, arguments)
        for _ in range(2):  # caches, and what the compiler found out late; timed too, so that a GPU is done with them
            _seconds(faster, arguments), _seconds(plain, arguments)
        pairs = [(_seconds(faster, arguments), _seconds(plain, arguments)) for _ in range(arguments.repeats)]
        ratios = [ours / reference for ours, reference in pairs]
        rows.append(
            Row(
                name=name,
                value=statistics.median(ours for ours, _ in pairs),
                unit="s a step",
                reference=statistics.median(reference for _, reference in pairs),
                ratio=statistics.median(ratios),
                spread=quartile_distance(ratios),
                n=len(pairs),
            )
        )
        notes.append(
            f"{name}: first step {first_s:.1f} s; loss after {faster.steps} steps {faster.loss:.5f}, without {plain.loss:.5f}"
        )
    quick = " (quick: a smoke test, not a measurement)" if arguments.quick else ""
    report("edge_compute" + quick, rows, notes=notes, json_path=arguments.json)


class EdgeStep:
    """The edge's work for one micro-batch and one optimiser step, again and again on the same data."""

    def __init__(self, compute: EdgeCompute, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        student, ids = _llama(arguments, arguments.layers, STUDENT_SEED), _token_ids(arguments)
        layout = find_layout(student)
        with torch.no_grad():
            device_half = DeviceHalf(_llama(arguments, arguments.layers, STUDENT_SEED), CUT, layout)
            beside = {
                name: tensor.to(self.device) for name, tensor in device_half.edge_inputs({"input_ids": ids}).items()
            }
            self._smashed = device_half({"input_ids": ids}).to(self.device)
        student.to(self.device)
        teacher = _llama(arguments, arguments.teacher_layers, TEACHER_SEED)
        self._teacher = EdgeTeacher(teacher, has_head=True, compute_device=self.device, compute=compute)
        embedded = torch.nn.functional.embedding(ids, self._teacher.units["teacher"]["weight/embedding"].cpu())
        self._teacher_data = TeacherData(embedded.to(self.device), beside)
        compute.prepare(student, layout)
        self._objective = Objective(student, self._teacher, DistillationLoss(kd_ratio=0.5), "causal-lm", compute)
        self._half, self._beside, self._labels = EdgeHalf(student, CUT, layout), beside, ids.to(self.device)
        settings = OptimizerSettings(learning_rate=1e-4)
        trainable = (p for _, p in self._half.named_parameters() if p.requires_grad)
        self._optimizer = settings.build(trainable, fused=compute.fused_optimizer)
        self.steps, self._loss = 0, torch.zeros(())

    def __call__(self) -> None:
        """Take a step."""
        taught = self._teacher.outputs(self._teacher_data)
        smashed = self._smashed.detach().requires_grad_()
        tokens = self._labels.numel()
        loss = self._objective(self._half, smashed, dict(self._beside), self._labels, taught, tokens).terms.loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._loss = loss.detach()
        self.steps += 1

    @property
    def loss(self) -> float:
        """Of the last step."""
        return float(self._loss)


def _seconds(step: EdgeStep, arguments: argparse.Namespace) -> float:
    started_s = time.perf_counter()
    step()
    if arguments.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


def _llama(arguments: argparse.Namespace, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=arguments.vocab,
            hidden_size=arguments.width,
            intermediate_size=4 * arguments.width,
            num_hidden_layers=layers,
            num_attention_heads=arguments.width // HEAD_WIDTH,
            max_position_embeddings=arguments.sequence_length,
        )
    )


def _token_ids(arguments: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(arguments.vocab, (arguments.batch_size, arguments.sequence_length), generator=generator)


def _conditions(arguments: argparse.Namespace) -> str:
    return (
        f"Llama-shaped student of {arguments.layers} and teacher of {arguments.teacher_layers} layers, width {arguments.width}, "
        f"vocabulary {arguments.vocab:,}, float32 weights, cut {CUT}, batch {arguments.batch_size} x "
        f"{arguments.sequence_length}, on {arguments.device}, {torch.get_num_threads()} threads."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device of the edge"
    )
    parser.add_argument("--layers", type=int, default=6, help="the student's (6)")
    parser.add_argument("--teacher-layers", type=int, default=8, help="the teacher's (8)")
    parser.add_argument("--width", type=int, default=512, help="hidden size of both, a multiple of 64 (512)")
    parser.add_argument("--vocab", type=int, default=8192, help="vocabulary of both (8192)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples (4)")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens of a sample (128)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (torch's own choice)")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of steps (9)")
    parser.add_argument("--quick", action="store_true", help="small models and 2 pairs: to see whether it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.layers, arguments.teacher_layers, arguments.width, arguments.repeats = CUT + 1, 2, 128, 2
    if arguments.width < HEAD_WIDTH or arguments.width % HEAD_WIDTH:
        parser.error(f"--width is {arguments.width}; expected a multiple of {HEAD_WIDTH}")
    if arguments.layers <= CUT:
        parser.error(f"--layers is {arguments.layers}; expected more than {CUT}, which are on the device")
    if arguments.teacher_layers < 2 or arguments.repeats < 1:
        parser.error(
            f"--teacher-layers is {arguments.teacher_layers} and --repeats {arguments.repeats}; expected at least 2 and 1"
        )
    return arguments


if __name__ == "__main__":
    main()
