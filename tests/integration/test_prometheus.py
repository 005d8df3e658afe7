"""A real Prometheus reads an edge and a cloud in a deployment, and every query of the dashboard finds something.

Needs the program: Debian's package ``prometheus``, or any other; ``PROMETHEUS=/path/to/prometheus`` names one that is elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from flower_harness import federation, newest
from import_graph import ROOT
from little_data import little_questions, little_text

pytestmark = [pytest.mark.by_hand, pytest.mark.deployment, pytest.mark.timeout(600)]

PROGRAM = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
DASHBOARD = ROOT / "deploy" / "grafana" / "splitkd.json"
CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yml"
NEEDS_SENSORS = {"Measured energy"}
"""Panels that find nothing on a machine whose joules nobody measures."""
VARIABLES = {"edge": ".*", "cloud": ".*", "window": "30s", "__rate_interval": "5s"}
START_S = 120.0
WIDTH = 32


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


@contextlib.contextmanager
def _running(command: list[str], log: Path, ready: str) -> Iterator[None]:
    """A process for the ``with`` block, once its log says that it is ready."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=log.parent
        )
    try:
        deadline_s = time.monotonic() + START_S
        while ready not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()[-3000:]
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


class Prometheus:
    """What a Prometheus knows."""

    def __init__(self, port: int) -> None:
        self._url, self._began_s = f"http://127.0.0.1:{port}/api/v1/", time.time()

    def ask(self, expr: str) -> list[list[float]]:
        """Values of each series over the whole time, one a second; NaN left out."""
        given = {"query": expr, "start": self._began_s, "end": time.time(), "step": 1}
        with urllib.request.urlopen(f"{self._url}query_range?{urllib.parse.urlencode(given)}", timeout=30) as answer:
            said: dict[str, Any] = json.load(answer)
        assert said["status"] == "success", said
        series = [[float(value) for _, value in one["values"]] for one in said["data"]["result"]]
        return [[value for value in values if value == value] for values in series]

    def most(self, expr: str) -> float:
        """The largest value of all series over the whole time."""
        return max(value for values in self.ask(expr) for value in values)


def _targets() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], re.sub(r"\$(\w+)", lambda name: VARIABLES[name[1]], target["expr"])


def _models(folder: Path) -> dict[str, str]:
    """Untrained ones of both apps, small enough that a run is over in a minute."""
    made = {}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "apps" / "split_kd" / "split_kd_app" / "tokenizer")
    for name, layers in (("student", 4), ("teacher", 2)):
        torch.manual_seed(layers)
        sizes = {"vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": 4}
        config = LlamaConfig(**sizes, num_hidden_layers=layers, pad_token_id=tokenizer.pad_token_id)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    chain = json.loads((ROOT / "flwr_splitkd" / "small_chain" / "tokenizer" / "tokenizer.json").read_text())
    common: dict[str, Any] = {
        "vocab_size": len(chain["model"]["vocab"]) + 16,
        "hidden_size": WIDTH,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }
    torch.manual_seed(0)
    encoder = RobertaConfig(num_hidden_layers=3, max_position_embeddings=260, **common)
    RobertaModel(encoder, add_pooling_layer=False).save_pretrained(folder / "slm")
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **common)).save_pretrained(folder / "llm")
    for name in ("student", "teacher", "slm", "llm"):
        made[name] = str(folder / name)
    return made


def _turns(runs: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, newest(runs.glob("*/metrics.jsonl")).read_text().splitlines())
    return [line for line in lines if line["kind"] in ("turn", "device")]


def test_every_query_of_the_dashboard_finds_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if PROGRAM is None:
        pytest.skip("no prometheus on the path, and PROMETHEUS names none")
    pytest.importorskip("prometheus_client")
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    models, runs = _models(tmp_path / "models"), tmp_path / "runs"
    edge, cloud, cloud_metrics, port = _free_ports(4)
    text = CONFIGURATION.read_text(encoding="utf-8").replace(":9464", f":{edge}").replace(":9465", f":{cloud_metrics}")
    text = re.sub(r"scrape_(interval|timeout): \w+", r"scrape_\1: 1s", text)
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "edge.token").write_text("t" * 64)
    (tmp_path / "cloud.toml").write_text(
        f'address = "127.0.0.1:{cloud}"\ncommit-every-steps = 3\n[metrics]\naddress = "127.0.0.1:{cloud_metrics}"\n'
        f'[llm]\nname = "{models["llm"]}"\n[edges.edge]\ntoken-file = "edge.token"\n[tasks.questions]\nslm-width = {WIDTH}\n'
    )
    serve = [sys.executable, "-u", "-m", "flwr_splitkd", "cloud", "--config", str(tmp_path / "cloud.toml")]
    scrape = [
        str(PROGRAM),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    common = {"metrics-address": f"127.0.0.1:{edge}", "num-server-rounds": 2, "run-dir": str(runs)}
    distilling = {
        **common,
        **{"teacher": models["teacher"], "student": models["student"], "data": little_text(tmp_path / "text")},
        **{"sequence-length": 32, "batch-size": 4, "max-batches": 6, "fraction-evaluate": 1.0},
        **{"cut-policy": "optimal", "fleet": "table-ii", "modelled": True},
    }
    answering = {
        **common,
        **{"slm": models["slm"], "data": little_questions(tmp_path), "split-points": "1,2", "batch-size": 2},
        **{"epochs": 2, "iterations": 6, "min-available-nodes": 2, "heldout-questions": 4, "max-answer-tokens": 12},
        **{"cloud-address": f"127.0.0.1:{cloud}", "cloud-token-file": str(tmp_path / "edge.token"), "warmup-steps": 0},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(_running(scrape, tmp_path / "prometheus.log", "Server is ready to receive web requests"))
        stack.enter_context(_running(serve, tmp_path / "cloud.log", "The cloud listens at"))
        running = stack.enter_context(federation("deployment", tmp_path / "logs", supernodes=2))
        prometheus = Prometheus(port)
        outcome = running.run(ROOT / "apps" / "split_kd", distilling, timeout_s=200.0)
        assert outcome.completed, outcome.tail()
        assert f"Metrics at http://127.0.0.1:{edge}/metrics" in outcome.log
        turns = [turn for turn in _turns(runs) if "error" not in turn]
        trained = [turn for turn in turns if turn["mode"] == "train"]
        assert len(trained) == 4 and len(turns) == 8
        # What was scraped last is what the run has written down.
        assert prometheus.most('sum(splitkd_turns_total{outcome="completed"})') == len(turns)
        assert prometheus.most("splitkd_steps_total") == sum(turn["num_steps"] for turn in trained)
        assert prometheus.most("sum(splitkd_modelled_energy_joules_total)") == pytest.approx(
            sum(turn["modelled_j"] for turn in trained)
        )
        told = sum(turn["uplink_bytes"] + turn["downlink_bytes"] for turn in turns)
        assert told <= prometheus.most("sum(splitkd_bytes_total)") < 1.1 * told
        assert prometheus.most('splitkd_sessions{state="serving"}') == 1

        outcome = running.run(ROOT / "apps" / "scct", answering, timeout_s=200.0)  # on the same port
        assert outcome.completed, outcome.tail()
        assert prometheus.most('splitkd_cloud_steps_total{task="questions"}') == 2 * 2 * 6
        assert prometheus.most('splitkd_cloud_sessions{purpose="train"}') == 1

        empty = [(title, expr) for title, expr in _targets() if not any(prometheus.ask(expr))]
        for title, expr in _targets():
            print(f"{title}: {expr}: {len(prometheus.ask(expr))} series")
    assert [target for target in empty if target[0] not in NEEDS_SENSORS] == []
    assert {title for title, _ in empty} == NEEDS_SENSORS
