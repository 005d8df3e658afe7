"""An edge in a process of its own: `python edge_process.py JOB`, one JSON object a line on its output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cloud_runs
import torch

from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    one = cloud_runs.access(
        job["address"],
        job["edge"],
        Path(job["token_file"]).read_bytes().strip(),
        job["task"],
        root_certificate=Path(job["root_certificate"]).read_bytes(),
    )
    with cloud_runs.opened(one, pb.TASK_START_FRESH) as link:
        tell(opened=link.opened.next_step)
        sys.stdin.readline()  # so that edges begin together
        losses = [[loss for loss, _ in said] for said in cloud_runs.train(link, job["edge"], range(job["steps"]))]
        link.end_round("run", 1)
        tell(losses=losses, uplink_bytes=link.bytes[0])


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
