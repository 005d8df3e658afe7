"""The same split step as a job of NVFlare's Collab API: the server holds the edge's half, one client the device's.

NVFlare copies this file to its job processes; what it imports comes from PYTHONPATH. The server takes the commands of
`_peer_nvflare.Deployment` from one named pipe and answers in another, so that one deployment serves all pairs.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from _peer_halves import PlainDevice, PlainEdge
from nvflare.collab import collab
from torch import Tensor

TIMEOUT_S = 300.0
_devices: dict[str, PlainDevice] = {}


@collab.init
def place() -> None:
    """Give this process its threads and its core."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    core = collab.get_app_prop("core")
    if core is not None:
        # Threads that there are already keep their own; later ones inherit from the thread that starts them.
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})


@collab.publish
def begin(cut: int, steps: int, batch_size: int) -> int:
    """Build the device's half; return how many threads it computes with."""
    _devices["device"] = PlainDevice(cut, steps, batch_size)
    return torch.get_num_threads()


@collab.publish
def forward() -> dict[str, Tensor]:
    """Return all that the server needs of the next batch: one call may return several tensors."""
    return _devices["device"].forward()


@collab.publish
def backward(gradient: Tensor) -> None:
    """Apply the gradient at the cut."""
    _devices["device"].backward(gradient)


@collab.publish
def backward_and_forward(gradient: Tensor) -> dict[str, Tensor]:
    """Both in one call, which spares a round trip."""
    backward(gradient)
    return forward()


@collab.main
def serve() -> str:
    """Take steps whenever the benchmark asks for them."""
    folder = Path(collab.get_app_prop("folder"))
    with (folder / "jobs").open() as jobs, (folder / "answers").open("w") as answers:
        for line in jobs:
            print(json.dumps(_run(json.loads(line))), file=answers, flush=True)
    return "done"


def _run(job: dict[str, Any]) -> dict[str, Any]:
    device, steps = collab.clients[0](timeout=TIMEOUT_S), job["steps"]
    threads = [torch.get_num_threads(), device.begin(job["cut"], steps, job["batch_size"])]
    edge = PlainEdge(job["cut"])
    starts_s = []
    message = device.forward()
    for step in range(steps):
        starts_s.append(time.perf_counter())
        gradient = edge.gradient(message)
        last = step + 1 == steps
        if job["calls"] == 1 and not last:
            # Not waited for, so that the optimiser works here while the device does.
            results = collab.clients(blocking=False, timeout=TIMEOUT_S).backward_and_forward(gradient)
            edge.update()
            ((_, message),) = list(results)
        else:
            device.backward(gradient)
            edge.update()
            if not last:
                message = device.forward()
    return {"starts_s": starts_s, "losses": edge.losses, "threads": threads}
