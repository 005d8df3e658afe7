"""Which checks there are, and what each is given of the machine: the one place of the command that looks around by itself."""

from __future__ import annotations

import datetime
import functools
import math
import os
import platform
import resource
import ssl
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from flwr_splitkd.cli.doctor.clock import check_kernel_clock, check_skew, read_kernel_clock
from flwr_splitkd.cli.doctor.disk import check_folder
from flwr_splitkd.cli.doctor.finding import Finding, skipped, wrong
from flwr_splitkd.cli.doctor.hardware import read_hardware
from flwr_splitkd.cli.doctor.limits import check_open_files, check_programs, check_runtime_installation
from flwr_splitkd.cli.doctor.memory import check_memory, read_memory
from flwr_splitkd.cli.doctor.needs import Need
from flwr_splitkd.cli.doctor.ports import Peer, check_port, check_reachable
from flwr_splitkd.cli.doctor.superlink import ask_http, superlink_version
from flwr_splitkd.cli.doctor.telemetry import check_telemetry
from flwr_splitkd.cli.doctor.torch_build import TorchBuild, check_torch, probe_torch
from flwr_splitkd.cli.doctor.versions import (
    check_extras,
    check_flower,
    check_packages,
    check_python,
    installed_version,
)
from flwr_splitkd.wire.address import ListenAddress

__all__ = ["Options", "checks"]

_DIAL_S = 5.0
"""Seconds for one step of a connection."""
_OF_LIMIT = 0.9
"""Share of a check's time that torch's process has, so that the check itself can say that it took too long."""

_ENERGY = {"energy": "measured energy of NVIDIA GPUs"}
_EXTRAS = {"device": _ENERGY, "edge": {"report": "figures of runs", **_ENERGY}, "cloud": _ENERGY}
"""What each role has of extras."""

_NAME_ONE = {
    "device": "Give `--superlink HOST:PORT`, and `--edge HOST:PORT` while a run goes on.",
    "edge": "Give `--port`, the data plane's; in a chain `--cloud HOST:PORT`, too.",
    "cloud": "Give `--port`, which edges dial.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is known of the machine beforehand, as the command was told.

    Parameters
    ----------
    role
        ``"device"``, ``"edge"`` or ``"cloud"``.
    extras
        That must be installed.
    superlink_version
        At least ``X.Y``; None to ask the SuperLink.
    superlink, edge, cloud
        Whom to dial.
    port
        To listen on.
    certificates
        Folder, as ``flwr-splitkd certificates`` makes it.
    certificate, private_key, root_certificate
        Files in place of the folder's.
    hosts
        Names and addresses that others dial.
    time_from
        URL of a server whose clock is right.
    need
        Of the models.
    run_folder
        Of the edge's runs, or the cloud's state.
    root
        Where the machine's ``proc``, ``sys`` and ``etc`` lie.
    limit_s
        Seconds for each check.
    """

    role: str
    extras: tuple[str, ...] = ()
    superlink_version: str | None = None
    superlink: Peer | None = None
    edge: Peer | None = None
    cloud: Peer | None = None
    port: ListenAddress | None = None
    certificates: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    root_certificate: Path | None = None
    hosts: tuple[str, ...] = ()
    time_from: str | None = None
    need: Need | None = None
    run_folder: Path = Path("runs")
    root: Path = Path("/")
    limit_s: float = 60.0

    @property
    def authority(self) -> Path | None:
        """File of the authority's certificate."""
        return self.root_certificate or (self.certificates / "ca.crt" if self.certificates else None)

    def trust(self) -> ssl.SSLContext | None:
        """Whom to trust when dialling; None without TLS.

        Raises
        ------
        OSError
            If the authority's certificate cannot be read.
        """
        if self.authority is None:
            return None
        return ssl.create_default_context(cafile=str(self.authority))

    def superlink_url(self, path: str) -> str:
        """A page of the SuperLink."""
        return f"{'http' if self.authority is None else 'https'}://{self.superlink}{path}"


def checks(options: Options) -> Mapping[str, Callable[[], Iterable[Finding]]]:
    """Return every check by its name, in the order in which they are run."""
    hardware = functools.cache(lambda: read_hardware(options.root))
    build = functools.cache(lambda: probe_torch(sys.path, limit_s=_OF_LIMIT * options.limit_s))

    def memory() -> Iterator[Finding]:
        # Importing torch takes seconds: only if there is a GPU to ask it about.
        told = build() if hardware().gpu else TorchBuild()
        return check_memory(options.need, read_memory(options.root), hardware(), told)

    def limits() -> Iterator[Finding]:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield check_open_files(math.inf if soft == resource.RLIM_INFINITY else soft)
        yield check_runtime_installation(os.environ, hardware(), has_flower=options.role != "cloud")
        yield from check_programs(options.role, os.environ.get("PATH", ""), Path(sysconfig.get_path("scripts")))

    return {
        "versions": lambda: _versions(options, has_gpu=bool(hardware().gpus)),
        "torch": lambda: check_torch(build(), hardware()),
        "ports": lambda: _ports(options),
        "certificates": lambda: _certificates(options),
        "clock": lambda: _clock(options),
        "telemetry": lambda: _telemetry(options),
        "memory": memory,
        "disk": lambda: _disk(options),
        "limits": limits,
    }


def _versions(options: Options, *, has_gpu: bool) -> Iterator[Finding]:
    yield check_python(platform.python_version(), sys.path)
    yield from check_packages(sys.path)
    useful = {extra: why for extra, why in _EXTRAS[options.role].items() if extra not in _ENERGY or has_gpu}
    yield from check_extras(useful, options.extras, sys.path)
    if options.role == "cloud":
        return
    theirs, why = options.superlink_version, ""
    if theirs is None and options.superlink is not None:
        try:
            theirs, why = superlink_version(options.superlink_url(""), tls=options.trust(), timeout_s=_DIAL_S)
        except OSError as error:
            why = f"{options.authority} cannot be used to ask it: {error}"
    yield check_flower(installed_version("flwr", sys.path), theirs, why)


def _ports(options: Options) -> Iterator[Finding]:
    if options.port is not None:
        yield check_port(options.port)
    tls = None
    try:
        tls = options.trust()
    except OSError as error:
        yield wrong(
            f"TLS by {options.authority}",
            f"cannot be used: {error}",
            expected="an authority's certificate in PEM",
            remedy="Copy ca.crt here from where the certificates were made; the connections below were tried without TLS.",
        )
    peers = (
        ("SuperLink", options.superlink, "Start the SuperLink."),
        ("data plane", options.edge, "The data plane listens while a run goes on: start one."),
        ("cloud", options.cloud, "Start `flwr-splitkd cloud` there."),
    )
    for what, peer, listens in peers:
        if peer is not None:
            yield from check_reachable(what, peer, timeout_s=_DIAL_S, tls=tls, listens=listens)
    if options.port is None and not any(peer for _, peer, _ in peers):
        yield skipped("ports", "no port and no address was named", _NAME_ONE[options.role])


def _certificates(options: Options) -> Iterator[Finding]:
    # Here, since gRPC and cryptography are native: a build that does not load is this check's failure alone.
    from flwr_splitkd.cli.doctor.certificate_files import CertificateFiles, check_certificates
    from flwr_splitkd.wire.certificates import tls_files

    folder, certificate, private_key = options.certificates, options.certificate, options.private_key
    keys: tuple[Path, ...] = ()
    if folder is not None and options.role == "device":
        keys = tuple(sorted(folder.glob("supernode*.key")))
    elif folder is not None:
        made = tls_files(folder)
        certificate, private_key = certificate or Path(made.certificate), private_key or Path(made.private_key)
    if options.authority is None and certificate is None and private_key is None:
        yield skipped(
            "certificates", "none were named", "Give `--certificates FOLDER`, or files by `--root-certificate`."
        )
        return
    files = CertificateFiles(
        root=options.authority, certificate=certificate, private_key=private_key, supernode_keys=keys
    )
    yield from check_certificates(files, hosts=options.hosts, now=datetime.datetime.now(datetime.timezone.utc))
    if certificate is not None and not options.hosts:
        yield skipped("names in the certificate", "nothing to compare them with", "Give `--host`, what others dial.")


def _clock(options: Options) -> Iterator[Finding]:
    yield check_kernel_clock(read_kernel_clock())
    url, tls = options.time_from, None
    try:
        if url is None and options.superlink is not None:
            url, tls = options.superlink_url("/health"), options.trust()
        if url is None:
            yield skipped(
                "clock against a server", "none was named", "Give `--time-from URL`, or `--superlink HOST:PORT`."
            )
            return
        answer = ask_http(url, tls=tls, timeout_s=_DIAL_S)
    except (OSError, HTTPException) as error:
        told = f"it does not say: {error or type(error).__name__}"
        if options.time_from is None:
            yield skipped(f"clock against {url}", told, "Give `--time-from URL`, of any server whose clock is right.")
            return
        yield wrong(
            f"clock against {url}",
            told,
            expected="an answer of HTTP, which has the time in its head",
            remedy="Give the URL of a server that this machine reaches; one without TLS (http://) if the clock is so far off that "
            "no certificate is in force.",
        )
        return
    yield check_skew(url, answer)


def _telemetry(options: Options) -> Iterator[Finding]:
    from flwr_splitkd.telemetry.sensors import find_sensors  # which loads the libraries of GPUs

    return check_telemetry(find_sensors(options.root))


def _disk(options: Options) -> Iterator[Finding]:
    need_bytes, what = (options.need.disk_bytes, options.need.what) if options.need else (0.0, "")
    folders: list[tuple[str, Path, float, str, str]] = []
    if options.role != "cloud":
        folders.append(("Flower's folder", _from_environment("FLWR_HOME", ".flwr"), 0.0, "", "set FLWR_HOME."))
    if options.role == "device":
        cache = _from_environment(
            "FLWR_SPLITKD_CACHE", ".cache/flwr_splitkd"
        )  # as `store.cache_root`, which needs torch
        folders.append(("device's cache", cache, need_bytes, what, "set FLWR_SPLITKD_CACHE."))
    elif options.role == "edge":
        elsewhere = "have runs elsewhere (`run_folder`, here `--run-folder`)."
        folders.append(
            ("runs", options.run_folder, need_bytes, f"three commits, of which one is being written: {what}", elsewhere)
        )
    else:
        elsewhere = "have it elsewhere (`state-folder`, here `--run-folder`)."
        folders.append(("cloud's state", options.run_folder, 0.0, "", elsewhere))
        hub = _from_environment("HF_HOME", ".cache/huggingface")
        folders.append(
            ("downloaded models", hub, need_bytes, what, "set HF_HOME. If the LLM is there already, all is well.")
        )
    for name, folder, needed_bytes, needed_for, remedy in folders:
        yield check_folder(name, folder, needed_bytes=needed_bytes, needed_for=needed_for, remedy=remedy)


def _from_environment(variable: str, below_home: str) -> Path:
    value = os.environ.get(variable)
    return Path(value) if value else Path.home() / below_home
