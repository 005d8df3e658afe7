"""Processes of a run without Flower, forked from one that has imported everything: real ones, there in no time.

`python zygote.py SOCKET NAME=MODULE ...` listens on a Unix socket for one JSON line a process: what to run (one of the names,
for its module's ``main``), its job, and where its output goes. It answers with the process's id.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["fork", "lives"]


def fork(zygote: str, what: str, job: dict[str, Any], log: Path) -> int:
    """Have a process started; return its id."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(zygote)
        line.sendall(json.dumps({"what": what, "job": job, "log": str(log)}).encode() + b"\n")
        return int(line.makefile().readline())


def lives(zygote: str, pid: int) -> bool:
    """Whether a process that was started is there, with its port and all; its number may belong to somebody else by now.

    One that ends gives up its memory, and with it its command line, before its sockets. It is gone from ``/proc`` once its last
    thread has ended, since the zygote waits for nobody.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return not command or zygote.encode() in command.split(b"\0")


def _serve(path: str, names: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    modules = dict(name.split("=") for name in names)
    mains = {name: importlib.import_module(module).main for name, module in modules.items()}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            line, _ = listener.accept()
            with line, contextlib.suppress(OSError):  # whoever asked may be dead by now
                order = json.loads(line.makefile().readline())
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    _become(mains[order["what"]], order)
                line.sendall(f"{pid}\n".encode())


def _become(main: Any, order: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with Path(order["log"]).open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        main(order["job"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
