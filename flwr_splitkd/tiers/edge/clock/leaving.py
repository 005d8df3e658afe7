"""A last call before this process ends, in every way that leaves time for one."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["before_leaving"]

_LOOK_S = 0.2
"""Seconds between two looks at the main thread."""


def before_leaving(last: Callable[[], None]) -> Callable[[], None]:
    """Have a function called when this process ends, also by SIGTERM if nobody else handles that; return what undoes it.

    Who handles SIGTERM already (Flower does) ends in an orderly way by it, and is left alone. From another thread than the main
    one a signal cannot be handled; there it is called as soon as the main one has ended, since Python waits for all others before
    it comes to ``atexit``, and who ended it (Flower, of a simulation) may not be that patient. A process that was forked from this
    one is not this one.
    """
    owner = os.getpid()
    undone = threading.Event()

    def call() -> None:
        if os.getpid() == owner:
            last()

    def on_signal(number: int, _: FrameType | None) -> None:
        try:
            call()
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # to end as it would have

    def watch() -> None:
        while threading.main_thread().is_alive():
            if undone.wait(_LOOK_S):
                return
        call()

    atexit.register(call)
    if _may_handle(signal.SIG_DFL):
        signal.signal(signal.SIGTERM, on_signal)
    if threading.current_thread() is not threading.main_thread():
        threading.Thread(target=watch, name="flwr-splitkd-leaving", daemon=True).start()

    def undo() -> None:
        undone.set()
        atexit.unregister(call)
        if _may_handle(on_signal):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return undo


def _may_handle(current: object) -> bool:
    """Whether this thread may say what becomes of SIGTERM, and nobody but `current` has done so."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is current
