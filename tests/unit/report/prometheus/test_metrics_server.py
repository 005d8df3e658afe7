"""The endpoint's HTTP: what is read, who may read, and that nobody holds it up."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.report.prometheus import MetricsAddress
from flwr_splitkd.report.prometheus.server import MetricsServer
from flwr_splitkd.wire.certificates import make_certificates

WAIT_S = 10.0


@contextlib.contextmanager
def serving(value: float = 1.0, **where: Any) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("answer", "To all.", registry=registry).set(value)
    server = MetricsServer(MetricsAddress(**{"address": "127.0.0.1:0", **where}), registry)
    try:
        yield server
    finally:
        server.close()


def read(server: MetricsServer, context: ssl.SSLContext | None = None, path: str = "") -> dict[str, float]:
    with urllib.request.urlopen(server.url + path, timeout=WAIT_S, context=context) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_what_is_read() -> None:
    with serving(42.0) as server:
        assert server.url == f"http://{server.address}/metrics" and not server.address.endswith(":0")
        assert read(server) == {"answer": 42.0}
        assert read(server, path="?name[]=nothing") == {}
        asked = urllib.request.Request(server.url, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
            assert b"answer 42.0" in gzip.decompress(answer.read())


def test_the_port_is_free_again_at_once() -> None:
    with serving(1.0) as first:
        assert read(first) == {"answer": 1.0}
        address = first.address
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), WAIT_S).close()
    for value in (2.0, 3.0):
        with serving(value, address=address) as next_one:
            assert read(next_one) == {"answer": value}
    assert not [thread for thread in threading.enumerate() if thread.name == "splitkd-metrics"]


def test_a_port_that_is_taken() -> None:
    with serving(1.0) as first:
        words = f"`metrics address` is '{first.address}', which cannot be bound: .* Expected a free port .* choose another one"
        with pytest.raises(ConfigError, match=words), serving(2.0, address=first.address):
            pytest.fail("two servers share a port")
        assert read(first) == {"answer": 1.0}


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"`metrics address` is '192.0.2.1:9464', which cannot be bound"):
        with serving(address="192.0.2.1:9464"):
            pytest.fail("it was bound")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with serving(6.0, address="[::1]:0") as server:
        assert server.address.startswith("[::1]:") and read(server) == {"answer": 6.0}


def test_readers_that_stand_still_hold_up_nobody() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        host, _, port = server.address.rpartition(":")
        for _ in range(5):
            stack.enter_context(socket.create_connection((host, int(port)), WAIT_S)).sendall(b"GET /met")
        assert read(server) == {"answer": 1.0}
        started_s = time.monotonic()
        server.close()
        assert time.monotonic() - started_s < 2


def test_more_readers_than_there_are_places() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        host, _, port = server.address.rpartition(":")
        idle = [stack.enter_context(socket.create_connection((host, int(port)), WAIT_S)) for _ in range(20)]
        dropped = idle[-1]
        dropped.settimeout(WAIT_S)
        assert dropped.recv(1) == b""
        for one in idle:
            one.close()
        deadline_s = time.monotonic() + WAIT_S
        while True:  # their threads need a moment to notice
            try:
                assert read(server) == {"answer": 1.0}
                break
            except OSError:
                assert time.monotonic() < deadline_s, "nobody got a place any more"
                time.sleep(0.02)


# ---- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name, content in make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1).items():
        (folder / name).write_bytes(content)
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Prometheus")]),
        datetime.datetime.now(datetime.timezone.utc),
    )
    certificate = (  # its own authority
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "client.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "client.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder


def files(folder: Path, **more: Path) -> dict[str, Path]:
    return {"certificate": folder / "server.pem", "private_key": folder / "server.key", **more}


def test_over_tls(certificates: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    with serving(7.0, **files(certificates)) as server:
        assert server.url.startswith("https://") and read(server, trusting) == {"answer": 7.0}
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            read(server, ssl.create_default_context())
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://{server.address}/metrics", timeout=WAIT_S)
        assert read(server, trusting) == {"answer": 7.0}


def test_only_who_shows_a_certificate(certificates: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    with serving(8.0, **files(certificates, client_ca=certificates / "client.pem")) as server:
        with pytest.raises(OSError):
            read(server, trusting)
        trusting.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert read(server, trusting) == {"answer": 8.0}


def test_who_does_not_shake_hands_holds_up_nobody(certificates: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    with serving(9.0, **files(certificates)) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), WAIT_S):
            assert read(server, trusting) == {"answer": 9.0}
            started_s = time.monotonic()
            server.close()
            assert time.monotonic() - started_s < 2
