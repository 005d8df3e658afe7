"""Processes for divided work: gone with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flwr_splitkd.processes import worker_processes

# Every process says that it works; each piece takes a minute.
SCRIPT = """
import os, signal, sys, time
from flwr_splitkd.processes import worker_processes

def piece(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who was started in the background would not hear it
    with worker_processes() as pool:
        list(pool.map(piece, [sys.argv[1]] * 20))
"""


def _is_there(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_work_is_divided() -> None:
    with worker_processes() as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_error_does_not_wait_for_what_has_begun() -> None:
    begun_s = time.monotonic()
    with pytest.raises(ValueError, match="enough"), worker_processes() as pool:
        pool.map(time.sleep, [60] * 20)
        raise ValueError("enough")
    assert time.monotonic() - begun_s < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_told_to_end_leaves_nobody_behind(tmp_path: Path, number: signal.Signals) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "at_work"
    script.write_text(SCRIPT)
    folder.mkdir()
    caller = subprocess.Popen([sys.executable, script, folder], stderr=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + 60
        while not (workers := [int(path.name) for path in folder.iterdir()]) and time.monotonic() < until_s:
            time.sleep(0.05)
        assert workers
        caller.send_signal(number)  # to it alone
        assert caller.wait(30) != 0
        while any(map(_is_there, workers)) and time.monotonic() < until_s:
            time.sleep(0.05)
        assert not any(map(_is_there, workers))
    finally:
        caller.kill()
        caller.wait()
