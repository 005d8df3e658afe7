"""The keys of both apps for metrics: what reaches the endpoint, and what is refused before anything is opened."""

from __future__ import annotations

import importlib
import types

import pytest

from flwr_splitkd.errors import ConfigError
from import_graph import ROOT

pytest.importorskip("torch", reason="the apps need it")

ADDRESS = {"metrics-address": "127.0.0.1:9464"}
FILES = {"metrics-certificate": "a.pem", "metrics-private-key": "a.key", "metrics-client-ca": "ca.crt"}


@pytest.fixture(params=["split_kd", "scct"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(ROOT / "apps" / request.param)
    return importlib.import_module(f"{request.param}_app.config")


def test_where_metrics_are(config: types.ModuleType) -> None:
    assert config.read_config({}).metrics is None
    where = config.read_config(ADDRESS).metrics
    assert (where.address, where.certificate, where.client_ca) == ("127.0.0.1:9464", None, None)
    where = config.read_config({**ADDRESS, **FILES}).metrics
    assert (where.certificate, where.private_key, where.client_ca) == ("a.pem", "a.key", "ca.crt")


def test_what_is_refused(config: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match="`metrics address` is 'here'; expected host:port"):
        config.read_config({"metrics-address": "here"})
    with pytest.raises(ConfigError, match="`metrics-address` is empty; expected an address with them"):
        config.read_config(FILES)


def test_the_callbacks(config: types.ModuleType) -> None:
    pytest.importorskip("prometheus_client")
    from flwr_splitkd.report.prometheus import PrometheusEndpoint

    server_app = importlib.import_module(config.__name__.replace(".config", ".server_app"))
    assert server_app._callbacks(config.read_config({})) is None
    callbacks = server_app._callbacks(config.read_config(ADDRESS))
    assert isinstance(callbacks[-1], PrometheusEndpoint) and callbacks[-1].where.port == 9464


def test_a_baseline_of_the_chain_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "apps" / "scct")
    read_config = importlib.import_module("scct_app.config").read_config
    with pytest.raises(ConfigError, match="`training` is 'cloud-only' and `metrics-address` is '127.0.0.1:9464'"):
        read_config({**ADDRESS, "training": "cloud-only"})
