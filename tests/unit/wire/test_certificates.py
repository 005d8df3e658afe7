"""Development certificates: what is in them, who trusts them, and how they reach the disk."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from flwr_splitkd.errors import ConfigError, PeerLostError, StoreError
from flwr_splitkd.wire import certificates
from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, supernode_key, tls_files, write_new
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)
MODEL = pb.ModelFingerprint(architecture="A", num_blocks=4)


def shake_hands(folder: Path, host: str, timeout_s: float = 10.0) -> int:
    """Open a stream to an edge that has the folder's certificate, by one of its names; what arrived there."""
    running = DataPlaneServer(data_address="127.0.0.1:0", advertised_address=host, tls=tls_files(folder))
    running.start(model=MODEL, codecs=())
    try:
        session = running.expect(new_ticket(run_id=1, node_id=2, server_round=3, expires_s=1e9))
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            session_id=session.ticket.session_id,
            token=session.ticket.token,
            run_id=1,
            node_id=2,
            server_round=3,
            student=MODEL,
        )
        root = running.root_certificate
        with connect(running.address, hello, root_certificate=root, timeout_s=timeout_s) as link:
            link.send(pb.TurnDone(num_steps=5))
            assert session.link is not None
            return int(session.link.receive("TurnDone", timeout_s).body.num_steps)
    finally:
        running.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_device_trusts_the_edge_by_its_names(host: str, tmp_path: Path) -> None:
    write_new(tmp_path, make_certificates(hosts=[host], supernodes=0, days=1))
    assert shake_hands(tmp_path, host) == 5


@pytest.mark.parametrize(("named", "dialled"), [("127.0.0.1", "localhost"), ("edge.example", "127.0.0.1")])
def test_a_device_trusts_it_by_no_other_name(named: str, dialled: str, tmp_path: Path) -> None:
    write_new(tmp_path, make_certificates(hosts=[named], supernodes=0, days=1))
    with pytest.raises(PeerLostError, match="its certificate names this host"):
        shake_hands(tmp_path, dialled, timeout_s=1.0)


def test_a_device_does_not_trust_what_has_expired(tmp_path: Path) -> None:
    long_ago = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=3)
    write_new(tmp_path, make_certificates(hosts=["127.0.0.1"], supernodes=0, days=2, now=long_ago))
    with pytest.raises(PeerLostError, match="did not answer"):
        shake_hands(tmp_path, "127.0.0.1", timeout_s=1.0)


def test_what_the_certificates_say() -> None:
    hosts = ["edge.local", "10.0.0.1", "fd00::10", "*.lab.example", "my_host", "edge.local"]
    files = make_certificates(hosts=hosts, supernodes=0, days=30, now=NOON)
    assert sorted(files) == ["ca.crt", "ca.key", "server.key", "server.pem"]
    ca = x509.load_pem_x509_certificate(files["ca.crt"])
    server = x509.load_pem_x509_certificate(files["server.pem"])
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge.local", "*.lab.example", "my_host"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.0.0.1"),
        ipaddress.ip_address("fd00::10"),
    ]
    for certificate in (ca, server):
        assert certificate.not_valid_after_utc == NOON + datetime.timedelta(days=30)
        assert certificate.not_valid_before_utc < NOON
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_supernodes_keys_are_what_flower_reads() -> None:
    files = make_certificates(hosts=["localhost"], supernodes=2, days=1)
    publics = set()
    for supernode in range(2):
        private = load_ssh_private_key(files[f"supernode-{supernode}.key"], None)
        public = load_ssh_public_key(files[f"supernode-{supernode}.pub"])
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        publics.add(files[f"supernode-{supernode}.pub"].split()[1])
    assert len(publics) == 2


def test_loopback_is_always_named() -> None:
    assert edge_hosts(["edge.local", "127.0.0.1"]) == ("edge.local", "127.0.0.1", "localhost", "::1")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("orin-1", ("orin-1", "localhost")), ("löwe", ("localhost",)), ("", ("localhost",))],
)
def test_the_machines_own_name(machine: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates.socket, "gethostname", lambda: machine)
    assert edge_hosts([]) == (*expected, "127.0.0.1", "::1")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "edge.local:8000",
        "https://edge.local",
        "[::1]",
        "fe80::1%eth0",
        "a b",
        "a..b",
        "-a",
        "1.2.3",
        "1.2.3.400",
        "löwe.example",
        "a" * 64,
        "a.*.b",
    ],
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(ConfigError, match="expected a DNS name or an IP address without a scheme") as raised:
        make_certificates(hosts=["localhost", host], supernodes=0, days=1)
    assert repr(host) in str(raised.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_wildcard_address_is_no_name(host: str) -> None:
    with pytest.raises(ConfigError, match=f"'{host}', which means every address.*expected one that devices can dial"):
        make_certificates(hosts=[host], supernodes=0, days=1)


def test_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"`days` is 0; expected 1\.\.825"):
        make_certificates(hosts=["localhost"], supernodes=0, days=0)
    with pytest.raises(ConfigError, match=r"`days` is 826; expected 1\.\.825"):
        make_certificates(hosts=["localhost"], supernodes=0, days=826)
    with pytest.raises(ConfigError, match=r"`supernodes` is -1; expected 0\.\."):
        make_certificates(hosts=["localhost"], supernodes=-1, days=1)
    with pytest.raises(ConfigError, match="`hosts` is empty"):
        make_certificates(hosts=[], supernodes=0, days=1)


FILES = {"ca.key": b"secret", "ca.crt": b"public"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_keys_are_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "certs"
    write_new(folder, make_certificates(hosts=["localhost"], supernodes=1, days=1))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    private = {"ca.key", "server.key", "supernode-0.key"}
    assert supernode_key(folder, 0).exists()
    assert {name for name, mode in modes.items() if mode == 0o600} == private
    assert {name for name, mode in modes.items() if mode == 0o644} == {"ca.crt", "server.pem", "supernode-0.pub"}


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"has ca\.key already; expected a folder without them.*--force"):
        write_new(tmp_path, FILES)
    assert contents(tmp_path) == {"ca.key": b"old"}


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ca.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"ca\.key already"):
        write_new(tmp_path, FILES)
    write_new(tmp_path, FILES, force=True)
    assert contents(tmp_path) == FILES


def test_force_replaces_these_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(b"old")
    (tmp_path / "ca.key").chmod(0o644)
    (tmp_path / "mine").write_bytes(b"mine")
    write_new(tmp_path, FILES, force=True)
    assert contents(tmp_path) == {**FILES, "mine": b"mine"}
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


def failing(method: Callable[..., Path], calls: int) -> Callable[..., Path]:
    def rename(self: Path, target: Path) -> Path:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise OSError("no space left")
        return method(self, target)

    return rename


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_error_half_way_leaves_the_old_files(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"ca.key": b"old", "ca.crt": b"old too"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(Path, "rename", failing(Path.rename, call))
    with pytest.raises(StoreError, match="cannot be written: no space left"):
        write_new(tmp_path, FILES, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", [1, 2])
def test_an_error_half_way_leaves_no_new_file(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", failing(Path.rename, call))
    with pytest.raises(StoreError, match="cannot be written"):
        write_new(tmp_path, FILES)
    assert contents(tmp_path) == {}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        write_new(tmp_path / "file" / "certs", FILES)
