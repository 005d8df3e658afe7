"""Devices of a chain as processes, forked from one that has imported everything: real ones, there in no time.

`python chain_device.py SOCKET` listens on a Unix socket. Every connection is a process of its own, which says its id and
then takes part in a round for each line of JSON that it reads, and answers with a line.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from chain_parts import ENCODER_LORA, batches, first_weights, tiny_encoder
from torch import Tensor

from flwr_splitkd.models import build_skeleton, fingerprint, inner_model
from flwr_splitkd.split import find_layout
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.device.chain import OwnEncoder, run_round
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import encode, supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda smashed: smashed * float("nan"),
    "shape": lambda smashed: smashed[:, :, 1:],
    "batch": lambda smashed: smashed[1:],
    "dtype": lambda smashed: smashed.double(),
    "integers": lambda smashed: smashed.long(),
}


class SlowData:
    """Batches that take a while, each."""

    def __init__(self, made: list[dict[str, Tensor]], seconds: float) -> None:
        self._made, self._seconds = made, seconds

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._made:
            time.sleep(self._seconds)
            yield batch


def take_part(job: dict[str, Any]) -> dict[str, Any]:
    encoder, position = job["encoder"], job["position"]
    adapters = bool(job.get("adapters"))
    skeleton = inner_model(build_skeleton(lambda: tiny_encoder(encoder), ENCODER_LORA if adapters else None))
    layout = find_layout(skeleton)
    own = OwnEncoder(Path(job["folder"]), skeleton, layout, lambda: first_weights(encoder, position, adapters=adapters))
    went_back = own.begin(job.get("run", "run"), job["server_round"] + (not job["training"]))
    made = batches(position)
    if job.get("labels"):
        made[0]["labels"].fill_(job["labels"])
    data = DeviceData(SlowData(made, job["delay_s"]) if job.get("delay_s") else made)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=job["session_id"],
        token=bytes.fromhex(job["token"]),
        run_id=job["run_id"],
        node_id=job["node_id"],
        server_round=job["server_round"],
        device_name=f"d{position}",
        student=fingerprint_to_wire(fingerprint(skeleton, layout)),
        codecs=supported_codecs(),
        cached_units=[pb.UnitVersion(unit=u, version=v) for u, v in own.versions.items()],
        next_step=int(own.info["next_step"]),
    )
    with connect(job["address"], hello) as link:
        meddle(link, job)
        report = run_round(
            link,
            skeleton=skeleton,
            layout=layout,
            own=own,
            data=data,
            compute_device=torch.device("cpu"),
            begin_timeout_s=60,
            step_timeout_s=60,
            score=lambda answers, _: {"tokens": sum(map(len, answers)) / len(answers)},
            leave_when=lambda index: "low battery" if index == job.get("leave_at") else None,
        )
    over = report.over
    return {
        "went_back": went_back,
        "loss": over.loss,
        "reference_loss": over.reference_loss if over.HasField("reference_loss") else None,
        **{key: value for key, value in asdict(report).items() if key != "over"},
    }


def meddle(link: Link, job: dict[str, Any]) -> None:
    """Die, or send what is spoilt, at the message that the job names: ``[kind, step]``."""
    send = link.send

    def meddled(body: Any, tensors: Any = None) -> None:
        place = [body.DESCRIPTOR.name, getattr(body, "step", None)]
        if place == job.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if place == job.get("spoil_at"):
            how = job["how"]
            if how == "norms":
                body = pb.GradientNorms(step=body.step, norms=[float("nan")] * len(body.norms))
            elif how == "missing":
                tensors = {name: tensor for name, tensor in tensors.items() if name != "labels"}
            elif how == "labels":
                tensors = {**tensors, "labels": encode(torch.tensor(5))}
            elif how in SPOILT:
                smashed = torch.ones(3, 9, 32)
                tensors = {**tensors, "smashed": encode(SPOILT[how](smashed))}
        send(body, tensors)

    link.send = meddled  # type: ignore[method-assign]


def serve(line: socket.socket) -> None:
    said = line.makefile("rw")

    def say(answer: dict[str, Any]) -> None:
        said.write(json.dumps(answer) + "\n")
        said.flush()

    say({"pid": os.getpid()})
    for text in said:
        try:
            say(take_part(json.loads(text)))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


def main(path: str) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    serve(line)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            line.close()


if __name__ == "__main__":
    main(sys.argv[1])
