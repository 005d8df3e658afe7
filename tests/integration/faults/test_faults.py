"""Faults in real processes, by phase and kind: whatever is killed, stopped, cut or corrupted, nothing is lost.

Three devices, two rounds. The fault meets the last device of the first round (or the edge while it serves that one), so
that its lost turn, taken again, comes at the same place in the order: the final student must then equal the uninterrupted
run's, bit for bit, whatever happened in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fault_run import GRACE_S, Run, running, zygote_at

pytestmark = pytest.mark.slow

TABLE: list[tuple[str, ...]] = []


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with zygote_at(tmp_path_factory.mktemp("z") / "z") as path:
        yield path


@pytest.fixture(scope="module")
def uninterrupted(zygote: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final student's digest when nothing happens."""
    with running(tmp_path_factory.mktemp("whole"), zygote) as run:
        return str(run.result()["digest"])


# ---- what is done at the place of the fault


def kill(run: Run, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop_for(seconds: float) -> Callable[[Run, int], None]:
    def act(run: Run, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        run.go()
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    return act


def stop(run: Run, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def cut_for(seconds: float) -> Callable[[Run, int], None]:
    def act(run: Run, pid: int) -> None:
        run.relay.refusing = True
        run.relay.cut()
        run.go()
        time.sleep(seconds)
        run.relay.refusing = False

    return act


def silence_for(seconds: float) -> Callable[[Run, int], None]:
    def act(run: Run, pid: int) -> None:
        run.relay.stalled = True
        run.go()
        time.sleep(seconds)
        run.relay.cut()  # as a network does when an address has changed meanwhile
        run.relay.stalled = False

    return act


def corrupt(run: Run, pid: int) -> None:
    run.relay.corrupt_uplink(2_000)
    run.go()


def kill_edge(run: Run, pid: int) -> None:
    os.kill(run.edge_pid, signal.SIGKILL)
    run.until(lambda: not run.lives(run.edge_pid), "death of the edge")
    run.go()
    devices = run.pids()
    run.until(lambda: not any(map(run.lives, devices)), "end of the devices", 12)
    run.resume()


def kill_edge_and_damage(damage: Callable[[Path], None]) -> Callable[[Run, int], None]:
    def act(run: Run, pid: int) -> None:
        os.kill(run.edge_pid, signal.SIGKILL)
        run.until(lambda: not run.lives(run.edge_pid), "death of the edge")
        run.go()
        damage(run.run_folder / "commits")
        run.resume()

    return act


def flip_a_bit(commits: Path) -> None:
    manifest = json.loads(max(commits.glob("manifest-*.json")).read_text())
    old = json.loads(min(commits.glob("manifest-*.json")).read_text())
    unit, digest = next(item for item in manifest["units"].items() if old["units"][item[0]] != item[1])
    path = commits / "units" / f"{unit}-{digest}.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 2
    path.write_bytes(content)


def truncate_manifest(commits: Path) -> None:
    path = max(commits.glob("manifest-*.json"))
    path.write_text(path.read_text()[:40])


@dataclass(frozen=True)
class Fault:
    """Where, what, and what is documented to come of it."""

    name: str
    who: str
    phase: str
    act: Callable[[Run, int], None]
    outcome: str
    nth: int = 0
    job: dict[str, Any] = field(default_factory=dict)


EDGE = "edge"
DEVICE = "device-3"
RESUMED = "resumed at the same step"
AGAIN = "undone, taken again later"
GOES_ON = "goes on from the commit in its midst"
RESTARTED = "undone, taken again by a new worker"
CONTINUED = "the run is resumed from its last commit"
UNHARMED = "nothing is undone"
KEPT = "kept, if its layers had arrived; else taken again"

FAULTS = [
    Fault("device killed before hello", DEVICE, "before hello", kill, AGAIN),
    Fault("device killed while it waits", DEVICE, "receive Begin", kill, AGAIN),
    Fault("device killed in mid forward", DEVICE, "send Forward", kill, AGAIN, nth=1),
    Fault("device killed between gradient and update", DEVICE, "receive Update", kill, AGAIN, nth=1),
    Fault("device killed in hand-over", DEVICE, "send TurnDone", kill, AGAIN),
    Fault("device killed at commit", DEVICE, "receive TurnResult", kill, KEPT),
    Fault("device killed, commits in between", DEVICE, "send Forward", kill, GOES_ON, 3, {"commit_every_steps": 1}),
    Fault("worker killed in mid forward", DEVICE, "send Forward", kill, RESTARTED, 1, {"max_restarts": 2}),
    Fault(
        "worker killed between gradient and update", DEVICE, "receive Update", kill, RESTARTED, 1, {"max_restarts": 2}
    ),
    Fault("connection cut while it waits", DEVICE, "receive Begin", cut_for(0.5), RESUMED),
    Fault("connection cut in mid forward", DEVICE, "send Forward", cut_for(0.5), RESUMED, nth=1),
    Fault("connection cut between gradient and update", DEVICE, "receive Update", cut_for(0.5), RESUMED, nth=1),
    Fault("connection cut in hand-over", DEVICE, "send TurnDone", cut_for(0.5), RESUMED),
    Fault("connection cut at commit", DEVICE, "receive TurnResult", cut_for(0.5), RESUMED),
    Fault(
        "connection cut for longer than the grace period", DEVICE, "send Forward", cut_for(GRACE_S + 2), AGAIN, nth=2
    ),
    Fault("silent network", DEVICE, "send Forward", silence_for(13), RESUMED, nth=1, job={"grace_period_s": 20.0}),
    Fault("altered bytes", DEVICE, "send Forward", corrupt, RESUMED, nth=1),
    Fault("device stopped for 3 s", DEVICE, "send Forward", stop_for(3), UNHARMED, nth=1),
    Fault("edge stopped for 3 s", EDGE, "send Backward", stop_for(3), UNHARMED, nth=9),
    Fault("edge killed in mid turn", EDGE, "send Backward", kill_edge, CONTINUED, nth=9),
    Fault("edge killed in a first turn", EDGE, "send Backward", kill_edge, CONTINUED, nth=1),
    Fault(
        "edge killed, commits in between", EDGE, "send Backward", kill_edge, CONTINUED, 10, {"commit_every_steps": 1}
    ),
    Fault("edge killed while it writes a unit", EDGE, "sync other", kill_edge, CONTINUED, nth=30),
    Fault("edge killed before the manifest", EDGE, "write manifest", kill_edge, CONTINUED, nth=3),
    Fault("edge killed in the manifest", EDGE, "sync manifest", kill_edge, CONTINUED, nth=3),
    Fault("edge killed between commit and answer", EDGE, "send TurnResult", kill_edge, CONTINUED, nth=2),
    Fault(
        "edge killed, newest unit damaged", EDGE, "send Backward", kill_edge_and_damage(flip_a_bit), CONTINUED, nth=9
    ),
    Fault(
        "edge killed, newest manifest half written",
        EDGE,
        "send Backward",
        kill_edge_and_damage(truncate_manifest),
        CONTINUED,
        nth=9,
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_nothing_is_lost(fault: Fault, zygote: str, uninterrupted: str, tmp_path: Path) -> None:
    phase = {"who": fault.who, "phase": fault.phase, "nth": fault.nth}
    with running(tmp_path, zygote, phase=phase, **fault.job) as run:
        fault.act(run, run.reached())
        result = run.result()
        failed = [line["what"] for line in run.diary() if line["event"] == "failed"]
        undone = [what for what in failed if what.startswith("1/")]
        assert result["digest"] == uninterrupted, run.logs()
        if fault.outcome in (RESUMED, UNHARMED):
            assert not undone, undone
        if fault.outcome == RESUMED:
            assert run.seconds_until("attach") != "-"
        if fault.outcome in (AGAIN, RESTARTED, GOES_ON):
            assert undone
        if fault.outcome == GOES_ON:
            assert "steps are kept in commit" in undone[0]
        device = "" if fault.who == EDGE else fault.who
        notice = run.seconds_until("lost", about=device)
        back = run.seconds_until("turn" if fault.outcome == UNHARMED else "attach", about=device)
        leftovers = [str(path) for path in tmp_path.rglob("*.part") if path.name != "reached.part"]
        assert not leftovers
        run.until(lambda: not any(map(run.lives, [run.edge_pid, *run.pids()])), "end of every process", 15)
    TABLE.append((fault.name, fault.outcome, notice, back))


def test_devices_that_are_stopped_for_good_hold_nobody_up(zygote: str, tmp_path: Path) -> None:
    """No reset, no end of the stream: pings notice it, the others go on, and the round ends without it."""
    phase = {"who": "device-1", "phase": "send Forward", "nth": 1}
    with running(tmp_path, zygote, phase=phase, devices=2, orders=[[1, 2]], rounds=1) as run:
        pid = run.reached()
        stop(run, pid)
        run.go()
        run.until(lambda: any(line["event"] == "turn" for line in run.diary()), "turn of the other device", 40)
        assert float(run.seconds_until("lost")) < 12
        assert float(run.seconds_until("turn")) < 12 + GRACE_S + 5
        notice, back = run.seconds_until("lost"), run.seconds_until("turn")
        os.kill(pid, signal.SIGKILL)
        assert run.result()["turns"][1] == "device-2"
    TABLE.append(("device stopped for good", "undone, the next one goes on", notice, back))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk(zygote: str, uninterrupted: str, tmp_path: Path) -> None:
    """The run ends with a clear error, its last commit is whole, and with some room it goes on from there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        phase = {"who": EDGE, "phase": "send Backward", "nth": 9}
        with running(tmp_path, zygote, phase=phase, run=str(disk / "run")) as run:
            run.reached()
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 14))
            run.go()
            run.until(lambda: not run.lives(run.edge_pid), "end of the edge")
            log = (tmp_path / "edge.log").read_text()
            assert "StoreError" in log and "No space left on device" in log
            assert "What was there before is untouched; free some disk space" in log
            before = json.loads(max((disk / "run" / "commits").glob("manifest-*.json")).read_text())
            assert (before["info"]["device"], before["info"]["finished"]) == ("device-2", True)
            filler.unlink()
            run.resume()
            assert run.result()["digest"] == uninterrupted
        TABLE.append(("disk full at a commit", "clear error; " + CONTINUED, "-", "-"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
        shutil.rmtree(disk, ignore_errors=True)


def test_a_second_process_is_kept_out(zygote: str, tmp_path: Path) -> None:
    phase = {"who": EDGE, "phase": "send Backward", "nth": 1}
    with running(tmp_path, zygote, phase=phase, devices=1, orders=[[1]], rounds=1) as run:
        first = run.reached()
        run.start(resume=True, phase=None)
        run.until(lambda: not run.lives(run.edge_pid), "end of the second process")
        assert f"{run.run_folder} is in use by process {first}; expected one at a time" in run.logs()
        run.go()
        run.until((tmp_path / "result.json").exists, "result of the first process")


def test_print_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """What the other tests have seen; kept in docs/explanation/faults.md."""
    if not TABLE:
        pytest.skip("no other test has run")
    with capsys.disabled():
        print("\n| fault | what comes of it | noticed after, s | back after, s |\n|---|---|---|---|")
        for row in TABLE:
            print("| " + " | ".join(row) + " |")
