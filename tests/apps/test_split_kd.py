"""The demo app, unchanged, in simulation and in a deployment; and what becomes of devices that misbehave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flower_harness import federation, newest
from flower_run import Federation
from import_graph import ROOT
from little_data import little_text

APP = ROOT / "apps" / "split_kd"
TOKENIZER = APP / "split_kd_app" / "tokenizer"


def tiny_model(folder: Path, *, hidden_size: int, num_layers: int) -> str:
    """A model that the app loads by path, as it would Llama-3.2-1B."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "data": little_text(tmp_path / "text"),
        "teacher": tiny_model(tmp_path / "teacher", hidden_size=48, num_layers=2),
        "student": tiny_model(tmp_path / "student", hidden_size=32, num_layers=4),
        "run-dir": str(tmp_path / "runs"),
        "cuts": "1,2,3",
        "sequence-length": 32,
        "batch-size": 4,
        "max-batches": 2,
    }


def turns_of(runs: Path) -> list[dict[str, Any]]:
    lines = newest(runs.glob("*/metrics.jsonl")).read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "turn"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the devices of `deployed` keep what they keep."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Federation]:
    """Two devices for the runs of several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_SPLITKD_CACHE", str(cache))
        with federation("deployment", tmp_path_factory.mktemp("logs"), supernodes=2) as running:
            yield running


@pytest.mark.deployment
def test_the_app_unchanged_in_a_deployment(deployed: Federation, cache: Path, tmp_path: Path) -> None:
    own = {"fraction-evaluate": 1.0, "uplink-codec": "int8", "downlink-codec": "bfloat16", "student-on-device": "whole"}
    outcome = deployed.run(APP, {**settings(tmp_path), **own}, timeout_s=240.0)
    assert outcome.completed, outcome.tail()
    turns = turns_of(tmp_path / "runs")
    trained = [turn for turn in turns if turn["mode"] == "train"]
    assert sorted(turn["device"] for turn in trained) == ["0", "0", "1", "1"]
    assert {turn["cut"] for turn in trained} == {1, 2}
    assert [turn["mode"] for turn in turns].count("evaluate") == 4
    assert all(turn["num_steps"] == 2 for turn in turns if turn["mode"] != "deliver"), turns
    assert "Delivered the student to 2 of 2 devices" in outcome.log
    folder = newest((tmp_path / "runs").iterdir())
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    delivered = sorted((cache / "students").iterdir())
    assert [path.name.rpartition("-")[2] for path in delivered] == ["0", "1"]
    for path in delivered:
        own_copy = AutoModelForCausalLM.from_pretrained(path).state_dict()
        assert all(torch.equal(tensor, own_copy[name]) for name, tensor in student.state_dict().items())
    tokens = AutoTokenizer.from_pretrained(folder / "student")("import ", return_tensors="pt")
    assert student.generate(**tokens, max_new_tokens=3).shape[1] > 3
    config = json.loads((folder / "config.json").read_text())["run_config"]
    assert config.keys() == tomli.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"].keys()


@pytest.mark.slow
@pytest.mark.deployment
def test_a_cut_beyond_the_student_ends_the_run_with_its_value(deployed: Federation, tmp_path: Path) -> None:
    outcome = deployed.run(APP, {**settings(tmp_path), "cuts": "9"}, timeout_s=120.0)
    assert not outcome.completed
    assert "`cut` is 9; expected 1..3" in outcome.log, outcome.tail()


@pytest.mark.slow
def test_misbehaving_devices_are_left_out_by_name(tmp_path: Path) -> None:
    """One actor for four devices; two of them cannot take part."""
    app = tmp_path / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    client = app / "split_kd_app" / "client_app.py"
    other = tiny_model(tmp_path / "other", hidden_size=16, num_layers=4)
    code = client.read_text().replace(
        "    config = read_config(context.run_config)\n",
        "    import dataclasses\n"
        "    config = read_config(context.run_config)\n"
        "    if context.node_config['partition-id'] == 0:\n"
        "        raise RuntimeError('the sensor is broken')\n"
        "    if context.node_config['partition-id'] == 1:\n"
        f"        config = dataclasses.replace(config, student={other!r})\n",
    )
    assert code != client.read_text()
    client.write_text(code)
    with federation("simulation", tmp_path / "logs", supernodes=4, client_cpus=2) as running:
        outcome = running.run(app, {**settings(tmp_path), "num-server-rounds": 1}, timeout_s=240.0)
        assert outcome.completed, outcome.tail()
    turns = turns_of(tmp_path / "runs")
    assert sorted(turn["device"] for turn in turns if "error" not in turn) == ["2", "3"]
    errors = [turn["error"] for turn in turns if "error" in turn]
    assert len(errors) == 2
    assert any("the sensor is broken" in error for error in errors), errors
    assert any("hidden_size 16; expected 32" in error for error in errors), errors
