"""Certificates and keys as files: that they are there, in force, of one pair, for the right names, and kept to oneself."""

from __future__ import annotations

import ipaddress
import math
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from flwr_splitkd.cli.doctor.finding import Finding, ok, skipped, warning, wrong

__all__ = ["CertificateFiles", "check_certificates"]

_Parsed = TypeVar("_Parsed")
_FEW_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Files of a machine; None of what its role does not need.

    Parameters
    ----------
    root
        The authority's certificate.
    certificate, private_key
        The server's certificate, perhaps with those between it and the authority, and its key.
    supernode_keys
        Private keys by which SuperNodes prove who they are.
    """

    root: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    supernode_keys: tuple[Path, ...] = ()


def check_certificates(files: CertificateFiles, *, hosts: Sequence[str], now: datetime) -> Iterator[Finding]:
    """Look at all files.

    Parameters
    ----------
    files
        Which are to be there.
    hosts
        Names and addresses that others dial, and that the server's certificate must therefore be for.
    now
        With a zone.
    """
    roots = yield from _certificates(files.root, now)
    chain = yield from _certificates(files.certificate, now)
    if chain and roots:
        yield _check_signature(chain, roots, files)
    if chain and files.certificate is not None:
        yield from (_check_host(host, chain[0], files.certificate) for host in hosts)
    if files.private_key is not None:
        yield from _check_server_key(files.private_key, chain[0] if chain else None)
    for path in files.supernode_keys:
        yield from _check_supernode_key(path)


def _certificates(path: Path | None, now: datetime) -> Generator[Finding, None, list[x509.Certificate]]:
    """Yield what is found of a file of certificates, and return them; none if it cannot be read."""
    if path is None:
        return []
    read = _read(path, "certificates in PEM", x509.load_pem_x509_certificates)
    if isinstance(read, Finding):
        yield read
        return []
    for number, certificate in enumerate(read):
        yield _check_dates(str(path) if len(read) == 1 else f"{path} ({number + 1})", certificate, now)
    return read


def _check_dates(name: str, certificate: x509.Certificate, now: datetime) -> Finding:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return wrong(
            name,
            f"not valid before {begin:%Y-%m-%d %H:%M} UTC; this clock says {now:%Y-%m-%d %H:%M} UTC",
            expected="a certificate in force",
            remedy="Set this machine's clock (sudo timedatectl set-ntp true), which is behind unless the certificate is really of "
            "the future.",
        )
    if now > end:
        return wrong(
            name,
            f"expired on {end:%Y-%m-%d %H:%M} UTC; this clock says {now:%Y-%m-%d %H:%M} UTC",
            expected="a certificate in force",
            remedy=_renew("If the clock is right, make new ones"),
        )
    days = math.ceil((end - now) / timedelta(days=1))
    seen = f"valid until {end:%Y-%m-%d %H:%M} UTC, {days} day{'' if days == 1 else 's'} left"
    if days < _FEW_DAYS:
        return warning(name, seen, expected=f"at least {_FEW_DAYS} days", remedy=_renew("Make new ones in time"))
    return ok(name, seen, f"at least {_FEW_DAYS} days")


def _check_signature(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], files: CertificateFiles
) -> Finding:
    """From the server's certificate upwards, each is signed by the next, and the last by a root, or is one itself."""
    name = f"signature of {files.certificate}"
    for index, certificate in enumerate(chain):
        if certificate in roots or any(_issued(certificate, root) for root in roots):
            return ok(name, f"by {_subject(certificate.issuer)}", f"an authority in {files.root}")
        if index + 1 == len(chain) or not _issued(certificate, chain[index + 1]):
            break
    return wrong(
        name,
        f"by {_subject(certificate.issuer)}, which is another authority, or one of the same name",
        expected=f"one of {files.root}: {', '.join(_subject(root.subject) for root in roots)}",
        remedy=_renew("Bring together files that were made at once, or make new ones"),
    )


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_host(host: str, certificate: x509.Certificate, path: Path) -> Finding:
    name = f"{host} in {path}"
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    known = [str(known.value) for known in names]
    listed = ", ".join(known) or "none"
    if _is_named(host, names):
        return ok(name, f"it is for {listed}", "a certificate for this name")
    return wrong(
        name,
        f"it is for {listed}",
        expected=f"a certificate for {host}",
        remedy=f"Advertise one of its names, or flwr-splitkd certificates FOLDER --host {host}.",
    )


def _is_named(host: str, names: x509.SubjectAlternativeName) -> bool:
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass  # a name
    host = host.lower().rstrip(".")
    for pattern in map(str.lower, names.get_values_for_type(x509.DNSName)):
        # "*" stands for the first label alone.
        if pattern == host or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:]):
            return True
    return False


def _check_server_key(path: Path, certificate: x509.Certificate | None) -> Iterator[Finding]:
    key = _read(
        path, "a private key in PEM without a passphrase", lambda data: load_pem_private_key(data, password=None)
    )
    if isinstance(key, Finding):
        yield key
        return
    yield _check_mode(path)
    if certificate is None:
        return
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form):
        yield ok(f"{path} and its certificate", "of one pair", "of one pair")
    else:
        yield wrong(
            f"{path} and its certificate",
            "of different pairs",
            expected="of one pair",
            remedy=_renew("Bring together files that were made at once, or make new ones"),
        )


def _check_supernode_key(path: Path) -> Iterator[Finding]:
    read = _read(path, "a private key in OpenSSH's format", lambda data: load_ssh_private_key(data, password=None))
    if isinstance(read, Finding):
        yield read
    elif not isinstance(read, ec.EllipticCurvePrivateKey):
        yield wrong(
            str(path),
            f"a key of the kind {type(read).__name__}",
            expected="one on a NIST curve, which is what Flower takes",
            remedy="ssh-keygen -t ecdsa -b 384 -N '', and register the new public key.",
        )
    else:
        yield _check_mode(path)


def _check_mode(path: Path) -> Finding:
    try:
        status = path.stat()
    except OSError as error:
        return skipped(f"mode of {path}", f"not known: {error.strerror}")
    mode = stat.S_IMODE(status.st_mode)
    name, seen, remedy = f"mode of {path}", f"{mode:04o}", f"chmod 600 {path}"
    if mode & stat.S_IRWXO:
        return wrong(name, f"{seen}: others than its owner and group may use it", expected="0600", remedy=remedy)
    if mode & stat.S_IRWXG == stat.S_IRGRP and status.st_uid == 0 and status.st_gid != 0:
        # As the systemd units have it (docs/how-to/operations.md): the service can read its key, and cannot replace it.
        return ok(
            name,
            f"{seen}, root's, readable by the group {status.st_gid}",
            "0600, or root's and readable by a service's group",
        )
    if mode & stat.S_IRWXG:
        return warning(name, f"{seen}: its group may use it", expected="0600", remedy=remedy)
    return ok(name, seen, "0600")


def _read(path: Path, expected: str, parse: Callable[[bytes], _Parsed]) -> _Parsed | Finding:
    """Parse a file, or say what is wrong with it."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        remedy = _renew("Copy it here from where it was made, or make new ones")
        return wrong(str(path), "missing", expected=expected, remedy=remedy)
    except OSError as error:
        remedy = f"Let the user that runs this read it: ls -l {path}"
        return wrong(str(path), f"cannot be read: {error.strerror}", expected=expected, remedy=remedy)
    except TypeError:  # what cryptography says to a key with a passphrase
        remedy = f"openssl pkey -in {path} -out the same without a passphrase, readable by its owner alone"
        return wrong(str(path), "has a passphrase", expected=expected, remedy=remedy)
    except (ValueError, UnsupportedAlgorithm) as error:
        remedy = _renew("Copy it here once more, or make new ones")
        return wrong(str(path), f"cannot be parsed: {error}".strip(": "), expected=expected, remedy=remedy)


def _renew(what: str) -> str:
    return f"{what}: flwr-splitkd certificates FOLDER --host NAME --force for development, otherwise as your organisation does."


def _subject(name: x509.Name) -> str:
    return name.rfc4514_string() or "nobody"
