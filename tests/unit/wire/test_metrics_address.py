"""Where metrics may be served: what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.certificates import make_certificates
from flwr_splitkd.wire.metrics_address import MetricsAddress


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"address": ""}, "`metrics address` is ''; expected host:port, e.g. '127.0.0.1:9464'"),
        ({"address": "9464"}, "`metrics address` is '9464'"),
        ({"address": "127.0.0.1:9464-9470"}, "`metrics address` is '127.0.0.1:9464-9470'"),
        ({"address": "127.0.0.1:70000"}, "`metrics address` is '127.0.0.1:70000'"),
        ({"certificate": "a.pem"}, r"are \('a.pem', '', ''\); expected certificate and private key together"),
        ({"private_key": "a.key"}, r"are \('', 'a.key', ''\)"),
        ({"client_ca": "ca.crt"}, r"are \('', '', 'ca.crt'\); expected .* the authority only with them"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MetricsAddress(**{"address": "127.0.0.1:9464", **given})


@pytest.mark.parametrize(
    ("address", "client_ca", "is_open"),
    [
        ("127.0.0.1:9464", None, False),
        ("[::1]:0", None, False),
        ("localhost:1", None, False),
        ("0.0.0.0:9464", None, True),
        ("10.0.0.5:9464", "ca.crt", False),
    ],
)
def test_who_can_read(address: str, client_ca: str | None, is_open: bool) -> None:
    files = {"certificate": "a.pem", "private_key": "a.key"}
    assert MetricsAddress(address=address, client_ca=client_ca, **files).is_open == is_open
    assert MetricsAddress(address="[::1]:9464").host == "::1" and MetricsAddress(address="[::1]:9464").port == 9464


def test_files(tmp_path: Path) -> None:
    for name, content in make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1).items():
        (tmp_path / name).write_bytes(content)
    given: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "certificate": tmp_path / "server.pem",
        "private_key": tmp_path / "server.key",
    }
    assert MetricsAddress(address="127.0.0.1:0").tls() is None
    assert MetricsAddress(**given).tls() is not None
    for name, content in (("private_key", b"no key"), ("client_ca", b"no certificate"), ("certificate", None)):
        path = tmp_path / "other"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"files for metrics are .*{path.name}.* which cannot be used"):
            MetricsAddress(**{**given, name: path}).tls()


def test_a_key_with_a_password_asks_nobody(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    made = make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1)
    key = load_pem_private_key(made["server.key"], None)
    hidden = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "server.pem").write_bytes(made["server.pem"])
    (tmp_path / "server.key").write_bytes(hidden)
    where = MetricsAddress(
        address="127.0.0.1:0", certificate=tmp_path / "server.pem", private_key=tmp_path / "server.key"
    )
    with pytest.raises(ConfigError, match="which cannot be used"):
        where.tls()
