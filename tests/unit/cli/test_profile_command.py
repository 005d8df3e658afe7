"""`flwr-splitkd profile`, as a person calls it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from flwr_splitkd import cli, telemetry
from flwr_splitkd.costs import ModelShape, Workload, cut_terms, device_from_json, server_from_json
from flwr_splitkd.telemetry import Machine

LAYERS = 3


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "profile", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "tiny-llama"
    LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ).save_pretrained(folder)
    return str(folder)


def few(output: Path) -> list[str]:
    return ["--sequence-length", "8", "--repeats", "2", "--warmup", "0", "--output", str(output)]


def shape(blocks: int) -> ModelShape:
    one = np.ones(blocks)
    return ModelShape(
        name="tiny",
        hidden_size=32,
        embedding_width=32,
        vocab_size=96,
        block_parameters=one,
        block_flops_per_token=one,
        block_flops_per_pair=one,
        embedding_parameters=96 * 32,
        head_parameters=32,
        head_flops_per_token=1.0,
    )


def test_a_device_that_the_planner_reads(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    assert call(monkeypatch, model, *few(output), "--batch-size", "2", "--power", "12") == 0
    device = device_from_json(json.loads(output.read_text()))
    assert device.blocks is not None
    assert (device.blocks.model, device.blocks.batch_size, device.blocks.sequence_length) == ("tiny-llama", 2, 8)
    assert len(device.blocks.forward_s) == LAYERS
    assert math.isfinite(device.flops) and device.flops > 0
    assert device.compute_power_w == pytest.approx(12)
    terms = cut_terms(
        shape(LAYERS), None, Workload(batch_size=2, sequence_length=8, num_batches=1), device, codecs=("none",)
    )
    both = np.add(device.blocks.forward_s, device.blocks.backward_s)
    np.testing.assert_allclose(terms.device_s, np.cumsum(both)[:-1] + device.blocks.embedding_s)
    shown = capsys.readouterr().out
    assert f"tiny-llama, 2 x 8 tokens, float32\n{device.name}, cpu, {torch.get_num_threads()} threads\n" in shown
    assert [line.split()[0] for line in shown.splitlines() if "%" in line] == ["0", "1", "2"]
    assert f"The blocks train at {device.flops / 1e9:.2f} GFLOP/s" in shown
    assert "not measured" not in shown and "--power" not in shown
    assert shown.endswith(f"\n{output}\n")


def test_an_edge(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "edge.json"
    clocks = ["--frequency", "2e9", "--min-frequency", "4e8", "--cores", "8", "--memory", "2"]
    powers = ["--power", "50", "--static-power", "10"]
    assert call(monkeypatch, model, *few(output), "--role", "edge", *clocks, *powers, "--dtype", "bfloat16") == 0
    edge = server_from_json(json.loads(output.read_text()))
    assert (edge.min_frequency_hz, edge.max_frequency_hz, edge.cores, edge.memory_bytes) == (4e8, 2e9, 8, 2.0**31)
    assert edge.power_coefficient * 2e9**3 == pytest.approx(50)
    assert edge.static_power_w == 10
    shown = capsys.readouterr().out
    assert "bfloat16" in shown and "Clock: 0.4 to 2 GHz; cores: 8; memory: 2.0 GiB." in shown


def test_fewer_layers_are_extended_to_all(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    assert call(monkeypatch, model, *few(output), "--layers", "2") == 0
    blocks = device_from_json(json.loads(output.read_text())).blocks
    assert blocks is not None
    assert blocks.forward_s[2] == pytest.approx(np.median(blocks.forward_s[:2]))
    assert blocks.backward_s[2] == pytest.approx(np.median(blocks.backward_s[:2]))
    shown = capsys.readouterr().out
    assert "Blocks 2 to 2 were not measured" in shown
    assert [line.split()[0] for line in shown.splitlines() if "%" in line] == ["0", "1"]
    assert "counts as 0 J; give `--power`" in shown


def test_json_is_the_profile(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    assert call(monkeypatch, model, *few(output), "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(output.read_text())


def test_a_function_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_profiled_models.py").write_text(
        "from transformers import LlamaConfig, LlamaModel\n"
        "def student():\n"
        "    return LlamaModel(LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,"
        " num_attention_heads=4))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    output = tmp_path / "profile.json"
    assert call(monkeypatch, "my_profiled_models:student", *few(output)) == 0
    blocks = device_from_json(json.loads(output.read_text())).blocks
    assert blocks is not None and blocks.model == "my_profiled_models:student" and len(blocks.forward_s) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "`batch_size` is 0; expected at least 1."),
        (["--sequence-length", "65"], "`sequence_length` is 65; expected at most 64"),
        (["--layers", "9"], "`layers` is 9; expected 2..3"),
        (["--compute-device", "cuda:77"], "The compute device is 'cuda:77'"),
        (["--cores", "0"], "`cores` of"),
        (["--static-power", "3"], "`--min-frequency` and `--static-power` are of an edge"),
        (["--output", "no/such/folder/profile.json"], "`--output` is no/such/folder/profile.json"),
        (["--output", "/"], "`--output` is /, which cannot be written"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    model: str,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, model, *few(tmp_path / "profile.json"), *arguments) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("flwr-splitkd: ") and message in lines[-1]
    assert captured.out == ""
    assert not (tmp_path / "profile.json").exists()


def test_models_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    assert call(monkeypatch, str(tmp_path / "nothing"), *few(output)) == 1
    assert "does not exist; expected a config.json" in capsys.readouterr().err
    LlamaConfig(vocab_size=96, hidden_size=32, num_attention_heads=4, num_hidden_layers=1).save_pretrained(tmp_path)
    assert call(monkeypatch, str(tmp_path), *few(output)) == 1
    assert "1 block(s); expected at least 2" in capsys.readouterr().err


def test_a_model_larger_than_the_machine(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Machine(name="a sensor", cores=1, memory_bytes=2.0**16)
    monkeypatch.setattr(telemetry, "read_machine", lambda _: small)
    assert call(monkeypatch, model, *few(tmp_path / "profile.json")) == 1
    error = capsys.readouterr().err
    assert "The weights and their gradients take" in error and "Measure fewer `--layers`" in error


def test_a_clock_that_nobody_knows_is_asked_for_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telemetry, "read_machine", lambda _: Machine(name="a box", cores=1, memory_bytes=1e9))
    arguments = [str(tmp_path / "nothing"), *few(tmp_path / "profile.json"), "--role", "edge"]
    assert call(monkeypatch, *arguments) == 1
    assert "`max_frequency_hz` of a box is not known" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--frequency", "1e9") == 1
    assert "does not exist" in capsys.readouterr().err
