"""A real TLS handshake with certificates made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flwr_splitkd.errors import PeerLostError
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import Ticket, TlsFiles, new_ticket
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

MODEL = pb.ModelFingerprint(architecture="A", num_blocks=4)
WAIT_S = 10.0


@dataclass(frozen=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _builder(name: str) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )


def _authority(name: str) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Authority(key, certificate)


def _files(folder: Path, authority: _Authority, *names: x509.GeneralName) -> TlsFiles:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("edge")
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    files = TlsFiles(
        certificate=folder / "server.pem", private_key=folder / "server.key", root_certificate=folder / "ca.crt"
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    Path(files.certificate).write_bytes(certificate.public_bytes(pem))
    Path(files.private_key).write_bytes(private)
    Path(files.root_certificate).write_bytes(authority.pem)
    return files


def _hello(ticket: Ticket) -> pb.Hello:
    return pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=ticket.session_id,
        token=ticket.token,
        run_id=ticket.run_id,
        node_id=ticket.node_id,
        server_round=ticket.server_round,
        student=MODEL,
    )


@pytest.fixture(scope="module")
def authority() -> _Authority:
    return _authority("the right authority")


@pytest.fixture
def server(tmp_path: Path, authority: _Authority) -> Iterator[DataPlaneServer]:
    files = _files(tmp_path, authority, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    # TLS may listen anywhere without `insecure`.
    running = DataPlaneServer(data_address="0.0.0.0:0", advertised_address="127.0.0.1", tls=files)
    running.start(model=MODEL, codecs=())
    yield running
    running.stop()


def _expect(server: DataPlaneServer) -> Ticket:
    return server.expect(new_ticket(run_id=1, node_id=2, server_round=3, expires_s=1e9)).ticket


def test_the_right_authority(server: DataPlaneServer, authority: _Authority) -> None:
    assert server.root_certificate == authority.pem
    session = server.expect(new_ticket(run_id=1, node_id=2, server_round=3, expires_s=1e9))
    with connect(server.address, _hello(session.ticket), root_certificate=server.root_certificate) as device:
        device.send(pb.TurnDone(num_steps=5))
        assert session.link is not None
        assert session.link.receive("TurnDone", WAIT_S).body.num_steps == 5


def test_another_authority_of_the_same_name(server: DataPlaneServer) -> None:
    wrong = _authority("the right authority").pem
    with pytest.raises(PeerLostError, match=f"{server.address} did not answer for 1 s.*signed by the root certificate"):
        with connect(server.address, _hello(_expect(server)), root_certificate=wrong, timeout_s=1):
            pytest.fail("it trusted a stranger")


def test_a_certificate_of_another_host(tmp_path: Path, authority: _Authority) -> None:
    files = _files(tmp_path, authority, x509.DNSName("elsewhere.example.com"))
    running = DataPlaneServer(tls=files)
    running.start(model=MODEL, codecs=())
    try:
        with pytest.raises(PeerLostError, match="did not answer for 1 s.*its certificate names this host"):
            with connect(running.address, _hello(_expect(running)), root_certificate=authority.pem, timeout_s=1):
                pytest.fail("it trusted another host's certificate")
    finally:
        running.stop()


def test_plaintext_does_not_pass(server: DataPlaneServer) -> None:
    with (
        pytest.raises(PeerLostError, match=server.address),
        connect(server.address, _hello(_expect(server)), timeout_s=1),
    ):
        pytest.fail("plaintext came in")


def test_without_certificates_devices_get_no_root() -> None:
    server = DataPlaneServer()
    assert server.root_certificate == b""
    server.stop()
