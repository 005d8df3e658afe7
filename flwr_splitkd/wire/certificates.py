"""Certificates and keys for development: an authority, the edge's certificate, the SuperNodes' keys. Torch-free.

=======================  =======================================================================  =====
file                     what it is                                                               mode
=======================  =======================================================================  =====
``ca.crt``               the authority's certificate; SuperNodes and `flwr` check the edge by it  0644
``ca.key``               its private key, to sign with once more                                  0600
``server.pem``           the edge's certificate, for the SuperLink and the data plane             0644
``server.key``           its private key                                                          0600
``supernode-<i>.key``    private key by which SuperNode i proves who it is                        0600
``supernode-<i>.pub``    its public key, which `flwr supernode register` takes                    0644
=======================  =======================================================================  =====

Flower reads the SuperNodes' keys in OpenSSH's format, on a NIST curve, both in version 1.30 and in 1.41.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.wire.credentials import TlsFiles

__all__ = ["edge_hosts", "make_certificates", "supernode_key", "supernode_public_key", "tls_files", "write_new"]

_MAX_DAYS = 825
"""Some systems refuse server certificates that are valid for longer."""
_MAX_SUPERNODES = 10_000
_CLOCK_SKEW = datetime.timedelta(hours=1)
"""The certificates are valid a little before they are made: a board's clock may be behind the edge's."""
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def tls_files(folder: str | Path) -> TlsFiles:
    """Where the edge's files are in a folder of certificates."""
    root = Path(folder)
    return TlsFiles(certificate=root / "server.pem", private_key=root / "server.key", root_certificate=root / "ca.crt")


def supernode_key(folder: str | Path, supernode: int) -> Path:
    """Where a SuperNode's private key is in a folder of certificates; SuperNodes are counted from 0."""
    return Path(folder) / f"supernode-{supernode}.key"


def supernode_public_key(folder: str | Path, supernode: int) -> Path:
    """Where a SuperNode's public key is in a folder of certificates; SuperNodes are counted from 0."""
    return Path(folder) / f"supernode-{supernode}.pub"


def edge_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """The edge's names for a certificate: those given, or else its host name, and loopback in any case.

    A SuperLink that listens on all addresses has its own helper processes dial 127.0.0.1 (Flower 1.41).
    """
    machine = socket.gethostname()
    own = (machine,) if _is_address(machine) or _is_dns_name(machine) else ()
    return tuple(dict.fromkeys((*(hosts or own), "localhost", "127.0.0.1", "::1")))


def make_certificates(
    *, hosts: Sequence[str], supernodes: int, days: int, now: datetime.datetime | None = None
) -> dict[str, bytes]:
    """Make an authority, a certificate of the edge signed by it, and a key pair for each SuperNode.

    Parameters
    ----------
    hosts
        DNS names and IP addresses by which SuperNodes, devices and `flwr` reach the edge.
    supernodes
        Number of key pairs, from 0.
    days
        How long both certificates are valid, 1..825. Keys of SuperNodes do not expire.
    now
        Time with a zone from which the days count; now when not given.

    Returns
    -------
    files
        Contents by file name; see the table in this module's description.

    Raises
    ------
    ConfigError
        If a value is out of range, or a host is neither a DNS name nor an address that can be dialled.
    """
    if not 1 <= days <= _MAX_DAYS:
        raise ConfigError(f"`days` is {days}; expected 1..{_MAX_DAYS}. Make new certificates when these expire.")
    if not 0 <= supernodes <= _MAX_SUPERNODES:
        raise ConfigError(f"`supernodes` is {supernodes}; expected 0..{_MAX_SUPERNODES}, one key pair for each.")
    if not hosts:
        raise ConfigError("`hosts` is empty; expected the names or addresses by which devices reach the edge.")
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])

    now = now or datetime.datetime.now(datetime.timezone.utc)
    valid = (now - _CLOCK_SKEW, now + datetime.timedelta(days=days))
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _authority(ca_key, valid)
    server = _server(server_key.public_key(), names, ca, ca_key, valid)
    files = {
        "ca.crt": ca.public_bytes(Encoding.PEM),
        "ca.key": ca_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "server.pem": server.public_bytes(Encoding.PEM),
        "server.key": server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    for supernode in range(supernodes):
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        files[supernode_key("", supernode).name] = private
        files[supernode_public_key("", supernode).name] = public + f" supernode-{supernode}\n".encode()
    return files


def write_new(folder: Path, files: Mapping[str, bytes], *, force: bool = False) -> None:
    """Write files into a folder: all of them, or on any error none. Those named ``*.key`` get mode 0600.

    Parameters
    ----------
    folder
        Created when missing.
    files
        Contents by file name.
    force
        Replace files of these names; without it their presence is an error.

    Raises
    ------
    ConfigError
        If a file is there already and may not be replaced.
    StoreError
        If the folder cannot be written.
    """
    taken = sorted(name for name in files if os.path.lexists(folder / name))
    if taken and not force:
        raise ConfigError(
            f"{folder} has {', '.join(taken)} already; expected a folder without them. Choose another folder, or pass "
            "--force to replace them: whoever trusts the old ones must then get the new ones."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, because moving a file is all or nothing only within one file system.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            old.mkdir()
            for name, content in files.items():
                _write(new / name, content, 0o600 if name.endswith(".key") else 0o644)
            _move_all(list(files), new, folder, old)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error}.") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    # Made with its mode, so that a key is at no time readable by others; chmod, since the umask may take bits away.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)


def _move_all(names: Sequence[str], new: Path, folder: Path, old: Path) -> None:
    """Move files from `new` into `folder`, those that are in the way to `old`; put everything back on an error."""
    moved: list[str] = []
    try:
        for name in names:
            moved.append(name)
            if os.path.lexists(folder / name):
                (folder / name).rename(old / name)
            (new / name).rename(folder / name)
    except BaseException:
        for name in moved:
            if not os.path.lexists(new / name):
                (folder / name).unlink()
            if os.path.lexists(old / name):
                (old / name).rename(folder / name)
        raise


def _authority(key: ec.EllipticCurvePrivateKey, valid: tuple[datetime.datetime, datetime.datetime]) -> x509.Certificate:
    name = _name("flwr_splitkd development authority")
    return (
        _builder(name, name, key.public_key(), valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _server(
    key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(_name("flwr_splitkd edge"), ca.subject, key, valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        # Newer Pythons (3.13) refuse certificates without it.
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    if _is_address(host):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            raise ConfigError(
                f"`host` is {host!r}, which means every address of a machine; expected one that devices can dial, such as "
                "edge.local or 192.168.1.10."
            )
        return x509.IPAddress(address)
    if not _is_dns_name(host):
        raise ConfigError(
            f"`host` is {host!r}; expected a DNS name or an IP address without a scheme, port or brackets, such as "
            "edge.local, 192.168.1.10 or fd00::10."
        )
    return x509.DNSName(host)


def _is_address(host: str) -> bool:
    try:
        # A scope ("fe80::1%eth0") means something on one machine only, and a certificate has no room for it.
        return "%" not in host and bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _is_dns_name(host: str) -> bool:
    labels = host.removeprefix("*.").split(".")
    # A last label of digits alone is a mistyped address, never a name.
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()
