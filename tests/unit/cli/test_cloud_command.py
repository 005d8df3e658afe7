"""`flwr-splitkd cloud`: what it says of a configuration. How it runs is in tests/integration/cloud."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from flwr_splitkd import cli
from flwr_splitkd.wire.certificates import make_certificates

pytest.importorskip("torch", reason="the command needs it")

TOML = """
[llm]
name = "no-such-model"
[edges.north]
token-file = "north.token"
[edges.south]
token-file = "north.token"
[tasks.qa]
slm-width = 24
[tasks.own]
slm-width = 32
method = "lora"
edges = "south"
"""
TLS = '[tls]\ncertificate = "server.pem"\nprivate-key = "server.key"\nroot-certificate = "ca.crt"\n'


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "cloud", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "north.token").write_text("n" * 32)
    (tmp_path / "cloud.toml").write_text(TOML)
    return tmp_path / "cloud.toml"


def test_check(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--config", config, "--check") == 0
    said = capsys.readouterr().out
    assert "Task qa: SerialAdapter, encoders 24 wide, for north, south" in said
    assert "Task own: Lora, encoders 32 wide, for south" in said
    assert "The configuration can be used; the model was not loaded." in said and "n" * 32 not in said


def test_check_reads_the_certificates(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(TOML + TLS)
    assert call(monkeypatch, "--config", config, "--check") == 1
    assert "TLS `private_key` is" in capsys.readouterr().err
    for name, content in make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1).items():
        (config.parent / name).write_bytes(content)
    assert call(monkeypatch, "--config", config, "--check") == 0


def test_mistakes_are_lines_and_no_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("port = 3\n" + TOML + "learning-rat = 1\nseed = -1\n")
    assert call(monkeypatch, "--config", config) == 1
    said = capsys.readouterr().err
    assert said.startswith("flwr-splitkd: ") and "Traceback" not in said
    for line in (
        "`port` is not a key of a cloud",
        "did you mean `learning-rate`?",
        "`seed` is -1; expected at least 0",
    ):
        assert line in said


def test_a_port_that_is_no_address_is_noticed_before_the_model_is_loaded(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('address = "0.0.0.0:9096"\n' + TOML)
    assert call(monkeypatch, "--config", config) == 1
    assert "`data_address` is '0.0.0.0:9096' without TLS" in capsys.readouterr().err


def test_check_reads_what_metrics_need(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client")
    config.write_text(TOML + '[metrics]\naddress = "127.0.0.1:9465"\n')
    assert call(monkeypatch, "--config", config, "--check") == 0
    assert "Metrics at 127.0.0.1:9465" in capsys.readouterr().out
    config.write_text(TOML + '[metrics]\ncertificate = "a.pem"\nprivate-key = "a.key"\n')
    assert call(monkeypatch, "--config", config, "--check") == 1
    assert "The files for metrics are" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    config.write_text(TOML + "[metrics]\n")
    assert call(monkeypatch, "--config", config, "--check") == 1
    assert "pip install 'flwr_splitkd[prometheus]'" in capsys.readouterr().err


def test_a_port_for_metrics_that_is_taken_is_noticed_before_the_model_is_loaded(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config.write_text(TOML + f'[metrics]\naddress = "127.0.0.1:{taken.getsockname()[1]}"\n')
        assert call(monkeypatch, "--config", config) == 1
    said = capsys.readouterr()
    assert "which cannot be bound" in said.err and "Loading" not in said.out
