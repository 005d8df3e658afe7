"""The SCCT app in a simulation: cloud, edge and devices, answers to held-out questions, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from flower_harness import federation, newest
from flwr_splitkd.store import CommitLog
from flwr_splitkd.strategies.chain.progress import ChainProgress
from import_graph import ROOT
from little_data import little_questions

APP = ROOT / "apps" / "scct"
SMALL_CHAIN = ROOT / "flwr_splitkd" / "small_chain"
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "epochs": 2,
    "iterations": 2,
    "split-points": "1,2,3",
    "batch-size": 2,
    "heldout-questions": 4,
    "max-answer-tokens": 12,
    "warmup-steps": 0,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder and a language model without training, for the app's own tokenizer, and little data."""
    folder = tmp_path_factory.mktemp("models")
    tokens = len(json.loads((SMALL_CHAIN / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    sizes = {"vocab_size": tokens + 16, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    RobertaModel(
        RobertaConfig(num_hidden_layers=3, max_position_embeddings=260, **sizes, **special), add_pooling_layer=False
    ).save_pretrained(folder / "slm")
    LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=512, **sizes, **special)
    ).save_pretrained(folder / "llm")
    return {"slm": str(folder / "slm"), "llm": str(folder / "llm"), "data": little_questions(folder)}


def _lines(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in newest(runs.glob("*/metrics.jsonl")).read_text().splitlines()]


@pytest.mark.slow
def test_a_run_of_three_devices(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=3) as running:
        outcome = running.run(APP, {**SETTINGS, **models, "run-dir": str(runs), "cloud-codec": "int8"}, timeout_s=280.0)
    assert outcome.completed, outcome.tail()
    lines = _lines(runs)
    trained = [line for line in lines if line["kind"] == "device" and line["mode"] == "train"]
    assert {(line["device"], line["split_point"]) for line in trained} == {("0", 1), ("1", 2), ("2", 3)}
    assert [line["num_steps"] for line in trained] == [4] * 6 and not any(line["num_missed"] for line in trained)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [(line["server_round"], line["epoch"], line["module_step"]) for line in epochs] == [
        (1, 1, 2),
        (1, 2, 4),
        (2, 1, 6),
        (2, 2, 8),
    ]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["server_round"] for line in evaluations] == [0, 1, 2]
    assert all({"eval-loss", "eval-f1", "eval-exact_match"} <= set(line) for line in evaluations)
    # The second round's devices have what the edge returned: nothing of their layers travels up again.
    assert all(line["uplink_handover_bytes"] == 0 for line in trained if line["server_round"] == 2)
    assert "majority answer" in (newest(runs.glob("*/summary.txt"))).read_text()
    if all(importlib.util.find_spec(name) for name in ("matplotlib", "tensorboard")):
        assert newest(runs.glob("*/figure.png")).read_bytes().startswith(b"\x89PNG")
        events = newest(runs.glob("*/tensorboard/events.*")).read_bytes()
        told = (
            b"epoch/loss",
            b"train/0/split-point",
            b"evaluate/2/uplink-bytes",
            b"evaluation/eval-f1",
            b"round/eval-f1",
        )
        assert [name for name in told if name not in events] == []
    module = load_file(newest(runs.glob("*/module.safetensors")))
    assert module["projection.weight"].shape == (32, 32) and len(module) > 2
    assert "Next to the edge: The language model is on c" in outcome.log
    assert "Without effect with a cloud next to the edge: cloud-codec; set `cloud-address`" in outcome.log
    _ask(newest(runs.glob("*/config.json")).parent, tmp_path / "cache")


def _ask(run: Path, cache: Path) -> None:
    """What the run leaves behind is enough to ask it a question."""
    context = ["--context", "def dumps(obj, indent=None): ...", "--split-point", "3"]
    command = [sys.executable, "-m", "flwr_splitkd", "ask", "What is indent?", *context, "--run", str(run), "--json"]
    done = subprocess.run([*command, "--device", "0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["device"]["encoder_round"] == 2 and said["cloud"]["started_here"] and said["tokens"]


@pytest.mark.slow
def test_two_timescales(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split points at each round's start, shares at each epoch's start, and the modelled clock in all that is recorded."""
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    planned = {"mechanism": "SCCTT", "costed-slm": "roberta-large/3", "min-available-nodes": 3, "run-dir": str(runs)}
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=3) as running:
        outcome = running.run(APP, {**SETTINGS, **models, **planned}, timeout_s=280.0)
    assert outcome.completed, outcome.tail()
    lines = _lines(runs)
    decisions = {line["server_round"]: line for line in lines if line["kind"] == "decision"}
    assert sorted(decisions) == [1, 2] and all(": split points " in line["reason"] for line in decisions.values())
    trained = [line for line in lines if line["kind"] == "device" and line["mode"] == "train"]
    assert len(trained) == 6
    assert all(
        decisions[line["server_round"]]["split_points"][line["device"]] == line["split_point"] for line in trained
    )
    allocations = [line for line in lines if line["kind"] == "allocation"]
    assert [(line["server_round"], line["epoch"]) for line in allocations] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for line in allocations:
        assert sorted(line["shares"]) == ["0", "1", "2"] and sum(line["shares"].values()) <= 1 + 1e-9
        assert sum(line["subcarriers"].values()) <= 200 and min(line["subcarriers"].values()) >= 1
    clock_s = 0.0
    for line in lines:
        if "modelled_clock_s" in line and line["kind"] != "round":
            assert line["modelled_clock_s"] >= clock_s
            clock_s = line["modelled_clock_s"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert all(line["modelled_s"] == pytest.approx(2 * line["modelled_iteration_s"]) for line in epochs)
    moved_s = sum(line["modelled_handover_s"] for line in decisions.values())
    assert clock_s == pytest.approx(moved_s + sum(line["modelled_s"] for line in epochs)) and clock_s > 0
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert evaluations[0]["modelled_clock_s"] == 0.0 and evaluations[-1]["modelled_clock_s"] == clock_s


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, though every device has another node id: the module in the cloud, and every encoder."""
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    settings = {**SETTINGS, **models, "fraction-evaluate": 0.0, "min-available-nodes": 3}
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=3) as running:
        ends = {}
        for runs, changes in (
            (whole, {}),
            (parted, {"num-server-rounds": 1}),
            (parted, {"resume": lambda: str(newest(parted.glob("*/config.json")).parent)}),
        ):
            given = {key: value() if callable(value) else value for key, value in changes.items()}
            outcome = running.run(APP, {**settings, "run-dir": str(runs), **given}, timeout_s=280.0)
            assert outcome.completed, outcome.tail()
            assert "comes with an encoder of" not in outcome.log
            ends[runs] = newest(runs.glob("*/config.json")).parent
    modules, encoders = [], []
    for folder in ends.values():
        steps = CommitLog(folder / "cloud" / "questions" / "steps", reads_only=True)
        modules.append(steps.read("module"))
        run = ChainProgress.load(folder).run
        devices = {path.name: path for path in (tmp_path / "cache" / "encoders" / run).glob("*/*")}
        assert sorted(devices) == ["0", "1", "2"]
        logs = {name: CommitLog(path, reads_only=True) for name, path in devices.items()}
        encoders.append(
            {
                f"{name}/{unit}/{key}": tensor
                for name, log in logs.items()
                if log.latest
                for unit in log.latest.units
                for key, tensor in log.read(unit).items()
            }
        )
    for first, second in (modules, encoders):
        assert first.keys() == second.keys() and len(first) > 10
        assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
    assert int(modules[0]["next_step"]) == 8


@pytest.mark.by_hand
def test_adapters_in_the_encoders(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little travels, and the run can be asked; with the data that the app brings."""
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=3) as running:
        own = {"data": "stdlib", "slm-rank": 2, "run-dir": str(runs)}
        outcome = running.run(APP, {**SETTINGS, **models, **own}, timeout_s=280.0)
    assert outcome.completed, outcome.tail()
    trained = [line for line in _lines(runs) if line["kind"] == "device" and line["mode"] == "train"]
    assert [line["num_steps"] for line in trained] == [4] * 6
    # Blocks have 3 * (4 * 32**2 + 2 * 32 * 48) weights and as many again twice for moments; adapters a tenth of it.
    assert 0 < max(line["downlink_handover_bytes"] for line in trained) < 40_000
    _ask(newest(runs.glob("*/config.json")).parent, tmp_path / "cache")


@pytest.mark.by_hand
def test_more_devices_than_actors(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    config = {
        **SETTINGS,
        **models,
        "run-dir": str(tmp_path / "runs"),
        "connect-timeout": 30.0,
        "fraction-evaluate": 0.0,
    }
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=2) as running:
        outcome = running.run(APP, config, timeout_s=280.0)
    assert not outcome.completed
    told = outcome.details + outcome.log
    assert "got no actor of the simulation within 30 s" in told and "init-args.num-cpus" in told
