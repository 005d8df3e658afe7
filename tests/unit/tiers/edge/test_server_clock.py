"""The clock over a run, and over its end: orderly, by a signal, and by SIGKILL in the midst of a turn."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from fake_nvml import Machine

from flwr_splitkd.costs import TABLE_II_SERVER
from flwr_splitkd.errors import ClockError
from flwr_splitkd.tiers.edge.clock import ServerClock, TurnClock, journal, restore_left, setter_of
from flwr_splitkd.tiers.edge.clock.leaving import before_leaving

UUID = fake_nvml.GPU["uuid"]
WAITING = replace(TABLE_II_SERVER, idle_activity=0.3)
"""While it waits it draws power by its clock, so that it pays to go down."""
IDLE_MHZ = 210
# A process that was forked for a test does as little as possible; nothing of torch's threads is used in it.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, which finds the fake pynvml of a folder first."""
    paths = [str(folder), os.path.dirname(__file__), *sys.path]
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path / "gpus.json")
    monkeypatch.setenv(fake_nvml.STATE, str(made.path))
    monkeypatch.setenv("FLWR_SPLITKD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    yield made
    assert fake_nvml._inits == 0, "NVML was opened more often than it was closed"


def clock(server: Any = TABLE_II_SERVER) -> ServerClock:
    return ServerClock(server, lambda: setter_of(UUID))


def journal_file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "clocks" / UUID / "clock.json"


def in_a_child(work: Callable[[Callable[[str], None]], None]) -> tuple[int, str]:
    """Run something in a process forked from this one; return it when it has said a word. It never returns from there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with open(reading) as pipe:
            return child, pipe.readline().strip()
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work(lambda word: os.write(writing, f"{word}\n".encode()) and None)
    except BaseException as error:
        os.write(writing, f"{error!r}\n".encode())
    finally:
        os._exit(1)


def turn_without_end(say: Callable[[str], None]) -> None:
    held = clock()
    held.begin(1e9)
    say(held.refusal or "locked")
    time.sleep(600)


# ---- in a run


def test_a_turn_s_clock_and_the_gpu_s_own_after_the_run(machine: Machine, tmp_path: Path) -> None:
    held = clock()
    assert held.works and journal_file(tmp_path).exists()  # before anything is set
    for wanted_hz, mhz in ((1e9, 1005), (1.005e9, 1005), (3e9, 1980), (1.0, 210)):
        held.begin(wanted_hz)
        assert machine.locked_mhz == [mhz, mhz]
        assert held.end() == TurnClock(set_frequency_hz=mhz * 1e6, read_frequency_hz=mhz * 1e6)
    held.close()
    assert machine.locked_mhz is None and not journal_file(tmp_path).exists()
    held.begin(1e9)  # a thread that has not noticed yet
    assert held.end() == TurnClock(refusal="The run is over.") and machine.locked_mhz is None
    # One reset to begin with, one at the end; a clock that is set is not set again.
    assert machine.locks == [None, 1005, 1980, 210, None]


def test_what_is_no_turn_has_the_gpu_s_own_clock(machine: Machine) -> None:
    held = clock()
    held.begin(1e9)
    held.end()
    held.begin(None)
    assert machine.locked_mhz is None
    assert held.end() == TurnClock(read_frequency_hz=1980e6)
    held.begin(1e9)
    held.end()
    held.free()
    assert machine.locked_mhz is None
    held.close()


def test_a_pause_is_spent_at_the_idle_clock_where_that_pays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    held = clock(WAITING)
    locked: list[Any] = []
    for pause_s in (100.0, 100.0, 0.3, 100.0, 100.0):
        with pytest.MonkeyPatch.context() as patch:
            setter = held._setter
            assert setter is not None
            lock = setter.lock

            def slowly(hz: float, lock: Callable[[float], None] = lock) -> None:
                nonlocal now_s
                now_s += 0.4
                lock(hz)

            patch.setattr(setter, "lock", slowly)
            held.begin(1e9)
            held.end()
        locked.append(machine.locked_mhz and machine.locked_mhz[0])
        now_s += pause_s
    # A pause is taken to be as long as the last one: after 0.3 s it is not worth two changes of 0.4 s each.
    assert locked == [IDLE_MHZ, IDLE_MHZ, IDLE_MHZ, 1005, IDLE_MHZ]
    held.close()


def test_a_server_whose_clocks_are_gated_stays_where_it_is(machine: Machine) -> None:
    held = clock(replace(TABLE_II_SERVER, idle_activity=0.0))
    held.begin(1e9)
    held.end()
    assert machine.locked_mhz == [1005, 1005]
    held.close()


def test_a_gpu_that_is_lost_is_given_up_and_remembered(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = clock()
    held.begin(1e9)
    held.end()
    machine.set(fails=fake_nvml.NVML_ERROR_GPU_IS_LOST)
    held.begin(1.2e9)
    outcome = held.end()
    assert not held.works and outcome.set_frequency_hz is None and "GPU is lost" in outcome.refusal
    assert "may still be set" in caplog.text and "restore-clocks" in caplog.text
    held.begin(1.2e9)
    held.end()
    held.close()
    assert caplog.text.count("training goes on at its own") == 1
    assert journal_file(tmp_path).exists()  # it may come back with what was set
    machine.set(fails=None)
    assert machine.locked_mhz == [1005, 1005]
    clock().close()
    assert machine.locked_mhz is None and not journal_file(tmp_path).exists()


def test_a_clock_that_cannot_be_remembered_is_not_set(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLWR_SPLITKD_STATE", str(tmp_path / "file"))
    held = clock()
    assert not held.works and "Without that it might stay set after a crash" in held.refusal
    held.begin(1e9)
    assert machine.locks == []


# ---- several runs


def test_one_run_at_a_time_sets_a_clock(machine: Machine) -> None:
    first, second = clock(), clock()
    assert f"in use by process {os.getpid()}" in second.refusal
    first.begin(1e9)
    second.begin(1.5e9)
    assert machine.locked_mhz == [1005, 1005]
    assert second.end().set_frequency_hz is None
    second.close()
    assert machine.locked_mhz == [1005, 1005]
    first.close()
    third = clock()
    assert third.works
    third.close()


@forks
def test_a_run_in_another_process_is_left_alone(machine: Machine) -> None:
    child, word = in_a_child(turn_without_end)
    try:
        assert word == "locked"
        held = clock()
        assert f"in use by process {child}" in held.refusal
        held.close()
        done, failed = restore_left(setter_of)
        assert done == [] and len(failed) == 1 and f"process {child}" in failed[0]
        assert machine.locked_mhz == [1005, 1005]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@forks
def test_a_live_process_is_left_alone_where_files_cannot_be_locked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child, word = in_a_child(turn_without_end)
    try:
        assert word == "locked"
        (journal_file(tmp_path).parent / ".lock").unlink()  # as good as no lock
        assert f"Process {child} sets the clock" in clock().refusal
        # A later process of the same number was started at another time.
        entry = json.loads(journal_file(tmp_path).read_text())
        journal_file(tmp_path).write_text(json.dumps({**entry, "started_ticks": entry["started_ticks"] - 1}))
        held = clock()
        assert held.works
        held.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@forks
def test_a_dead_process_that_nobody_asks_about_is_dead(machine: Machine, tmp_path: Path) -> None:
    """As the children of a container's first process are, if that is no init: they keep their entry in /proc."""
    child, word = in_a_child(turn_without_end)
    assert word == "locked"
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        held = clock()
        assert held.works and machine.locked_mhz is None
        held.close()
    finally:
        os.waitpid(child, 0)


# ---- how it ends


def test_ctrl_c_while_the_clock_is_put_back_leaves_that_to_the_end(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    held = clock()
    held.begin(1e9)
    setter = held._setter
    assert setter is not None

    def interrupted(limits: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setter, "reset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            held.close()
    assert machine.locked_mhz == [1005, 1005] and journal_file(tmp_path).exists()
    (last,) = at_exit
    last()
    assert machine.locked_mhz is None and not journal_file(tmp_path).exists()
    assert held.end().refusal == "The process is ending."


def test_a_handler_that_puts_the_clock_back_while_that_goes_on(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = clock()
    held.begin(1e9)
    setter = held._setter
    assert setter is not None
    reset = setter.reset

    def interrupted(limits: Any) -> None:
        monkeypatch.setattr(setter, "reset", reset)
        held.close()  # on the same thread, as a signal's handler is
        reset(limits)

    monkeypatch.setattr(setter, "reset", interrupted)
    held.close()
    assert machine.locks == [None, 1005, None] and not journal_file(tmp_path).exists()
    assert caplog.text == ""


@forks
def test_sigterm_ends_a_process_whatever_becomes_of_its_last_call() -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    def wait(say: Callable[[str], None]) -> None:
        before_leaving(fail)
        say("ready")
        time.sleep(600)

    child, word = in_a_child(wait)
    os.kill(child, signal.SIGTERM)
    assert word == "ready" and os.waitpid(child, 0)[1] == signal.SIGTERM


def test_from_another_thread_it_is_called_when_the_main_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = threading.Event()
    main = threading.Thread(target=ending.wait)
    main.start()
    monkeypatch.setattr(threading, "main_thread", lambda: main)
    called, uncalled = threading.Event(), threading.Event()
    before_leaving(called.set)
    before_leaving(uncalled.set)()
    assert not called.wait(0.05)
    ending.set()
    main.join()
    assert called.wait(10) and not uncalled.is_set()


@forks
def test_after_sigkill_the_next_process_puts_the_clock_back(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child, word = in_a_child(turn_without_end)
    assert word == "locked"
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert machine.locked_mhz == [1005, 1005]
    left = json.loads(journal_file(tmp_path).read_text())
    assert left["process_id"] == child and UUID in left["gpu"]
    caplog.set_level(logging.WARNING)
    held = clock()
    assert machine.locked_mhz is None and f"which process {child} had left set, is put back" in caplog.text
    assert json.loads(journal_file(tmp_path).read_text())["process_id"] == os.getpid()
    held.close()
    assert not journal_file(tmp_path).exists()


@forks
def test_sigterm_puts_the_clock_back_first(machine: Machine, tmp_path: Path) -> None:
    child, word = in_a_child(turn_without_end)
    assert word == "locked" and machine.locked_mhz == [1005, 1005]
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM  # and it ends as it would have
    assert machine.locked_mhz is None and not journal_file(tmp_path).exists()


@forks
def test_a_child_of_the_process_does_not_put_it_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    held = clock()
    held.begin(1e9)
    (last,) = at_exit

    def leave(say: Callable[[str], None]) -> None:
        last()
        say("left")

    child, word = in_a_child(leave)
    os.waitpid(child, 0)
    assert word == "left" and machine.locked_mhz == [1005, 1005]
    last()
    assert machine.locked_mhz is None


def test_who_handles_sigterm_already_goes_on_doing_so() -> None:
    def handle(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handle)
    try:
        undo = before_leaving(lambda: None)
        assert signal.getsignal(signal.SIGTERM) is handle
        undo()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        undo = before_leaving(lambda: None)
        assert signal.getsignal(signal.SIGTERM) not in (handle, signal.SIG_DFL)
        undo()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        thread = threading.Thread(target=lambda: before_leaving(lambda: None)())
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow  # a process that loads everything anew
@pytest.mark.parametrize("last", ["sys.exit(0)", "raise RuntimeError('the disk broke')"])
def test_a_process_that_ends_without_closing_puts_the_clock_back(machine: Machine, tmp_path: Path, last: str) -> None:
    (tmp_path / "pynvml.py").write_text("from fake_nvml import *\n")
    program = (
        "import sys\n"
        "from test_server_clock import clock\n"
        "held = clock()\n"
        "held.begin(1e9)\n"
        "print(held.end(), flush=True)\n"
        f"{last}\n"
    )
    done = _run(program, tmp_path)
    assert "set_frequency_hz=1005000000.0" in done.stdout, done.stderr
    assert done.returncode == (0 if "exit" in last else 1)
    assert machine.locks == [None, 1005, None]
    assert not journal_file(tmp_path).exists()


@pytest.mark.slow  # the same
def test_a_simulation_that_is_ended_puts_the_clock_back_before_its_threads_end(machine: Machine) -> None:
    """Flower runs a simulation's ServerApp on another thread; a signal ends the main one, and the process 5 s later."""
    (machine.path.parent / "pynvml.py").write_text("from fake_nvml import *\n")
    program = (
        "import sys, threading, time\n"
        "from fake_nvml import _machine\n"
        "from test_server_clock import clock\n"
        "def serve():\n"
        "    held.append(clock())\n"
        "    held[0].begin(1e9)\n"
        "    begun.set()\n"
        "    deadline_s = time.monotonic() + 4\n"
        "    while _machine().locked_mhz and time.monotonic() < deadline_s:\n"
        "        time.sleep(0.02)\n"
        "    print(_machine().locked_mhz, flush=True)\n"
        "held, begun = [], threading.Event()\n"
        "threading.Thread(target=serve).start()\n"
        "begun.wait()\n"
        "sys.exit(0)\n"
    )
    done = _run(program, machine.path.parent)
    assert (done.stdout, machine.locks) == ("None\n", [None, 1005, None]), done.stderr


# ---- what is left behind


def left_behind(machine: Machine, tmp_path: Path, **changes: Any) -> None:
    """A clock that is set, and the journal of a process that is gone."""
    held = clock()
    entry = json.loads(journal_file(tmp_path).read_text())
    held.close()
    machine.set(locked_mhz=[600, 600])
    gone = {**entry, "process_id": 2**22 + 1, **changes}  # more than a kernel gives out
    journal_file(tmp_path).write_text(json.dumps(gone))


def test_the_command_puts_back_what_was_left(machine: Machine, tmp_path: Path) -> None:
    assert restore_left(setter_of) == ([], [])
    left_behind(machine, tmp_path)
    done, failed = restore_left(setter_of)
    assert failed == [] and len(done) == 1 and "which process 4194305 had left set, is put back" in done[0]
    assert machine.locked_mhz is None and not journal_file(tmp_path).exists()


def test_what_cannot_be_put_back_stays_remembered(machine: Machine, tmp_path: Path) -> None:
    left_behind(machine, tmp_path)
    machine.set(root=False)
    done, failed = restore_left(setter_of)
    assert done == [] and "Insufficient Permissions" in failed[0]
    held = clock()
    assert "Insufficient Permissions" in held.refusal
    assert json.loads(journal_file(tmp_path).read_text())["process_id"] == 2**22 + 1
    machine.set(root=True)
    clock().close()
    assert machine.locked_mhz is None


def test_a_clock_from_before_the_last_boot_is_not_set_any_more(machine: Machine, tmp_path: Path) -> None:
    """Whoever has locked it since keeps it, unless this run sets it."""
    left_behind(machine, tmp_path, boot_id="another")
    done, failed = restore_left(setter_of)
    assert failed == [] and "was booted since" in done[0]
    assert machine.locked_mhz == [600, 600] and not journal_file(tmp_path).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process_id": "x"}'])
def test_a_damaged_journal_still_says_that_a_clock_is_set(machine: Machine, tmp_path: Path, text: str) -> None:
    left_behind(machine, tmp_path)
    journal_file(tmp_path).write_text(text)
    clock().close()
    assert machine.locked_mhz is None and not journal_file(tmp_path).exists()


def test_journals_lie_in_the_user_s_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLWR_SPLITKD_STATE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert journal.clocks_folder() == tmp_path / ".local" / "state" / "flwr_splitkd" / "clocks"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ClockError, match=r"Could not determine home directory\. Name a folder by FLWR_SPLITKD_STATE"):
        journal.clocks_folder()
