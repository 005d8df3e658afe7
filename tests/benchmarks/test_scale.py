"""The benchmarks of memory and scale: how their figures are made, and a small turn and a small simulation through them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import _memory_edge
import _memory_models
import _memory_worker
import device_memory
from scale import line, overheads_s
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.costs import named_shape, shape_from_config
from flwr_splitkd.models import set_tied_embeddings

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_line_through_points_on_a_line() -> None:
    fitted = line(range(20), [3.0 * n + 7 for n in range(20)])
    assert fitted.slope == pytest.approx(3)
    assert fitted.standard_error == pytest.approx(0, abs=1e-9)
    assert fitted.parts == pytest.approx([3.0] * 5)


def test_a_step_within_a_run_shows_in_the_spread() -> None:
    fitted = line(range(100), [0.0] * 50 + [1000.0] * 50)
    assert fitted.slope > 0 and fitted.standard_error > 0
    assert sum(part == 0 for part in fitted.parts) == 4


def test_overhead_is_what_passes_between_two_ends_less_what_was_computed() -> None:
    ends = [{"at_s": 1.0, "compute_s": 0.5}, {"at_s": 3.0, "compute_s": 0.5}, {"at_s": 3.5, "compute_s": 0.25}]
    assert overheads_s(ends) == [1.5, 0.25]


def test_the_benchmark_of_memory_has_every_option_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read = set(re.findall(r"arguments\.(\w+)", (BENCHMARKS / "device_memory.py").read_text(encoding="utf-8")))
    monkeypatch.setattr(sys, "argv", ["device_memory.py"])
    assert read and read <= set(vars(device_memory._arguments()))


def test_the_students_are_those_of_the_catalog() -> None:
    """What is measured is what is predicted."""
    for name, config in _memory_models.STUDENTS.items():
        shape = named_shape(name)
        read = shape_from_config(config().to_dict(), name=name)
        assert (read.block_parameters == shape.block_parameters).all()
        assert (read.embedding_parameters, read.vocab_size) == (shape.embedding_parameters, shape.vocab_size)


def test_a_turn_beside_the_edge_that_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> LlamaForCausalLM:
        sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, tie_word_embeddings=True))
        set_tied_embeddings(model, "freeze")
        return model

    for module in (_memory_edge, _memory_worker):
        monkeypatch.setattr(module, "build_student", small)
    monkeypatch.setattr(_memory_edge, "VOCABULARY", 100)
    monkeypatch.setattr(_memory_models, "VOCABULARY", 100)
    of_blocks = sum(p.nbytes for block in small().model.layers[:2] for p in block.parameters())
    sent = {}
    for moments in (False, True):
        with _memory_edge.serve_turn(cut=2, moments=moments) as (address, handed):
            job = {"address": address, "steps": 2, "batch_size": 2, "sequence_length": 8}
            answer = _memory_worker.run_device(job, tmp_path / str(moments))
        assert (answer["steps"], handed.steps, handed.failures) == (2, 2, [])
        assert set(answer["peaks"]) == {"begin", "steps", "end"}
        steps_of_adamw = 4 * len(list(small().model.layers[0].parameters())) * 2
        assert handed.received_bytes == 3 * of_blocks + steps_of_adamw
        sent[moments] = handed.sent_bytes
    assert sent[True] - sent[False] == 2 * of_blocks + steps_of_adamw


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_a_small_simulation(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--devices", "5", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert [(one["kind"], len(one["done"]), one["failures"]) for one in runs] == [("messages", 5, []), ("turns", 5, [])]
