"""What zeus alone counts. Where zeus is installed it is the real one, which asks a stand-in of its daemon over a socket."""

from __future__ import annotations

import gc
import importlib.util
import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from jetson_trees import write

from flwr_splitkd.telemetry.sensors import EnergyMeter, ZeusSensors
from flwr_splitkd.telemetry.sensors.zeus import _Counter

HAVE_ZEUS = importlib.util.find_spec("zeus") is not None
# zeus leaves the connection to its daemon to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
POWERCAP = "sys/class/powercap"


@dataclass
class Daemon:
    """Counters of zeusd in microjoules by zone, and which zones have memory."""

    packages: dict[int, int] = field(default_factory=lambda: {0: 1_000_000, 1: 9_000_000})
    memory: dict[int, int] = field(default_factory=lambda: {0: 500_000})
    refuses: bool = False

    def discover(self) -> dict[str, Any]:
        cpus = [{"id": zone, "dram_available": zone in self.memory} for zone in self.packages]
        lists = {
            "cpu_ids": list(self.packages),
            "dram_available": [one["dram_available"] for one in cpus],
            "gpu_ids": [],
        }
        # The lists are for zeus 0.15, the dictionaries for 0.16.
        return {"gpus": [], "cpus": cpus, **lists, "enabled_api_groups": ["cpu-read"], "auth_required": False}

    def energy(self, zones: list[int], cpu: bool, dram: bool) -> dict[str, dict[str, int | None]]:
        return {
            str(zone): {
                "cpu_energy_uj": self.packages[zone] if cpu else None,
                "dram_energy_uj": self.memory.get(zone) if dram else None,
            }
            for zone in zones
        }


def serve(daemon: Daemon, path: Path) -> socketserver.ThreadingUnixStreamServer:
    """Answer as zeusd does, on a Unix socket."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            answer: Any = daemon.discover()
            if url.path == "/cpu/get_cumulative_energy":
                zones = [int(zone) for zone in query["cpu_ids"].split(",")]
                answer = daemon.energy(zones, query["cpu"] == "true", query["dram"] == "true")
            body = json.dumps(answer).encode()
            self.send_response(403 if daemon.refuses else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def stand_in(daemon: Daemon) -> dict[str, ModuleType]:
    """The modules of zeus that are imported, with the same names and arguments (zeus 0.16)."""

    class ZeusdClient:
        def __init__(self, config: Any = None) -> None:
            if daemon.refuses:
                raise ConnectionError("returned HTTP 403")

        cpu_ids = property(lambda self: list(daemon.packages))
        dram_available = property(lambda self: [zone in daemon.memory for zone in daemon.packages])

        def get_cpu_energy(self, cpu_ids: list[int], cpu: bool = True, dram: bool = True) -> dict[int, Any]:
            if daemon.refuses:
                raise ConnectionError("returned HTTP 403")
            return {int(zone): SimpleNamespace(**one) for zone, one in daemon.energy(cpu_ids, cpu, dram).items()}

    zeusd = ModuleType("zeus.utils.zeusd")
    zeusd.ZeusdClient = ZeusdClient  # type: ignore[attr-defined]
    return {"zeus": ModuleType("zeus"), "zeus.utils": ModuleType("zeus.utils"), "zeus.utils.zeusd": zeusd}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon where the environment says, and a machine with a package and a platform."""
    daemon = Daemon()
    write(tmp_path, f"{POWERCAP}/intel-rapl:0/name", "package-0")
    write(tmp_path, f"{POWERCAP}/intel-rapl:1/name", "psys")
    socket = tmp_path / "zeusd.sock"
    monkeypatch.setenv("ZEUSD_SOCK_PATH", str(socket))
    if not HAVE_ZEUS:
        for name, module in stand_in(daemon).items():
            monkeypatch.setitem(sys.modules, name, module)
        yield daemon
        return
    with serve(daemon, socket) as server:
        yield daemon
        server.shutdown()
    gc.collect()  # what zeus has left, in this test


def found(root: Path) -> ZeusSensors:
    sensors = ZeusSensors.find(processors=True, gpus=True, root=root)
    assert sensors is not None
    return sensors


def test_counters_without_being_root(daemon: Daemon, tmp_path: Path) -> None:
    sensors = found(tmp_path)
    assert {one.name: one.value for one in sensors.read()} == pytest.approx(
        {"package-0": 1.0, "dram of package-0": 0.5}
    )
    assert {(one.quantity, one.source) for one in sensors.read()} == {("energy_j", "zeus")}
    with EnergyMeter([sensors]) as meter:
        began = meter.begin()
        daemon.packages[0] += 2_000_000
        daemon.memory[0] += 250_000
        assert meter.joules(began).joules == pytest.approx(2.25)


def test_a_zone_that_nobody_can_name_is_not_counted(daemon: Daemon, tmp_path: Path) -> None:
    for zone in (0, 1):
        (tmp_path / POWERCAP / f"intel-rapl:{zone}/name").unlink()  # as in a container
    first, memory, other = found(tmp_path).read()
    assert (first.name, first.value, memory.value) == ("package-0", 1.0, 0.5)
    assert other.value is None and "which zone this is, is not known" in other.reason


def test_a_daemon_that_refuses(daemon: Daemon, tmp_path: Path) -> None:
    sensors = found(tmp_path)
    daemon.refuses = True
    assert all(one.value is None and one.reason.startswith("zeus: ") for one in sensors.read())
    (reading,) = found(tmp_path).read()
    assert reading.value is None and "HTTP 403" in reading.reason


def test_a_daemon_that_is_not_there(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZEUSD_SOCK_PATH")
    assert ZeusSensors.find(processors=True, gpus=True, root=tmp_path) is None
    monkeypatch.setenv("ZEUSD_SOCK_PATH", str(tmp_path / "nobody.sock"))
    assert ZeusSensors.find(processors=False, gpus=True, root=tmp_path) is None
    if HAVE_ZEUS:
        (reading,) = found(tmp_path).read()
        assert reading.value is None and "Cannot reach Zeusd" in reading.reason


def test_without_zeus_there_are_none(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zeus", "zeus.device", "zeus.utils", "zeus.utils.zeusd"):
        monkeypatch.setitem(sys.modules, name, None)
    assert ZeusSensors.find(processors=True, gpus=True, root=tmp_path) is None


def test_a_daemon_or_a_zeus_that_answers_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on without: it did not ask for joules at any price."""

    class Older:
        cpu_ids = property(lambda self: [0, 1])

    class Confused(Older):
        dram_available = property(lambda self: [True])

    monkeypatch.setenv("ZEUSD_SOCK_PATH", "/run/zeusd.sock")
    for client, reason in ((Older, "AttributeError"), (Confused, "ValueError")):
        for name, module in stand_in(Daemon()).items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys.modules["zeus.utils.zeusd"], "ZeusdClient", client)
        (reading,) = found(tmp_path).read()
        assert reading.value is None and f"zeus: {reason}" in reading.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_counters_that_cannot_be(value: float) -> None:
    (reading,) = ZeusSensors([_Counter("package-0", lambda: value)]).read()
    assert (reading.value, reading.reason) == (None, f"zeus says {value:g}; expected at least 0.")


class Gpus:
    """As `zeus.device.get_gpus` returns AMD's, millijoules and milliwatts."""

    def __len__(self) -> int:
        return 2

    def get_name(self, index: int) -> str:
        return "AMD Instinct MI300X"

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        return index == 0

    def get_total_energy_consumption(self, index: int) -> int:
        return 7_500

    def get_average_power_usage(self, index: int) -> int:
        return 140_000


def test_gpus_of_amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here, so the library is a stand-in; the next test compares it with the real one."""
    device = ModuleType("zeus.device")
    device.get_gpus = Gpus  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.device", device)
    assert ZeusSensors.find(processors=False, gpus=True, root=tmp_path) is None
    write(tmp_path, "dev/kfd", "")
    assert [(one.name, one.quantity, one.value) for one in found(tmp_path).read()] == [
        ("AMD Instinct MI300X 0", "energy_j", 7.5),
        ("AMD Instinct MI300X 1", "power_w", 140.0),
    ]


@pytest.mark.skipif(not HAVE_ZEUS, reason="needs zeus")
def test_zeus_has_what_is_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeus.device.gpu import GPUs

    assert [name for name in vars(Gpus) if name.startswith(("get", "supports")) and not hasattr(GPUs, name)] == []
    monkeypatch.delenv("ZEUSD_SOCK_PATH", raising=False)
    write(tmp_path, "dev/kfd", "")
    (reading,) = found(tmp_path).read()  # no GPU, as here
    assert reading.value is None and reading.reason.startswith("zeus: ")
