"""A tier as a process beside this one, which ends when this one does, in whatever way that is.

The two talk over a pipe: the child's function gets its end of it, and sends what it has to say; the pipe's end is the child's
end. `multiprocessing` would run this program's main module again in the child, which in a Flower process is not ours.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from flwr_splitkd import errors
from flwr_splitkd.errors import SplitKDError

__all__ = ["Child", "Parent", "beside", "main", "packed"]

_PROGRAM = "from flwr_splitkd.tiers.child import main; main()"
_END_S = 10.0


class Child:
    """The process, as the one that started it sees it; made by `beside`."""

    def __init__(self, name: str, pipe: Connection, process: subprocess.Popen[bytes]) -> None:
        self.process_id = process.pid
        self._name, self._pipe, self._process = name, pipe, process

    def start(self, parcel: bytes) -> None:
        """Send what was `packed`.

        Raises
        ------
        SplitKDError
            If the process has ended already.
        """
        try:
            self._pipe.send(sys.path)
            self._pipe.send_bytes(parcel)
        except OSError:
            self.receive()

    def receive(self) -> Any:
        """Wait for what the child says next.

        Raises
        ------
        SplitKDError
            What the child raised, as the same kind; or that it has ended without a word.
        """
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise SplitKDError(
                f"{self._name}'s process ended with exit code {self._process.wait()} before it answered; see its words above. "
                "Signal 9 is often the system's for want of memory."
            ) from None
        if kind is None:
            return answer
        raise getattr(errors, kind)(f"{self._name}'s process failed: {answer}")


class Parent:
    """Who started this process, as the child sees it.

    Whatever the child does, it ends at once when the parent is gone, unless it has come to `wait_for_end`.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._orderly, self._gone = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="splitkd-parent", daemon=True).start()

    def say(self, answer: Any) -> None:
        """Send something; it must be made of plain Python objects or of this package's."""
        self._pipe.send((None, answer))

    def raise_there(self, error: Exception) -> None:
        """Have an error raised where the user can see it, as the kind of the package's errors that it is."""
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
        text = str(error) if kinds else f"{type(error).__name__}: {error}"
        self._pipe.send((kinds[0] if kinds else SplitKDError.__name__, text))

    def wait_for_end(self) -> None:
        """Return when the parent is done with this process, or is gone."""
        self._orderly.set()
        self._gone.wait()

    def _watch(self) -> None:
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            if not self._orderly.is_set():  # a model may take minutes to load, and nobody waits for it any more
                os._exit(1)
        self._gone.set()


def packed(serve: Callable[..., None], *arguments: Any, num_threads: int) -> bytes:
    """What a child is to do: a function of a module, whose first argument is a `Parent`, and its other arguments.

    Raises
    ------
    Exception
        Whatever objects raise that cannot be pickled.
    """
    return pickle.dumps((serve, arguments, num_threads))


@contextmanager
def beside(name: str, parcel: bytes) -> Iterator[Child]:
    """Run what was `packed` in a process for the ``with`` block.

    Parameters
    ----------
    name
        Who it is in errors, such as ``"The cloud"``.
    """
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    child = Child(name, ours, process)
    try:
        child.start(parcel)
        yield child
    finally:
        ours.close()  # the process ends when its pipe does
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """Do what the parent sends, then end at once: gRPC's threads have nothing left to do."""
    # Ctrl-C reaches the whole group; the parent decides when its child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    sys.path[:] = pipe.recv()
    parcel = pipe.recv_bytes()
    parent = Parent(pipe)
    try:
        serve, arguments, num_threads = pickle.loads(parcel)
        import torch

        torch.set_num_threads(num_threads)
        serve(parent, *arguments)
    except Exception as error:
        parent.raise_there(error)
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
