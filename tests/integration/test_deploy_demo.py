"""`make deploy-demo`: its table, its end however it ends, and the whole of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

import deploy_demo
from flower_harness import traces_of
from import_graph import ROOT

TURN = {
    "kind": "turn",
    "server_round": 1,
    "device": "1",
    "mode": "train",
    "cut": 4,
    "duration_s": 8.0,
    "uplink_bytes": 10 << 20,
    "downlink_bytes": 5 << 20,
    "handover_bytes": 2 << 20,
}


def row(turn: dict[str, Any], rates: list[float] | None) -> list[str]:
    line = deploy_demo.turns_table([turn], rates).splitlines()[-2]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_row_of_the_table() -> None:
    assert row(TURN, [20.0, 50.0]) == ["1", "1", "50", "4", "8.0", "10.00", "5.00", "2.00", "10.5", "5.2"]


def test_a_row_without_a_link_or_without_a_turn() -> None:
    assert row(TURN, None)[2] == "-"
    assert row({**TURN, "device": "orin-1"}, [20.0])[1:3] == ["orin-1", "-"]
    left_out = {"kind": "turn", "server_round": 2, "device": "", "error": "it did not connect"}
    assert row(left_out, [20.0])[:5] == ["2", "?", "-", "-", "left out"]
    delivered = {"server_round": 2, "device": "0", "mode": "deliver", "duration_s": 1.0, "handover_bytes": 5}
    assert row(delivered, [20.0])[:5] == ["2", "0", "20", "-", "-"]


def command(runs: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "deploy_demo.py"), "--runs", str(runs), *options]


@pytest.mark.parametrize("rates", ["", "20,fast", "0", "20,,30", "nan"])
def test_rates_that_are_none(rates: str, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, f"--rates={rates}"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is not a list of rates of 0.1 .. 100000 Mbit/s, such as 20,50,100" in done.stderr


def left_behind(pid: int) -> list[str]:
    namespaces = [path.name for path in Path("/run/netns").glob(f"skd-{pid}-*")]
    return namespaces + [str(path) for path in Path(tempfile.gettempdir()).glob("skd-deploy-*")]


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--loopback",)),
        pytest.param(signal.SIGINT, ("--loopback",), marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, (), marks=pytest.mark.slow),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value[0].strip("-") if value else "network",
)
def test_an_interrupted_demo_leaves_nothing(
    number: signal.Signals, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with subprocess.Popen(
        command(tmp_path / "runs", "--rates=50", *options), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            # By now the SuperLink and the SuperNode run, and the app has been submitted.
            if "Starting logstream" in line:
                break
        during = left_behind(demo.pid)
        homes = {child.environ()["FLWR_HOME"] for child in psutil.Process(demo.pid).children()}
        demo.send_signal(number)
        rest = demo.stdout.read()
    assert demo.returncode == 128 + number, rest
    assert f"interrupted by {number.name}; nothing is left running" in rest
    assert during and len(homes) == 1
    assert traces_of(homes.pop()) == []
    assert left_behind(demo.pid) == []


@pytest.mark.slow
@pytest.mark.deployment
def test_a_run_that_flower_refuses(tmp_path: Path) -> None:
    options = ("--rates=50", "--loopback", "--set", "no-such-key=1")
    done = subprocess.run(command(tmp_path, *options), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout
    assert re.search("(?i)invalid run config|no-such-key", done.stderr), done.stderr
    assert "on loopback, whose rate is not limited: as asked" in done.stdout


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(900)
def test_the_whole_demo(tmp_path: Path) -> None:
    demo = subprocess.Popen(command(tmp_path / "runs"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = demo.communicate(timeout=800)
    assert demo.returncode == 0, output
    assert "completed in" in output and "Turns; Mbit/s" in output
    (metrics,) = (tmp_path / "runs").glob("*/metrics.jsonl")
    turns = [turn for turn in map(json.loads, metrics.read_text().splitlines()) if turn["kind"] == "turn"]
    assert sorted((turn["server_round"], turn["device"]) for turn in turns) == [(r, d) for r in (1, 2) for d in "012"]
    assert all("error" not in turn for turn in turns), turns
    assert left_behind(demo.pid) == []
    if "network namespaces of their own" in output:
        for turn in turns:
            limit_bps = {"0": 20e6, "1": 50e6, "2": 100e6}[turn["device"]]
            for way in ("uplink", "downlink"):
                # The token bucket's first burst comes on top of the rate.
                assert turn[f"{way}_bytes"] * 8 / turn["duration_s"] < 1.05 * limit_bps, turn
    else:
        assert "on loopback, whose rate is not limited" in output
