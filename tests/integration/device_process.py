"""A device without Flower, for tests: reads one JSON ticket a line from stdin, takes a turn for each, answers on stdout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from tiny_models import MODELS, batches

from flwr_splitkd.models import build_skeleton, fingerprint, inner_model
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device import DeviceData, run_turn
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


def take_turn(ticket: dict[str, object], device: int, cache: DeviceCache) -> dict[str, object]:
    student, _ = MODELS[str(ticket["model"])]
    model = inner_model(build_skeleton(student))
    layout = find_layout(model)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=ticket["session_id"],
        token=bytes.fromhex(str(ticket["token"])),
        run_id=ticket["run_id"],
        node_id=device,
        server_round=1,
        device_name=f"process-{device}",
        num_batches=int(str(ticket["batches"])),
        student=fingerprint_to_wire(fingerprint(model, layout)),
        codecs=supported_codecs(),
        cached_units=[pb.UnitVersion(unit=u, version=v) for u, v in cache.versions().items()],
    )
    with connect(str(ticket["address"]), hello) as link:
        report = run_turn(
            link,
            model=model,
            layout=layout,
            data=DeviceData(batches(device, int(str(ticket["batches"])))),
            cache=cache,
            compute_device=torch.device("cpu"),
            begin_timeout_s=60,
            step_timeout_s=60,
        )
    return {"pid": os.getpid(), "steps": report.num_steps, "loss": report.result.loss}


def main() -> None:
    torch.set_num_threads(1)
    device = int(sys.argv[1])
    print(json.dumps({"pid": os.getpid()}), flush=True)
    caches: dict[str, DeviceCache] = {}
    for line in sys.stdin:
        ticket = json.loads(line)
        folder = ticket["cache"]
        if folder not in caches:
            caches[folder] = DeviceCache(Path(folder))
        print(json.dumps(take_turn(ticket, device, caches[folder])), flush=True)


if __name__ == "__main__":
    main()
