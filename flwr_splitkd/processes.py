"""Divided work on all cores, in processes that end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

__all__ = ["worker_processes"]


@contextmanager
def worker_processes(initializer: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Open a process for each core.

    If the block is left by an error, by Ctrl-C or by SIGTERM, they are ended at once. An executor by itself would wait for what it
    has begun; a caller that SIGTERM ended would leave them behind.

    Parameters
    ----------
    initializer
        Called in each of them before anything else.
    """
    others = set(multiprocessing.active_children())
    with _sigterm_is_an_exit():
        pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), initializer)
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()


@contextmanager
def _sigterm_is_an_exit() -> Iterator[None]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # somebody else sees to it
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
