"""What the app's README and the how-to show: a configuration and a run that fit together, and names that there are."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from import_graph import ROOT

pytest.importorskip("torch", reason="the app needs it")
APP = ROOT / "apps" / "scct"
HOWTO = ROOT / "docs" / "how-to" / "scct-your-own-app.md"


def test_the_readmes_cloud_and_run_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(APP)
    from flwr_splitkd.tiers.cloud.config import read_cloud_config

    readme = (APP / "README.md").read_text(encoding="utf-8")
    (configuration,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "cloud.toml").write_text(configuration)
    (tmp_path / "north.token").write_bytes(b"n" * 64)
    (tmp_path / "ca.crt").write_bytes(b"pem")
    setup = read_cloud_config(tmp_path / "cloud.toml")

    (run,) = re.findall(r"flwr run \. --stream -c '(.*?)'", readme, re.DOTALL)
    pairs = re.findall(r'([\w-]+)=("[^"]*"|\S+)', run)
    keys: dict[str, Any] = {key: ast.literal_eval(value) for key, value in pairs}
    for key, name in (("cloud-token-file", "north.token"), ("cloud-root-certificate", "ca.crt")):
        assert Path(keys[key]).name == name
        keys[key] = str(tmp_path / name)
    config = importlib.import_module("scct_app.config").read_config(keys)
    assert config.without_effect == [] and config.slm_learning_rate == 2e-5 and config.max_positions == 512
    access = config.cloud
    assert access.token == setup.edges[access.edge] and access.task in setup.tasks
    host, _, port = access.address.rpartition(":")
    assert host == setup.advertised_address and setup.data_address.endswith(f":{port}") and setup.tls is not None
    assert config.llm_tokenizer == setup.llm.name_or_path  # type: ignore[attr-defined]
    assert setup.tasks[access.task].slm_width == 1024 and config.slm == "FacebookAI/roberta-large"


def test_the_howtos_names_and_arguments() -> None:
    blocks = re.findall(r"```python\n(.*?)```", HOWTO.read_text(encoding="utf-8"), re.DOTALL)
    trees = [ast.parse(block) for block in blocks]
    assert len(trees) == 4
    names: dict[str, Any] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr_splitkd"):
            names.update(
                {one.name: getattr(importlib.import_module(node.module or ""), one.name) for one in node.names}
            )
    assert {"SCCT", "SCCTClient", "CloudAccess", "EmbeddedCloud"} <= set(names)
    checked = set()
    for call in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in names:
            known = inspect.signature(names[call.func.id]).parameters
            open_ended = any(one.kind is one.VAR_KEYWORD for one in known.values())
            assert open_ended or {word.arg for word in call.keywords} <= set(known), call.func.id
            checked.add(call.func.id)
    assert {"SCCT", "SCCTClient", "CloudAccess", "EmbeddedCloud", "TaskSettings", "encode_questions"} <= checked
