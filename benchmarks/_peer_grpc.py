"""Split learning as somebody would write it in an afternoon: one gRPC stream, tensors as raw bytes, in lock-step.

No protocol file, no resuming, no checks, no TLS, no codec, no hand-over. Started by `_step_processes.workers` as ``edge``
and ``device``, in the same way as `_step_worker`.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import grpc
import torch
from _peer_halves import PlainDevice, PlainEdge
from _step_worker import TIMEOUT_S, Answer, Job, main, say
from torch import Tensor

METHOD = "/peer.Split/Train"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Put names, types and shapes before the tensors' bytes."""
    described = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()]
    header = json.dumps(described).encode()
    return b"".join(
        [struct.pack("<I", len(header)), header, *(memoryview(t.contiguous().numpy()) for t in tensors.values())]
    )


def unpack(message: bytes) -> dict[str, Tensor]:
    """Undo `pack`."""
    writable = bytearray(message)
    (offset,) = struct.unpack_from("<I", writable)
    described, offset = json.loads(writable[4 : 4 + offset]), 4 + offset
    tensors = {}
    for name, dtype, shape in described:
        flat = torch.frombuffer(writable, dtype=getattr(torch, dtype), offset=offset, count=torch.Size(shape).numel())
        tensors[name], offset = flat.view(shape), offset + flat.nbytes
    return tensors


def run_edge(job: Job, folder: Path) -> Answer:
    """Serve one device."""
    edge, done = PlainEdge(job["cut"]), threading.Event()

    def train(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            yield pack({"gradient": edge.gradient(unpack(message))})
            edge.update()  # gRPC asks for the next answer at once, so the device computes meanwhile
        done.set()

    server = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
    method, service = grpc.stream_stream_rpc_method_handler(train), METHOD.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Train": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(address=f"127.0.0.1:{port}")
    if not done.wait(TIMEOUT_S):
        raise RuntimeError(f"The device has not finished after {TIMEOUT_S:g} s.")
    server.stop(TIMEOUT_S).wait()  # not at once, which would cut off the stream's own end
    return {"losses": edge.losses}


def run_device(job: Job, folder: Path) -> Answer:
    """Send a batch, wait for its gradient, and again."""
    device = PlainDevice(job["cut"], job["steps"], job["batch_size"])
    outbox: SimpleQueue[bytes | None] = SimpleQueue()
    starts_s = []
    with grpc.insecure_channel(job["address"], options=OPTIONS) as channel:
        answers = channel.stream_stream(METHOD)(iter(outbox.get, None))
        for _ in range(job["steps"]):
            message = device.forward()
            starts_s.append(time.perf_counter())
            outbox.put(pack(message))
            device.backward(unpack(next(answers))["gradient"])
        outbox.put(None)
        next(answers, None)  # the edge has seen the end
    return {"starts_s": starts_s}


if __name__ == "__main__":
    main({"edge": run_edge, "device": run_device})
