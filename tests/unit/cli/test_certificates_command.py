"""`flwr-splitkd certificates`: the files, what it says about them, and its errors."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from cryptography import x509

from flwr_splitkd import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "certificates", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_what_it_makes_and_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my certs"
    assert call(monkeypatch, str(folder), "--host", "edge.local", "--host", "10.0.0.1", "--supernodes", "2") == 0
    keys = {f"supernode-{i}.{suffix}" for i in range(2) for suffix in ("key", "pub")}
    assert {path.name for path in folder.iterdir()} == {"ca.crt", "ca.key", "server.pem", "server.key", *keys}
    server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["edge.local", "10.0.0.1", "localhost", "127.0.0.1", "::1"]

    said = capsys.readouterr().out
    assert "for development, valid for 30 days" in said
    assert f"With Flower {version('flwr')}:" in said
    assert "--enable-supernode-auth" in said and "--auth-supernode-private-key supernode-0.key" in said
    assert f'root-certificates = "{folder}/ca.crt"' in said
    assert f'certificate="{folder}/server.pem"' in said
    superlink = next(line for line in said.splitlines() if "--ssl-certfile" in line)
    assert str(folder / "server.pem") in shlex.split(superlink)
    # Both from the help of the installed version, so that the test fails where the command line changes again.
    ports = {"1.30": ("9092", "--fleet-api-address")}.get(version("flwr").rpartition(".")[0], ("8000", "--port"))
    assert f"--superlink edge.local:{ports[0]}" in said and ports[1] in said


def test_without_supernodes_there_is_no_authentication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(tmp_path / "certs")) == 0
    said = capsys.readouterr().out
    assert "--enable-supernode-auth" not in said and "flwr supernode register" not in said
    assert "--auth-supernode-private-key" not in said and "flower-supernode --superlink" in said


def test_nothing_is_written_over_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(tmp_path)) == 0
    before = (tmp_path / "ca.key").read_bytes()
    assert call(monkeypatch, str(tmp_path)) == 1
    assert "ca.crt, ca.key, server.key, server.pem already; expected a folder without" in capsys.readouterr().err
    assert (tmp_path / "ca.key").read_bytes() == before
    assert call(monkeypatch, str(tmp_path), "--force") == 0
    assert (tmp_path / "ca.key").read_bytes() != before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--host", "edge.local:80"), "`host` is 'edge.local:80'; expected a DNS name or an IP address"),
        (("--days", "0"), "`days` is 0; expected 1..825"),
        (("--supernodes", "-1"), "`supernodes` is -1; expected 0.."),
    ],
)
def test_mistakes_leave_nothing(
    option: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, str(tmp_path / "certs"), *option) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
