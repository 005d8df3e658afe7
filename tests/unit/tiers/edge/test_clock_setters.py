"""Who sets a clock, against a driver that is a file, a daemon that is a thread and a kernel that is a folder."""

from __future__ import annotations

import gc
import inspect
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fake_nvml
import pytest
import torch
from fake_nvml import Machine

from flwr_splitkd.errors import ClockError
from flwr_splitkd.tiers.edge.clock import at_or_above, find, find_setter, setter_of
from flwr_splitkd.tiers.edge.clock.devfreq import DevfreqSetter, gpu_nodes
from flwr_splitkd.tiers.edge.clock.nvml import NvmlSetter

UUID = fake_nvml.GPU["uuid"]
# zeus leaves the connection to its daemon to the garbage collector.
leaky = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path / "gpus.json", {}, {"uuid": "GPU-other", "pci": [0, 0x5E, 0], "mig": None})
    monkeypatch.setenv(fake_nvml.STATE, str(made.path))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    for name in ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield made
    assert fake_nvml._inits == 0, "NVML was opened more often than it was closed"


@pytest.mark.parametrize(
    ("wanted_hz", "taken_hz"),
    [(1.0, 300e6), (300e6, 300e6), (300e6 * (1 + 1e-12), 300e6), (300.1e6, 600e6), (900e6, 900e6), (2e9, 900e6)],
)
def test_the_next_clock_that_is_fast_enough(wanted_hz: float, taken_hz: float) -> None:
    assert at_or_above(wanted_hz, [900e6, 300e6, 600e6]) == taken_hz


@pytest.mark.parametrize(("wanted_hz", "supported"), [(0.0, [1e9]), (float("nan"), [1e9]), (1e9, [])])
def test_no_clock_is_no_answer(wanted_hz: float, supported: list[float]) -> None:
    with pytest.raises(ClockError, match="expected"):
        at_or_above(wanted_hz, supported)


# ---- NVML


def test_nvml_locks_reads_and_resets(machine: Machine) -> None:
    setter = NvmlSetter(UUID)
    assert setter.key == UUID and setter.gpu == f"NVIDIA H100 80GB HBM3 ({UUID})"
    # Those at the memory's largest clock, not the two of its other one.
    assert (min(setter.supported_hz), max(setter.supported_hz), len(setter.supported_hz)) == (210e6, 1980e6, 119)
    assert setter.read_hz() == 1980e6
    setter.lock(1005e6)
    assert machine.locked_mhz == [1005, 1005] and setter.read_hz() == 1005e6
    setter.close()
    assert machine.locked_mhz == [1005, 1005]  # it outlives who has set it
    setter = NvmlSetter(UUID)
    setter.reset(setter.limits())
    assert machine.locked_mhz is None
    setter.close()


def test_the_gpu_is_the_one_of_that_uuid(machine: Machine) -> None:
    setter = NvmlSetter("GPU-other")
    setter.lock(600e6)
    setter.close()
    with machine.state() as state:
        assert [gpu["locked_mhz"] for gpu in state["gpus"]] == [None, [600, 600]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"driver": False}, "Driver Not Loaded.*driver is not loaded"),
        ({"uuid": "GPU-gone"}, "Not Found.*MIG instance"),
        ({"mig": fake_nvml.NVML_DEVICE_MIG_ENABLE}, "divided by MIG.*nvidia-smi -mig 0"),
        ({"fails": fake_nvml.NVML_ERROR_GPU_IS_LOST}, "GPU is lost.*Reset it, or boot"),
        (
            {"fails": {"nvmlDeviceGetSupportedMemoryClocks": 3}},
            "does not tell the clocks.*Not Supported.*from Volta on",
        ),
        ({"memory_mhz": []}, "0 clocks that it tells; expected at least one"),
    ],
)
def test_nvml_refuses_what_it_cannot_hold(machine: Machine, change: dict[str, Any], message: str) -> None:
    machine.set(**change)
    with pytest.raises(ClockError, match=f"{UUID}.*{message}"):
        NvmlSetter(UUID)


def test_nvml_says_what_helps(machine: Machine) -> None:
    setter = NvmlSetter(UUID)
    machine.set(root=False)
    for attempt in (lambda: setter.lock(1e9), lambda: setter.reset({})):
        with pytest.raises(ClockError, match=r"'Insufficient Permissions'\. Run the edge as root .* or run zeusd"):
            attempt()
    assert setter.read_hz() == 1980e6  # anybody may read
    machine.set(root=True, fails={"nvmlDeviceSetGpuLockedClocks": 999, "nvmlDeviceGetClockInfo": 3})
    with pytest.raises(ClockError, match="is not locked at 1000 MHz: NVML says 'NVML Error with code 999'"):
        setter.lock(1e9)
    assert setter.read_hz() is None
    setter.close()


def test_nvml_is_in_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ClockError, match=r"nvidia-ml-py is not installed.*pip install 'flwr_splitkd\[energy\]'"):
        NvmlSetter(UUID)


def test_the_real_nvml_knows_no_such_gpu() -> None:
    """Without a driver there is none at all; with one, none of this number."""
    real = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    with pytest.raises(ClockError, match=f"The clock of {UUID} is not (reached|found): NVML says"):
        NvmlSetter(UUID)
    for name, value in vars(fake_nvml).items():
        if name.startswith("NVML_"):
            assert getattr(real, name) == value, name
        elif name.startswith("nvml"):
            taken, given = (inspect.signature(module).parameters for module in (getattr(real, name), value))
            assert len(taken) == len(given), name


# ---- zeusd


class Zeusd(ThreadingMixIn, UnixStreamServer):
    """What Zeus's daemon answers, as its documentation has it, for a machine whose state is in a file.

    Its requests come over a socket, so that the client's library is the real one.
    """

    daemon_threads = True

    def __init__(self, path: Path, machine: Machine, *, groups: list[str], addresses: bool = True) -> None:
        self.machine, self.groups, self.addresses = machine, groups, addresses
        super().__init__(str(path), ZeusdHandler)

    def gpus(self) -> list[dict[str, Any]]:
        with self.machine.state() as state:
            made = []
            for index, gpu in enumerate(state["gpus"]):
                domain, bus, device = gpu["pci"]
                made.append({"id": index, "name": gpu["name"], "cumulative_energy_available": True})
                made[-1]["pci_address"] = f"{domain:04x}:{bus:02x}:{device:02x}.0"
                if not self.addresses:
                    del made[-1]["pci_address"]
            return made


class ZeusdHandler(BaseHTTPRequestHandler):
    server: Zeusd

    def do_GET(self) -> None:
        groups = {"enabled_api_groups": self.server.groups, "auth_required": False}
        self._answer(200, {"gpus": self.server.gpus(), "cpus": [], **groups})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(url.query).items()}
        locked = None
        if url.path == "/gpu/set_gpu_locked_clocks":
            locked = [int(given["min_clock_mhz"]), int(given["max_clock_mhz"])]
        elif url.path != "/gpu/reset_gpu_locked_clocks":
            self._answer(404, {})
            return
        with self.server.machine.state() as state:
            if state["gpus"][int(given["gpu_ids"])]["fails"]:
                self._answer(403, {"errors": {given["gpu_ids"]: "NoPermission"}})
                return
            state["gpus"][int(given["gpu_ids"])]["locked_mhz"] = locked
        self._answer(200, {})

    def _answer(self, status: int, content: dict[str, Any] | str) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...

    def address_string(self) -> str:
        return "the socket"


@pytest.fixture
def zeusd(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zeusd]:
    pytest.importorskip("zeus.utils.zeusd", reason="needs Zeus's client")
    path = tmp_path / "zeusd.sock"
    monkeypatch.setenv("ZEUSD_SOCK_PATH", str(path))
    machine.set(root=False)  # this process; the daemon is root
    with Zeusd(path, machine, groups=["gpu-control", "gpu-read"]) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield daemon
        daemon.shutdown()
        thread.join()
    gc.collect()  # what zeus has left, in this test


@leaky
def test_zeusd_sets_for_who_is_not_root(zeusd: Zeusd) -> None:
    for uuid in ("GPU-other", UUID):
        setter = setter_of(uuid)
        setter.lock(1005e6)
        assert setter.key == uuid and setter.read_hz() == 1005e6
        setter.reset(setter.limits())
        assert setter.read_hz() == 1980e6
        setter.close()


@leaky
def test_zeusd_that_tells_no_addresses_has_to_see_the_same_gpus(zeusd: Zeusd, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeus.utils import zeusd as library

    zeusd.addresses = False
    if "pci_address" not in library.GpuInfo.__dataclass_fields__:  # Zeus up to 0.16
        setter = setter_of("GPU-other")
        setter.lock(600e6)
        with zeusd.machine.state() as state:
            assert [gpu["locked_mhz"] for gpu in state["gpus"]] == [None, [600, 600]]
        setter.close()
        monkeypatch.setattr(fake_nvml, "nvmlDeviceGetCount", lambda: 1)  # as in a container with one of them
    with pytest.raises(ClockError, match="does not say which of them|pci_address"):
        setter_of("GPU-other")


@leaky
@pytest.mark.parametrize("how", ["no address", "no answer of zeusd's", "half an answer"])
def test_what_is_no_zeusd_is_refused_too(zeusd: Zeusd, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "no address":
        monkeypatch.delenv("ZEUSD_SOCK_PATH")
        monkeypatch.setenv("ZEUSD_HOST_PORT", "edge:port")
    else:
        answer = "<html>" if how.startswith("no") else {"gpus": []}
        monkeypatch.setattr(ZeusdHandler, "do_GET", lambda handler: handler._answer(200, answer))
    with pytest.raises(ClockError, match=f"{UUID}.*is not reached.*Check that zeusd runs"):
        setter_of(UUID)


@leaky
@pytest.mark.parametrize("how", ["gone", "reads only", "refuses"])
def test_zeusd_says_why_not(zeusd: Zeusd, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "gone":
        monkeypatch.setenv("ZEUSD_SOCK_PATH", "/nowhere.sock")
    if how == "reads only":
        zeusd.groups = ["gpu-read"]
    if how != "refuses":
        with pytest.raises(ClockError, match=f"{UUID}.*is not reached.*Check that zeusd runs"):
            setter_of(UUID)
        return
    setter = setter_of(UUID)
    zeusd.machine.set(fails={"any": 4})
    with pytest.raises(ClockError, match="is not locked at 600 MHz.*NoPermission"):
        setter.lock(600e6)
    setter.close()


def test_zeusd_is_in_an_extra(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUSD_SOCK_PATH", "/run/zeusd/zeusd.sock")
    monkeypatch.setitem(sys.modules, "zeus.utils.zeusd", None)
    with pytest.raises(ClockError, match=r"ZEUSD_SOCK_PATH names zeusd, and zeus is not installed.*\[energy\]"):
        setter_of(UUID)


# ---- a Jetson


@pytest.fixture
def node(tmp_path: Path) -> Path:
    made = tmp_path / "devfreq" / "17000000.gpu"
    made.mkdir(parents=True)
    for name, content in {
        "available_frequencies": "306000000 408000000 1300500000",
        "min_freq": "408000000",
        "max_freq": "1300500000",
        "cur_freq": "408000000",
    }.items():
        (made / name).write_text(content + "\n")
    return made


def bounds(node: Path) -> list[int]:
    return [int((node / name).read_text()) for name in ("min_freq", "max_freq")]


def test_only_a_jetson_has_a_jetson_s_gpu(node: Path, tmp_path: Path) -> None:
    board = tmp_path / "compatible"
    assert gpu_nodes(node.parent, board) == []  # no device tree
    board.write_bytes(b"rockchip,rk3588\0")
    assert gpu_nodes(node.parent, board) == []
    board.write_bytes(b"nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0")
    assert gpu_nodes(node.parent, board) == [node]


def test_a_jetson_gets_its_own_bounds_back(node: Path) -> None:
    setter = DevfreqSetter(node)
    assert setter.supported_hz == (306e6, 408e6, 1300.5e6) and setter.read_hz() == 408e6
    limits = setter.limits()
    for hz in (306e6, 1300.5e6, 408e6):
        setter.lock(hz)
        assert bounds(node) == [hz, hz]
    setter.reset(limits)
    assert bounds(node) == [408_000_000, 1_300_500_000]
    setter.reset({})  # what was there is not known
    assert bounds(node) == [306_000_000, 1_300_500_000]


def test_at_no_moment_are_the_bounds_the_wrong_way_round(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setter = DevfreqSetter(node)
    write = Path.write_text

    def checked(path: Path, text: str, **settings: Any) -> int:
        written = write(path, text, **settings)
        low, high = bounds(node)
        assert low <= high
        return written

    monkeypatch.setattr(Path, "write_text", checked)
    for hz in (306e6, 408e6, 1300.5e6, 306e6):
        setter.lock(hz)


def test_a_jetson_says_why_not(node: Path) -> None:
    setter = DevfreqSetter(node)
    (node / "min_freq").unlink()
    (node / "min_freq").mkdir()  # nobody can write it, root neither
    with pytest.raises(ClockError, match="cannot be read"):
        setter.limits()
    (node / "cur_freq").write_text("?")
    assert setter.read_hz() is None
    (node / "available_frequencies").write_text("fast slow")
    with pytest.raises(ClockError, match="clocks that are not numbers"):
        DevfreqSetter(node)


# ---- which of them


def test_a_processor_has_nobody_who_sets_its_clock() -> None:
    with pytest.raises(ClockError, match="The edge computes on a CPU, whose clock is not set; expected an NVIDIA GPU"):
        find_setter(torch.device("cpu"))


def in_torch(monkeypatch: pytest.MonkeyPatch, *, is_integrated: int) -> None:
    """A GPU as torch shows it."""
    gpu = SimpleNamespace(uuid=UUID.removeprefix("GPU-"), is_integrated=is_integrated)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)


def test_a_gpu_is_found_by_its_uuid(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    in_torch(monkeypatch, is_integrated=0)
    setter = find_setter(torch.device("cuda", 0))
    assert isinstance(setter, NvmlSetter) and setter.key == UUID
    setter.close()


def test_a_gpu_in_a_jetson_s_slot_is_not_the_jetson_s(
    machine: Machine, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "gpu_nodes", lambda: [node])
    in_torch(monkeypatch, is_integrated=0)
    setter = find_setter(torch.device("cuda", 0))
    assert isinstance(setter, NvmlSetter) and setter.key == UUID
    setter.close()


def test_a_jetson_is_found_by_its_folder(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "gpu_nodes", lambda: [node])
    in_torch(monkeypatch, is_integrated=1)
    setter = find_setter(torch.device("cuda", 0))
    assert isinstance(setter, DevfreqSetter) and setter.key == "devfreq-17000000.gpu"
    with pytest.raises(ClockError, match=r"18000000\.gpu is not among this machine's GPUs"):
        setter_of("devfreq-18000000.gpu")
