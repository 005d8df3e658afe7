"""`flwr-splitkd doctor`, as a person calls it: a good machine, and broken ones with real causes."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import sys
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd import cli
from flwr_splitkd.cli.doctor import Check
from flwr_splitkd.cli.doctor.examination import Options, checks
from flwr_splitkd.wire.certificates import make_certificates, tls_files, write_new
from http_servers import serving

NEEDS_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="without torch a machine is none of the good ones")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB with an energy counter, and folders of its own; what it has below proc and sys."""
    root = tmp_path / "root"
    zone = root / "sys/class/powercap/intel-rapl:0"
    for folder in (zone, root / "proc"):
        folder.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("5000000\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (root / "proc/meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\n")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    for variable in ("FLWR_HOME", "FLWR_SPLITKD_CACHE", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return root


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def examined(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> dict[str, dict[str, Any]]:
    """What is found, by its name; the exit code is that of the command."""
    code = call(monkeypatch, *arguments, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code
    return {finding["name"]: finding for finding in told["findings"]}


def install(folder: Path, name: str, number: str, metadata: str = "") -> None:
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{metadata}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- a good one


@NEEDS_TORCH
@pytest.mark.parametrize("role", ["edge", pytest.param("device", marks=pytest.mark.slow)])
def test_a_good_machine(
    role: str, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "certs"
    write_new(folder, make_certificates(hosts=["localhost"], supernodes=1, days=90))
    files = tls_files(folder)
    its_own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    its_own.load_cert_chain(files.certificate, files.private_key)
    pages = {"/openapi.json": {"info": {"title": "SuperLink API", "version": version("flwr")}}, "/health": ""}
    arguments: list[object] = ["--role", role, "--root", machine, "--certificates", folder]
    arguments += ["--student", "gpt2/6", "--teacher", "gpt2", "--cut", 3, "--batch-size", 1, "--sequence-length", 16]
    if role == "edge":  # the slow one looks at torch, too
        arguments += ["--port", "127.0.0.1:0", "--host", "localhost", "--run-folder", tmp_path / "runs"]
        arguments += [word for check in Check if check is not Check.torch for word in ("--only", check.value)]
    with serving(pages, tls=its_own) as port:
        found = examined(monkeypatch, capsys, *arguments, "--superlink", f"localhost:{port}")
    wrong = {name: finding for name, finding in found.items() if finding["status"] == "wrong"}
    assert wrong == {}
    fine = {name for name, finding in found.items() if finding["status"] == "ok"}
    superlink = f"SuperLink localhost:{port}"
    expected = {"python", "flwr", "flwr and the SuperLink's", superlink, f"TLS of {superlink}", "memory"}
    expected |= {f"clock against https://localhost:{port}/health", "RAPL package-0 energy_j", f"{folder}/ca.crt"}
    if role == "edge":
        expected |= {"port 127.0.0.1:0", f"localhost in {folder}/server.pem", f"runs {tmp_path}/runs"}
    else:
        expected |= {"torch", "product of matrices on cpu", f"mode of {folder}/supernode-0.key"}
    assert expected <= fine


def test_the_table_has_everything_and_the_last_line_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--role", "cloud", "--root", machine, "--only", "limits", "--only", "memory", "--only", "certificates"]
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION" in said and "57.22 GiB free of 64.00 GiB" in said
    assert "Skipped:" in said and "    Give `--certificates FOLDER`" in said
    assert said.rstrip().splitlines()[-1] == "cloud: 2 ok, 2 skipped."


def test_every_check_can_be_looked_at_alone() -> None:
    assert [check.value for check in Check] == list(checks(Options(role="edge")))


# ---- broken ones: what the person reads must have the value, the bound and the remedy


def read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert call(monkeypatch, *arguments) == code
    return capsys.readouterr().out


def test_a_wrong_flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path / "packages", "flwr", "1.29.0")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    arguments = ("--role", "device", "--only", "versions", "--superlink-version", "1.41")
    said = read(monkeypatch, capsys, 1, *arguments)
    assert "  flwr: 1.29.0; expected >=1.30.\n    pip install 'flwr>=1.30'\n" in said
    assert "flwr and the SuperLink's: 1.29.0 here, 1.41 there; expected the same major and minor version." in said
    assert "pip install 'flwr==1.41.*' here, or 1.29.0 on the edge" in said


def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    extra = "Requires-Python: >=3.10\nProvides-Extra: report\nRequires-Dist: no-such-drawing>=3.8; extra == 'report'\n"
    install(tmp_path / "packages", "flwr_splitkd", "9.9", extra)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    missing = "  extra [report]: missing: no-such-drawing>=3.8; expected figures of runs.\n    pip install 'flwr_splitkd[report]'"
    assert missing in read(monkeypatch, capsys, 0, "--role", "edge", "--only", "versions")  # runs go without
    assert missing in read(monkeypatch, capsys, 1, "--role", "edge", "--only", "versions", "--extra", "report")


def test_an_expired_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    then = datetime.now(timezone.utc) - timedelta(days=40)
    folder = tmp_path / "certs"
    write_new(folder, make_certificates(hosts=["edge.local"], supernodes=0, days=30, now=then))
    arguments = ("--role", "edge", "--only", "certificates", "--certificates", folder, "--host", "edge.local")
    said = read(monkeypatch, capsys, 1, *arguments)
    expired = f"expired on {then + timedelta(days=30):%Y-%m-%d %H:%M} UTC"
    assert f"  {folder}/server.pem: {expired}" in said and "; expected a certificate in force." in said
    assert "make new ones: flwr-splitkd certificates FOLDER --host NAME --force" in said


@pytest.mark.parametrize("name", ["supernode.key", "supernode-3.key"])
def test_a_device_s_key_as_it_is_made_and_as_it_is_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_new(tmp_path / "made", make_certificates(hosts=["localhost"], supernodes=1, days=90))
    folder = tmp_path / "certs"
    folder.mkdir()
    for here, there in (("ca.crt", "ca.crt"), ("supernode-0.key", name)):
        (folder / there).write_bytes((tmp_path / "made" / here).read_bytes())
    (folder / name).chmod(0o644)
    arguments = ("--role", "device", "--only", "certificates", "--certificates", folder)
    assert f"chmod 600 {folder}/{name}" in read(monkeypatch, capsys, 1, *arguments)


def test_a_closed_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    said = read(monkeypatch, capsys, 1, "--role", "device", "--only", "ports", "--edge", f"127.0.0.1:{port}")
    assert f"  data plane 127.0.0.1:{port}: closed: the machine answers, and nothing listens on that port" in said
    assert "The data plane listens while a run goes on: start one." in said


def test_a_busy_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        said = read(monkeypatch, capsys, 1, "--role", "edge", "--only", "ports", "--port", f"127.0.0.1:{port}")
    assert f"  port 127.0.0.1:{port}: {port} is taken by " in said and f"(process {os.getpid()}, this one)" in said
    assert "choose another port or a range, such as 9095-9105" in said


def test_too_little_memory(machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    large = ("--student", "llama-3.1-8b/2000", "--cut", 1000)
    said = read(monkeypatch, capsys, 1, "--role", "device", "--only", "memory", *large)  # this machine's own
    assert "  memory: " in said and "GiB for the device's half of llama-3.1-8b/2000 at cut 1000" in said
    assert "A lower cut, a smaller `--batch-size`" in said
    said = read(monkeypatch, capsys, 1, "--role", "device", "--only", "memory", "--root", machine, *large)
    assert "  memory: 57.22 GiB free of 64.00 GiB; expected " in said and "    Cuts 1.." in said


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    large = ("--student", "llama-3.1-8b/2000", "--moments", 1_000_000, "--run-folder", tmp_path / "runs")
    said = read(monkeypatch, capsys, 1, "--role", "edge", "--only", "disk", *large)
    assert f"  runs {tmp_path}/runs: " in said and "for three commits, of which one is being written" in said
    assert "or: have runs elsewhere (`run_folder`, here `--run-folder`)." in said


def test_no_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare").mkdir()
    said = read(monkeypatch, capsys, 0, "--role", "device", "--only", "telemetry", "--root", tmp_path / "bare")
    assert (
        "Warnings:" in said
        and "  telemetry: none: this machine has no sensor that is known; expected power or energy" in said
    )
    assert "their joules are then those of the cost model alone" in said


@pytest.mark.parametrize(("ahead_s", "word"), [(3600.0, "behind"), (-3600.0, "ahead")])
def test_clock_skew(
    ahead_s: float, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving({}, ahead_s=ahead_s) as port:
        url = f"http://127.0.0.1:{port}"
        said = read(monkeypatch, capsys, 1, "--role", "device", "--only", "clock", "--time-from", url)
    # A server's second has begun up to a second before it is told.
    expected = (
        rf"  clock against {url}: 3(59\d\.\d|600\.0) s {word} at least; expected at most 5 s ahead, 305 s behind\."
    )
    assert re.search(expected, said)
    assert "sudo timedatectl set-ntp true" in said


def test_a_clock_that_nobody_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said = read(monkeypatch, capsys, 1, "--role", "device", "--only", "clock", "--time-from", url)
    assert f"  clock against {url}: it does not say: " in said and "Connection refused" in said
    assert "Give the URL of a server that this machine reaches" in said
    # Of a SuperLink it is no fault: that of Flower 1.30 has no HTTP.
    assert call(monkeypatch, "--role", "device", "--only", "clock", "--superlink", url.removeprefix("http://")) == 0


def test_one_fault_does_not_hide_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    (tmp_path / "ca.crt").write_text("no certificate")
    arguments: list[object] = ["--role", "device", "--only", "ports", "--only", "certificates", "--only", "disk"]
    arguments += ["--edge", f"127.0.0.1:{port}", "--certificates", tmp_path]
    monkeypatch.setenv("FLWR_HOME", "/proc/flwr")
    found = examined(monkeypatch, capsys, *arguments)
    wrong = {name for name, finding in found.items() if finding["status"] == "wrong"}
    authority = f"{tmp_path}/ca.crt"
    assert wrong == {f"TLS by {authority}", f"data plane 127.0.0.1:{port}", authority, "Flower's folder /proc/flwr"}


# ---- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--role"),
        (["--role", "moon"], "moon"),
        (["--role", "edge", "--superlink", "edge"], "expected host:port"),
        (["--role", "edge", "--port", "9105-9095"], "9105-9095"),
        (["--role", "edge", "--superlink-version", "1"], "expected at least X.Y"),
        (["--role", "edge", "--time-from", "edge:8000"], "expected the URL of a server"),
        (["--role", "edge", "--student", "no-such-model"], "no-such-model"),
        (["--role", "edge", "--student", "gpt2", "--cut", "12"], "expected 1..11"),
        (["--role", "edge", "--cut", "3"], "`--cut` does nothing for the role edge without `--student`"),
        (["--role", "device", "--port", "9095"], "`--port` does nothing for the role device"),
        (["--role", "device", "--llm", "gpt2"], "`--llm` does nothing for the role device"),
        (["--role", "cloud", "--student", "gpt2"], "`--student` does nothing for the role cloud"),
        (["--role", "edge", "--only", "everything"], "everything"),
    ],
)
def test_usage_errors_are_two(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # The message is in a box, whose lines break anywhere between words.
    assert message in " ".join(captured.err.replace("│", " ").split())
