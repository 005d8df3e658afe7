"""A last call before this process ends, in every way that leaves time for one."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["before_leaving"]


def before_leaving(last: Callable[[], None]) -> Callable[[], None]:
    """Have a function called when this process ends, also by SIGTERM if nobody else handles that; return what undoes it.

    Who handles SIGTERM already (Flower does) ends in an orderly way by it, and is left alone. From another thread than the main
    one a signal cannot be handled. A process that was forked from this one is not this one.
    """
    owner = os.getpid()

    def call() -> None:
        if os.getpid() == owner:
            last()

    def on_signal(number: int, _: FrameType | None) -> None:
        call()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # to end as it would have

    atexit.register(call)
    if _may_handle(signal.SIG_DFL):
        signal.signal(signal.SIGTERM, on_signal)

    def undo() -> None:
        atexit.unregister(call)
        if _may_handle(on_signal):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return undo


def _may_handle(current: object) -> bool:
    """Whether this thread may say what becomes of SIGTERM, and nobody but `current` has done so."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is current
