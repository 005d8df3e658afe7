"""A process whose memory is measured: ``device`` takes one turn, ``whole`` trains the whole model, ``edge`` serves a turn for real.

Started by `device_memory.py`, one fresh process a measurement. It prints what it holds after its imports, reads one JSON job from
stdin and answers with one JSON line; the edge answers twice, first with a ticket. Peaks are the kernel's own ``VmHWM``, which is
set back at the end of each phase of the turn, so that each phase has a peak of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _memory_models import batches, build_student, build_teacher

from flwr_splitkd import SplitKDClient
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.models import build_skeleton, fingerprint
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device import DeviceData, run_turn
from flwr_splitkd.tiers.edge import EdgeSetup, TurnSettings
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

_IMPORTED_BY_EVERY_DEVICE = SplitKDClient  # and Flower with it

Job = Mapping[str, Any]
Answer = dict[str, Any]

RUN_ID, NODE_ID = 1, 2
TIMEOUT_S = 3600.0


class Peaks:
    """Peak resident memory of one phase after the other, in bytes."""

    def __init__(self) -> None:
        self.by_phase: dict[str, int] = {}

    def end(self, phase: str) -> None:
        """Note the peak since the last call, and begin anew."""
        self.by_phase[phase] = max(self.by_phase.get(phase, 0), memory("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS


def memory(field: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; expected a Linux kernel.")


def _batches(job: Job, model: Any) -> list[dict[str, torch.Tensor]]:
    return batches(job["steps"], job["batch_size"], job["sequence_length"], model.config.vocab_size)


def run_device(job: Job, folder: Path) -> Answer:
    """Take one turn."""
    model = build_skeleton(partial(build_student, name=job["student"]) if "student" in job else build_student)
    layout = find_layout(model)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=job.get("session_id", ""),
        token=bytes.fromhex(job.get("token", "")),
        run_id=RUN_ID,
        node_id=NODE_ID,
        server_round=1,
        student=fingerprint_to_wire(fingerprint(model, layout)),
        codecs=supported_codecs(),
    )
    data = DeviceData(_batches(job, model))
    peaks = Peaks()
    with connect(job["address"], hello) as link:
        send = link.send

        def noted(body: Any, tensors: Any = None) -> None:
            if isinstance(body, pb.Forward) and (body.step, body.microbatch) == (0, 0):
                # The first forward pass belongs to the steps, but has no gradients yet and is no peak of either.
                peaks.end("begin")
            elif isinstance(body, pb.TurnDone):
                peaks.end("steps")
            send(body, tensors)

        link.send = noted  # type: ignore[method-assign]
        report = run_turn(
            link,
            model=model,
            layout=layout,
            data=data,
            cache=DeviceCache(folder),
            compute_device=torch.device("cpu"),
            begin_timeout_s=TIMEOUT_S,
            step_timeout_s=TIMEOUT_S,
        )
        peaks.end("end")
    return {"peaks": peaks.by_phase, "steps": report.num_steps}


def run_edge(job: Job, folder: Path) -> Answer:
    """Serve one turn for real. What is above the cut does not train, so that two processes fit into one machine."""

    def student() -> torch.nn.Module:
        model = build_student()
        for block in model.model.layers[job["cut"] :]:  # type: ignore[union-attr, index]
            block.requires_grad_(False)
        return model

    setup = EdgeSetup(
        student=student,
        teacher=build_teacher,
        loss=DistillationLoss(temperature=2.0, kd_ratio=0.5),
        task="causal-lm",
        tied_embeddings="freeze",
        train_embeddings=False,
        blocks=(),
        optimizer=OptimizerSettings(),
        optimizer_handover="full",
        turn=TurnSettings(step_timeout_s=TIMEOUT_S),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device("cpu"),
    )
    edge = setup.open(setup.build_student(), folder, ticket_lifetime_s=TIMEOUT_S)
    try:
        session = edge.expect(run_id=RUN_ID, node_id=NODE_ID, server_round=1)
        ticket = session.ticket
        say(address=edge.server.address, session_id=ticket.session_id, token=ticket.token.hex())
        with edge.server.changed:
            edge.server.changed.wait_for(lambda: session.connected, TIMEOUT_S)
        outcome = edge.serve(session, mode="train", cut=job["cut"], local_epochs=1, info={})
    finally:
        edge.close()
    return {"peaks": {"turn": memory("VmHWM")}, "steps": outcome.num_steps, "loss": outcome.loss}


def run_whole(job: Job, folder: Path) -> Answer:
    """Train the whole model on the same batches, unsplit, without a teacher."""
    model = build_student(job["blocks"]).train()
    peaks = Peaks()
    peaks.end("build")
    optimizer = OptimizerSettings().build(p for p in model.parameters() if p.requires_grad)
    for batch in _batches(job, model):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peaks.end("steps")
    return {"peaks": peaks.by_phase, "steps": job["steps"]}


ROLES: dict[str, Callable[[Job, Path], Answer]] = {"device": run_device, "edge": run_edge, "whole": run_whole}


def say(**answer: Any) -> None:
    """Print one JSON line for the parent."""
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Take one job."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    say(base=memory("VmRSS"), torch=torch.__version__)
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        say(**ROLES[sys.argv[1]](json.loads(sys.stdin.readline()), Path(folder)))


if __name__ == "__main__":
    main()
