"""A turn in a worker process that is started again when it dies: back in seconds, where Flower takes a minute to notice."""

from __future__ import annotations

import logging
import pickle
import signal
import subprocess
import sys
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

from flwr_splitkd.clients.job import Job, TurnFailed
from flwr_splitkd.errors import ConfigError, SplitKDError

if TYPE_CHECKING:
    from flwr_splitkd.tiers.device import TurnReport

__all__ = ["supervise"]

_log = logging.getLogger(__name__)

_PROGRAM = "from flwr_splitkd.clients.worker import main; main()"
"""Not ``-m``: as `__main__` the module's classes would be others than the supervisor's."""
_END_S = 5.0
"""Seconds that a worker which has answered gets to end by itself."""


def supervise(job: Job, *, max_restarts: int) -> TurnReport:
    """Take a turn in a worker process; start another one when it dies.

    Raises
    ------
    ConfigError
        If the job cannot be sent to another process.
    SplitKDError
        Why the turn came to nothing, or how the last worker died.
    """
    token = job.token
    for attempt in range(max_restarts + 1):
        answer, token, exit_code = _run(Job(job.client, job.ticket, job.identity, token), token)
        if isinstance(answer, TurnFailed):
            raise answer.to_error()
        if answer is not None:
            return answer
        if attempt < max_restarts:
            _log.warning("The worker %s; starting it again (%d of %d)", _death(exit_code), attempt + 1, max_restarts)
    raise SplitKDError(
        f"The worker {_death(exit_code)}, for the {max_restarts + 1}th time in this turn; expected at most `max_restarts` = "
        f"{max_restarts} times. Signal 9 is often the system's for want of memory: choose a lower cut or a smaller batch."
    )


def _run(job: Job, token: bytes) -> tuple[TurnReport | TurnFailed | None, bytes, int]:
    """Run one worker to its end: its answer if it gave one, the newest resume token, and how it ended."""
    parcel = _packed(job)
    ours, theirs = Pipe()
    with ours:
        with theirs:
            command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        try:
            answer: Any = None
            try:
                ours.send(sys.path)
                ours.send_bytes(parcel)
                while isinstance(message := ours.recv(), bytes):
                    token = message
                answer = message
            except (EOFError, OSError):  # it is dead, or about to be
                pass
            ours.close()
            return answer, token, process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return answer, token, process.wait()
        except BaseException:  # Ctrl-C, or Flower ending this process
            process.kill()
            process.wait()
            raise


def _packed(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:  # whatever the user's objects raise
        raise ConfigError(
            f"`max_restarts` needs a worker process, and what SplitKDClient was given cannot be sent to one: {error}. Expected a "
            "`student` and `teacher` that are functions of a module or functools.partial of these, and a `data` set without open "
            "files. Or leave `max_restarts` at 0."
        ) from error


def _death(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"ended with exit code {exit_code} and no answer"
