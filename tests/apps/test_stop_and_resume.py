"""A run that is stopped or whose edge is killed: nothing of it stays alive, and it can be gone on with."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_split_kd import APP, settings
from transformers import AutoModelForCausalLM

from flower_harness import federation, newest
from flower_run import Federation, Run

# On a quiet machine it takes 6 to 9 s; what hangs on would still be there after this.
GONE_S = 40.0
LONG = {"num-server-rounds": 2, "max-batches": 40, "local-epochs": 5}
# Two helpers of Ray's live on for about 68 s whenever Flower ends a simulation, whatever the app (flwr 1.41, Ray 2.55).
RAYS_OWN = (
    *("ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    # The same two while they start, before they have taken these names.
    *("ray/dashboard/agent.py", "ray/_private/runtime_env/agent/main.py"),
)


def of_run(running: Federation) -> dict[int, str]:
    """Processes that are there for a run only: ServerApp, ClientApps and their workers, simulation engine."""
    stay = (*RAYS_OWN, "flower-superlink", "flower-supernode", "flower-superexec", "flwr log", "flwr run")
    found = {}
    for process in running.processes():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if command and not any(name in command for name in stay) and process.status() != psutil.STATUS_ZOMBIE:
            found[process.pid] = command
    return found


def until(condition: Callable[[], Any], what: str, timeout_s: float, seen: Callable[[], Any] = str) -> float:
    """Wait; the seconds that it took. `seen` tells what there is instead when it takes too long."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < timeout_s, f"no {what} within {timeout_s:g} s: {seen()}"
        time.sleep(0.05)
    return time.monotonic() - started_s


def in_mid_turn(run: Run, logs: Path, runs: Path) -> None:
    """Wait until a turn is over and the next one is at work."""
    until(lambda: run.log_path.exists() and "turn 1 of" in run.log_path.read_text(), "first turn", 240)
    time.sleep(0.7)
    assert "Finished in" not in run.log_path.read_text()


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("mode", "goes_on"),
    [
        pytest.param("simulation", False, marks=pytest.mark.by_hand),
        pytest.param("deployment", True, marks=[pytest.mark.deployment, pytest.mark.slow]),
        pytest.param("simulation", True, marks=pytest.mark.slow),
    ],
)
def test_flwr_stop_in_mid_turn_leaves_no_process_of_the_run(
    mode: str, goes_on: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**settings(tmp_path), **LONG}
    with federation(mode, tmp_path / "logs", supernodes=2) as running:
        before = set(of_run(running))
        run = running.submit(APP, config)
        in_mid_turn(run, tmp_path / "logs", tmp_path / "runs")
        assert set(of_run(running)) - before
        run.stop()
        left = lambda: [command for pid, command in of_run(running).items() if pid not in before]  # noqa: E731
        seconds = until(lambda: not left(), "end of the run's processes", GONE_S, left)
        with capsys.disabled():
            print(f"\n{mode}: no process of the run {seconds:.1f} s after `flwr stop`")
        folder = newest((tmp_path / "runs").iterdir())
        assert list((folder / "commits").glob("manifest-*.json"))
        if not goes_on:
            return
        outcome = running.run(APP, {**config, "resume": str(folder)}, timeout_s=240.0)
        assert outcome.completed, outcome.tail()
        assert "Resumed from commit" in outcome.log
    AutoModelForCausalLM.from_pretrained(folder / "student")


def order(folder: Path) -> list[str]:
    """Devices in the order in which their turns were committed."""
    turns = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [turn["device"] for turn in turns if turn["kind"] == "turn" and "commit_id" in turn]


@pytest.mark.slow
@pytest.mark.deployment
def test_an_edge_that_is_killed_goes_on_to_the_same_student(tmp_path: Path) -> None:
    config = {**settings(tmp_path), **LONG}
    with federation("deployment", tmp_path / "logs", supernodes=2) as running:
        whole = running.run(APP, config, timeout_s=240.0)
        assert whole.completed, whole.tail()
        expected = newest((tmp_path / "runs").iterdir()) / "student"
        run = running.submit(APP, config)
        in_mid_turn(run, tmp_path / "logs", tmp_path / "runs")
        (server_app,) = [pid for pid, command in of_run(running).items() if "serverapp" in command.lower()]
        os.kill(server_app, signal.SIGKILL)
        until(lambda: not of_run(running), "end of the run's processes", GONE_S)
        folder = newest((tmp_path / "runs").iterdir())
        assert folder != expected.parent
        outcome = running.run(APP, {**config, "resume": str(folder)}, timeout_s=240.0)
        assert outcome.completed, outcome.tail()
    if order(folder) != order(expected.parent):  # whoever is ready overtakes whoever takes long to start
        pytest.skip(f"devices had their turns as {order(folder)}, and uninterrupted as {order(expected.parent)}")
    got = AutoModelForCausalLM.from_pretrained(folder / "student").state_dict()
    want = AutoModelForCausalLM.from_pretrained(expected).state_dict()
    different = [name for name in want if not got[name].equal(want[name])]
    assert not different


@pytest.mark.by_hand
def test_two_runs_on_one_superlink_do_not_clash(tmp_path: Path) -> None:
    """Each has its own port and its own tickets; a SuperNode serves them in turns."""
    config = {**settings(tmp_path), "max-batches": 20}
    with federation("deployment", tmp_path / "logs", supernodes=2) as running:
        runs = [running.submit(APP, {**config, "run-dir": str(tmp_path / name)}) for name in ("one", "two")]
        outcomes = [run.wait(300.0) for run in runs]
        for outcome in outcomes:
            assert outcome.completed, outcome.tail()
    for name in ("one", "two"):
        folder = newest((tmp_path / name).iterdir())
        assert (folder / "metrics.jsonl").read_text().count('"commit_id"') == 4
