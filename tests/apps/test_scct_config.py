"""The question answering app's run config: what reaches the parts, and what has no effect."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.errors import ConfigError
from import_graph import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("torch", reason="the app needs it")
APP = ROOT / "apps" / "scct"
CLOUD = {"cloud-address": "cloud.example.com:9096", "cloud-edge": "north"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(APP)
    return importlib.import_module("scct_app.config")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_bytes(b"secret\n")
    (tmp_path / "ca.crt").write_bytes(b"pem")
    return {"cloud-token-file": str(tmp_path / "token"), "cloud-root-certificate": str(tmp_path / "ca.crt")}


def test_the_project_has_every_key_and_its_default(module: types.ModuleType) -> None:
    keys = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert module.read_config(keys) == module.AppConfig()
    assert {name.replace("_", "-") for name in module.AppConfig.__dataclass_fields__} == set(keys)


def test_where_the_cloud_is(module: types.ModuleType, files: dict[str, str]) -> None:
    access = module.read_config({**CLOUD, **files, "cloud-patience": 7, "cloud-codec": "float16"}).cloud
    assert (access.edge, access.token, access.root_certificate) == ("north", b"secret", b"pem")
    assert (access.patience_s, access.codec, access.insecure) == (7.0, "float16", False)
    assert module.read_config({}).cloud is None


def test_plaintext_to_a_cloud_elsewhere(module: types.ModuleType, files: dict[str, str]) -> None:
    plain = {**CLOUD, **files, "cloud-root-certificate": ""}
    with pytest.raises(ConfigError, match="'cloud.example.com:9096' without a root certificate"):
        _ = module.read_config(plain).cloud
    assert module.read_config({**plain, "cloud-insecure": True}).cloud.insecure


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        (CLOUD, []),
        ({**CLOUD, "llm-tokenizer": "x", "weight-decay": 0.1, "reference-loss": True}, []),
        ({**CLOUD, "rank": 8, "llm": "x", "cloud-compute-device": "cpu"}, ["llm", "rank", "cloud-compute-device"]),
        ({**CLOUD, "method": "lora", "module-learning-rate": 1.0}, ["method", "module-learning-rate"]),
        ({"cloud-codec": "int8", "rank": 8}, ["cloud-codec"]),
    ],
)
def test_what_has_no_effect(module: types.ModuleType, changes: dict[str, Any], named: list[str]) -> None:
    assert module.read_config(changes).without_effect == named


def test_devices_wait_longer_than_the_edge(module: types.ModuleType) -> None:
    assert module.read_config({}).answer_timeout_s == 3600.0
    assert module.read_config({"step-timeout": 4000}).answer_timeout_s > 4000
