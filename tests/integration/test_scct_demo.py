"""`make scct-demo` with small models: cloud, SuperLink and SuperNodes over TLS, one run, nothing left."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from flower_harness import newest, traces_of
from import_graph import ROOT

SETTINGS = {
    "num-server-rounds": 1,
    "epochs": 1,
    "iterations": 3,
    "split-points": "1,2,3",
    "batch-size": 2,
    "heldout-questions": 4,
    "max-answer-tokens": 12,
}


@pytest.mark.slow
@pytest.mark.deployment
def test_the_demo_runs_to_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    sizes = {"vocab_size": 2064, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    RobertaModel(
        RobertaConfig(num_hidden_layers=3, max_position_embeddings=260, **sizes, **special), add_pooling_layer=False
    ).save_pretrained(tmp_path / "slm")
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, **sizes, **special)).save_pretrained(
        tmp_path / "llm"
    )
    settings = {**SETTINGS, "slm": str(tmp_path / "slm"), "llm": str(tmp_path / "llm")}
    command = [sys.executable, str(ROOT / "scripts" / "scct_demo.py"), "--runs", str(tmp_path / "runs")]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    lines = [json.loads(line) for line in newest((tmp_path / "runs").glob("*/metrics.jsonl")).read_text().splitlines()]
    devices = [line for line in lines if line["kind"] == "device" and line["mode"] == "train"]
    assert {line["split_point"] for line in devices} == {1, 2, 3} and all(line["num_steps"] == 3 for line in devices)
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["server_round"] for line in evaluations] == [0, 1] and "eval-f1" in evaluations[1]
    assert traces_of(str(tmp_path / "runs")) == []
    _ask(ended.stdout.splitlines()[-2:], tmp_path)


def _ask(commands: list[str], folder: Path) -> None:
    """The commands that the demo ends with: its cloud again, and one question."""
    (kept,) = (folder / "runs" / "cloud").iterdir()
    assert {path.name for path in kept.iterdir()} >= {"cloud.toml", "edge.token", "server.key", "ca.crt", "state"}
    assert not any((kept / name).stat().st_mode & 0o077 for name in ("edge.token", "server.key"))
    log = folder / "cloud.log"
    with log.open("w") as output:
        cloud = subprocess.Popen(shlex.split(commands[0]), stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + 60.0
        while "The cloud listens at" not in log.read_text():
            assert cloud.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        asked = subprocess.run([*shlex.split(commands[1]), "--json"], capture_output=True, text=True, timeout=120)
    finally:
        cloud.terminate()
        cloud.wait(30.0)
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    assert said["device"]["encoder_round"] == 1 and not said["cloud"]["started_here"] and said["tokens"]
