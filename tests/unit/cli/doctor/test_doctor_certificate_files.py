"""Real certificates: in force, expired, of the future, of another authority, for another name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from flwr_splitkd.cli.doctor.certificate_files import CertificateFiles, check_certificates
from flwr_splitkd.cli.doctor.finding import Finding, Status
from flwr_splitkd.wire.certificates import make_certificates, write_new

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hosts = ["edge.local", "*.devices.example", "10.0.0.1", "fd00::10"]
    write_new(tmp_path, make_certificates(hosts=hosts, supernodes=1, days=90, now=NOON))
    return tmp_path


def files(folder: Path) -> CertificateFiles:
    return CertificateFiles(
        root=folder / "ca.crt",
        certificate=folder / "server.pem",
        private_key=folder / "server.key",
        supernode_keys=tuple(folder.glob("supernode-*.key")),
    )


def look(folder: Path, *hosts: str, now: datetime = NOON) -> dict[str, Finding]:
    """What is found, by its name without the folder."""
    found = check_certificates(files(folder), hosts=hosts, now=now)
    return {finding.name.replace(f"{folder}/", ""): finding for finding in found}


def not_ok(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.status is not Status.OK}


def test_as_the_command_makes_them(folder: Path) -> None:
    found = look(folder, "edge.local", "a.devices.example", "10.0.0.1", "fd00:0::10", "EDGE.local.")
    assert not_ok(found) == set()
    assert found["server.pem"].seen == "valid until 2026-05-30 12:00 UTC, 90 days left"
    assert {"ca.crt", "signature of server.pem", "server.key and its certificate", "mode of server.key"} <= set(found)
    assert "mode of supernode-0.key" in found


@pytest.mark.parametrize("host", ["edge", "a.b.devices.example", "devices.example", "10.0.0.2", "fd00::11"])
def test_a_name_that_it_is_not_for(host: str, folder: Path) -> None:
    found = look(folder, host)
    assert not_ok(found) == {f"{host} in server.pem"}
    (refused,) = (finding for finding in found.values() if finding.status is Status.WRONG)
    assert "edge.local, *.devices.example, 10.0.0.1, fd00::10" in refused.seen
    assert f"flwr-splitkd certificates FOLDER --host {host}" in refused.remedy


def test_expired(folder: Path) -> None:
    found = look(folder, now=NOON + timedelta(days=91))
    assert not_ok(found) == {"ca.crt", "server.pem"}
    server = found["server.pem"]
    assert server.status is Status.WRONG and server.seen.startswith("expired on 2026-05-30 12:00 UTC; this clock says")
    assert "flwr-splitkd certificates FOLDER --host NAME --force" in server.remedy


def test_of_the_future_as_on_a_board_without_a_battery(folder: Path) -> None:
    server = look(folder, now=datetime(1970, 1, 1, tzinfo=timezone.utc))["server.pem"]
    assert server.status is Status.WRONG and "this clock says 1970-01-01" in server.seen
    assert "Set this machine's clock" in server.remedy


@pytest.mark.parametrize(
    ("days", "left", "status"), [(60, 30, Status.OK), (61, 29, Status.WARNING), (89.5, 1, Status.WARNING)]
)
def test_days_left(days: float, left: int, status: Status, folder: Path) -> None:
    server = look(folder, now=NOON + timedelta(days=days))["server.pem"]
    assert server.status is status and f", {left} day" in server.seen


def test_of_two_authorities_and_two_pairs(folder: Path) -> None:
    others = make_certificates(hosts=["edge.local"], supernodes=0, days=90, now=NOON)
    (folder / "ca.crt").write_bytes(others["ca.crt"])
    (folder / "server.key").write_bytes(others["server.key"])
    found = look(folder)
    assert not_ok(found) == {"signature of server.pem", "server.key and its certificate"}
    assert "another authority, or one of the same name" in found["signature of server.pem"].seen
    assert found["server.key and its certificate"].seen == "of different pairs"


def test_a_chain_by_way_of_another_authority(folder: Path) -> None:
    root = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    root_key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    between_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def signed(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, by: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(NOON).not_valid_after(NOON + timedelta(days=90)).sign(by, hashes.SHA256())

    between = signed("between", between_key, root.subject, root_key)
    server = signed("edge", server_key, between.subject, between_key)
    chain = [server.public_bytes(Encoding.PEM), between.public_bytes(Encoding.PEM)]
    key = server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(key)
    (folder / "server.pem").write_bytes(b"".join(chain))
    assert not_ok(look(folder)) == set()
    (folder / "server.pem").write_bytes(chain[0])
    assert not_ok(look(folder)) == {"signature of server.pem"}


@pytest.mark.parametrize(("mode", "status"), [(0o600, Status.OK), (0o640, Status.WARNING), (0o644, Status.WRONG)])
def test_who_may_read_the_key(mode: int, status: Status, folder: Path) -> None:
    (folder / "server.key").chmod(mode)
    found = look(folder)["mode of server.key"]
    assert found.status is status and found.seen.startswith(f"{mode:04o}")
    assert found.remedy == ("" if status is Status.OK else f"chmod 600 {folder}/server.key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(("mode", "status"), [(0o640, Status.OK), (0o660, Status.WARNING), (0o644, Status.WRONG)])
def test_a_key_of_root_s_that_a_service_reads(mode: int, status: Status, folder: Path) -> None:
    """As docs/how-to/operations.md installs it; `chmod 600` would take it from the service."""
    os.chown(folder / "server.key", 0, 12345)
    (folder / "server.key").chmod(mode)
    assert look(folder)["mode of server.key"].status is status


def test_files_that_are_missing_or_something_else(folder: Path) -> None:
    (folder / "server.key").unlink()
    (folder / "server.pem").write_text("no certificate")
    (folder / "supernode-0.key").write_text("no key")
    found = look(folder, "edge.local")
    assert not_ok(found) == {"server.key", "server.pem", "supernode-0.key"}
    assert found["server.key"].seen == "missing" and "flwr-splitkd certificates" in found["server.key"].remedy
    assert found["server.pem"].seen.startswith("cannot be parsed")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_this_user_may_not_read(folder: Path) -> None:
    (folder / "server.key").chmod(0)
    found = look(folder)["server.key"]
    assert found.status is Status.WRONG and "cannot be read" in found.seen and "ls -l" in found.remedy


def test_a_key_with_a_passphrase(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open"))
    (folder / "server.key").write_bytes(locked)
    found = look(folder)["server.key"]
    assert found.status is Status.WRONG and found.seen == "has a passphrase" and "openssl pkey" in found.remedy


def test_a_supernode_s_key_of_a_kind_that_flower_does_not_take(folder: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    (folder / "supernode-0.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    found = look(folder)["supernode-0.key"]
    assert found.status is Status.WRONG and "Ed25519" in found.seen and "ssh-keygen -t ecdsa" in found.remedy


def test_what_a_device_has_of_them(folder: Path) -> None:
    found: Iterable[Finding] = check_certificates(
        CertificateFiles(root=folder / "ca.crt", supernode_keys=(folder / "supernode-0.key",)), hosts=["x"], now=NOON
    )
    assert [finding.name for finding in found] == [f"{folder}/ca.crt", f"mode of {folder}/supernode-0.key"]
