"""A tier's process: what it says, what it raises, and that it ends with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from flwr_splitkd.errors import DataError, SplitKDError
from flwr_splitkd.tiers.child import Parent, beside, packed
from flwr_splitkd.wire.handshake import wrong_secret

pytest.importorskip("torch", reason="the child's process needs it")


def say_both(parent: Parent, first: int, second: str) -> None:
    parent.say((os.getpid(), first))
    parent.say(second)
    parent.wait_for_end()


def fail(parent: Parent, error: Exception) -> None:
    raise error


def refuse(parent: Parent) -> None:
    raise wrong_secret("kitchen")


def die(parent: Parent) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def never_end(parent: Parent) -> None:
    parent.say(os.getpid())
    time.sleep(600)


def _is_gone(process_id: int, seconds: float) -> bool:
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_it_says_more_than_one_thing_and_ends_with_the_block() -> None:
    with beside("The tier", packed(say_both, 3, "four", num_threads=1)) as child:
        assert child.receive() == (child.process_id, 3)
        assert child.receive() == "four"
    assert _is_gone(child.process_id, 1.0)


def test_its_errors_are_raised_here() -> None:
    with (
        beside("The tier", packed(fail, DataError("no data."), num_threads=1)) as child,
        pytest.raises(DataError, match=r"^The tier's process failed: no data\.$"),
    ):
        child.receive()
    with (
        beside("The tier", packed(fail, KeyError("x"), num_threads=1)) as child,
        pytest.raises(SplitKDError, match="^The tier's process failed: KeyError: 'x'$"),
    ):
        child.receive()
    with beside("The tier", packed(refuse, num_threads=1)) as child, pytest.raises(SplitKDError) as raised:
        child.receive()
    assert type(raised.value).__name__ == "HandshakeError"  # what a refusal is to the user


def test_one_that_dies_is_said_to_be_dead() -> None:
    with (
        beside("The tier", packed(die, num_threads=1)) as child,
        pytest.raises(SplitKDError, match="The tier's process ended with exit code -9 before it answered"),
    ):
        child.receive()


def test_it_ends_with_a_parent_that_was_killed() -> None:
    program = (
        "import sys, time\n"
        "from flwr_splitkd.tiers.child import beside, packed\n"
        "from test_child import never_end\n"
        "with beside('The tier', packed(never_end, num_threads=1)) as child:\n"
        "    print(child.receive(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        parent.kill()
    assert _is_gone(process_id, 10.0)
