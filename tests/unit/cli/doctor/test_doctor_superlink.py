"""What servers say of themselves, and those that say nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from flwr_splitkd.cli.doctor.superlink import ask_http, superlink_version
from flwr_splitkd.wire.certificates import make_certificates, tls_files, write_new
from http_servers import serving

DESCRIPTION = "/openapi.json"


def described(title: str = "SuperLink API", version: str = "1.41.0") -> dict[str, object]:
    return {DESCRIPTION: {"openapi": "3.1.0", "info": {"title": title, "version": version}, "paths": {}}}


def version_of(port: int, tls: ssl.SSLContext | None = None) -> tuple[str | None, str]:
    return superlink_version(f"http{'s' if tls else ''}://127.0.0.1:{port}", tls=tls, timeout_s=2.0)


def test_a_superlink_s_version() -> None:
    with serving(described()) as port:
        assert version_of(port) == ("1.41.0", "")


def test_the_same_over_tls(tmp_path: Path) -> None:
    write_new(tmp_path, make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1))
    files = tls_files(tmp_path)
    its_own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    its_own.load_cert_chain(files.certificate, files.private_key)
    trusted = ssl.create_default_context(cafile=str(files.root_certificate))
    with serving(described(), tls=its_own) as port:
        assert version_of(port, trusted) == ("1.41.0", "")
        version, why = version_of(port, ssl.create_default_context())
    assert version is None and "CERTIFICATE_VERIFY_FAILED" in why


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        (described(title="Grocery API"), "calls itself 'Grocery API', not a SuperLink"),
        (described(version="newest"), "no description of an API"),
        ({DESCRIPTION: []}, "no description of an API"),
        ({}, "(HTTP 404)"),
    ],
)
def test_servers_that_do_not_say(pages: dict[str, object], why: str) -> None:
    with serving(pages) as port:
        version, told = version_of(port)
    assert version is None and why in told


def test_a_server_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def grpc() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00 settings of HTTP/2\n")

        thread = threading.Thread(target=grpc)
        thread.start()
        version, why = version_of(listening.getsockname()[1])
        thread.join()
    assert version is None and "that of Flower 1.30 speaks gRPC alone" in why


def test_times_of_an_answer() -> None:
    ticks = iter([100.0, 100.5])
    with serving({}, ahead_s=3600.0) as port:
        answer = ask_http(f"http://127.0.0.1:{port}", tls=None, timeout_s=2.0, clock=lambda: next(ticks))
        assert (answer.status, answer.before_s, answer.after_s) == (404, 100.0, 100.5)
        assert answer.date_s is not None and answer.date_s == int(answer.date_s)
    with serving({}, ahead_s=None) as port:
        assert ask_http(f"http://127.0.0.1:{port}/health?a=1", tls=None, timeout_s=2.0).date_s is None
