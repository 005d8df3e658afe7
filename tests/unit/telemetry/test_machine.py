"""What a machine tells about itself."""

from __future__ import annotations

import math

import pytest
import torch

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.telemetry import Machine, machine, read_machine

CPUINFO = """processor\t: 0
model name\t: A Processor
cpu MHz\t\t: 1200.000

processor\t: 1
model name\t: A Processor
cpu MHz\t\t: 1500.500
"""


def files(monkeypatch: pytest.MonkeyPatch, **contents: str) -> None:
    """Let the machine read these files, by the ends of their paths, and no others."""
    known = {name.replace("__", "/").replace("_dot_", "."): text for name, text in contents.items()}
    monkeypatch.setattr(machine, "_read", lambda path: next((t for end, t in known.items() if path.endswith(end)), ""))


def test_this_machine() -> None:
    found = read_machine(torch.device("cpu"))
    assert found.name
    assert found.cores == torch.get_num_threads()
    assert found.memory_bytes is None or (math.isfinite(found.memory_bytes) and found.memory_bytes > 0)
    assert found.max_frequency_hz is None or found.max_frequency_hz > 1e6


def test_the_range_of_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, proc__cpuinfo=CPUINFO, cpuinfo_min_freq="800000", cpuinfo_max_freq="3600000")
    found = read_machine(torch.device("cpu"))
    assert (found.name, found.min_frequency_hz, found.max_frequency_hz) == ("A Processor", 8e8, 3.6e9)


def test_the_clock_of_a_virtual_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, proc__cpuinfo=CPUINFO)
    found = read_machine(torch.device("cpu"))
    assert (found.min_frequency_hz, found.max_frequency_hz) == (None, 1500.5e6)


def test_a_board_of_which_the_clock_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, proc__cpuinfo="processor\t: 0\n", **{"device-tree__model": "A Board"})
    found = read_machine(torch.device("cpu"))
    assert (found.name, found.min_frequency_hz, found.max_frequency_hz) == ("A Board", None, None)


def test_memory_that_a_control_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    files(monkeypatch, memory_dot_max="1000000")
    assert read_machine(torch.device("cpu")).memory_bytes == 1000000
    files(monkeypatch, memory_dot_max="max")
    assert read_machine(torch.device("cpu")).memory_bytes == 4096000


def test_memory_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> int:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.setattr(machine.os, "sysconf", unknown)
    assert read_machine(torch.device("cpu")).memory_bytes is None


def test_what_the_user_says() -> None:
    found = Machine(name="a box", cores=4, max_frequency_hz=1e9)
    assert found.told(cores=None, max_frequency_hz=2e9) == Machine(name="a box", cores=4, max_frequency_hz=2e9)
    assert found.known("max_frequency_hz") == 1e9
    with pytest.raises(ConfigError, match="`memory_bytes` of a box is not known"):
        found.known("memory_bytes")


@pytest.mark.parametrize(
    ("name", "value"),
    [("cores", 0), ("max_frequency_hz", -1.0), ("min_frequency_hz", math.nan), ("memory_bytes", math.inf)],
)
def test_numbers_out_of_range_of_a_machine(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` of a box is {value}; expected a finite number of more than 0"):
        Machine(name="a box", cores=4).told(**{name: value})
