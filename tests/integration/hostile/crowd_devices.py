"""Devices of a crowd, good or bad, as threads of one torch-free process; see test_crowd.py.

Reads one line of JSON (address, tickets, what each device does), writes a line once all have begun, a line with how each
good one ended, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import grpc
from hostile_frames import hello

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.framing import Limits, to_frames
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

STEPS = 3
PATIENCE_S = 240.0
_METHOD = "/flwr_splitkd.wire.v1.DataPlane/Turn"
_over = threading.Event()


def good(address: str, ticket: Ticket) -> str:
    rng = random.Random(ticket.node_id)
    with connect(address, hello(ticket), timeout_s=60.0) as device:
        device.receive("Begin", PATIENCE_S)
        for step in range(STEPS):
            content = rng.randbytes(300_000)
            device.send(pb.Forward(step=step), {"smashed": _tensor(content)})
            if bytes(device.receive("Backward", 60).tensors["gradient"].payload) != content[::-1]:
                return "wrong bytes"
        device.send(pb.TurnDone(num_steps=STEPS))
        device.receive("TurnResult", 60)
    return "done"


# ---- the bad ones that have a ticket


def flood_before_the_turn(address: str, ticket: Ticket) -> None:
    _talk(
        address,
        ticket,
        _endless(lambda i: pb.UplinkFrame(sequence=i, gradient_norms=pb.GradientNorms(norms=[1.0] * 9_000))),
    )


def flood_within_the_turn(address: str, ticket: Ticket) -> None:
    def frames() -> Iterator[pb.UplinkFrame]:
        sequence = 0
        while not _over.is_set():
            content = bytes(500_000)
            for frame in to_frames(pb.UplinkFrame, pb.Forward(step=9), {"smashed": _tensor(content)}, Limits()):
                frame.sequence = sequence = sequence + 1
                yield frame

    _talk(address, ticket, frames(), after_begin=True)


def dribble(address: str, ticket: Ticket) -> None:
    def frames() -> Iterator[pb.UplinkFrame]:
        body = pb.Forward()
        body.tensors.add(
            name="smashed", dtype=pb.DTYPE_UINT8, shape=[9999], codec=pb.CODEC_NONE, total_bytes=9999, num_chunks=9999
        )
        yield pb.UplinkFrame(sequence=1, forward=body)
        for index in range(9999):
            if _over.wait(0.05):
                return
            chunk = pb.TensorChunk(index=index, data=b"\0", crc32=0xD202EF8D)
            yield pb.UplinkFrame(sequence=index + 2, chunks=[chunk])

    _talk(address, ticket, frames(), after_begin=True)


def silent_in_its_turn(address: str, ticket: Ticket) -> None:
    _talk(address, ticket, iter(()))


def takes_nothing(address: str, ticket: Ticket) -> None:
    _talk(address, ticket, iter(()), read=False)


def lies_about_acknowledgements(address: str, ticket: Ticket) -> None:
    _talk(address, ticket, iter([pb.UplinkFrame(sequence=1, acknowledged=1 << 40, gradient_norms=pb.GradientNorms())]))


def lies_when_it_resumes(address: str, ticket: Ticket) -> None:
    with _dialled(address) as turn:
        call = turn(_requests([pb.UplinkFrame(hello=hello(ticket))], iter(())))
        token = pb.DownlinkFrame.FromString(next(call)).welcome.resume_token
        resume = pb.Resume(protocol_version=1, session_id=ticket.session_id, token=token, received=999)
        _drain(turn(_requests([pb.UplinkFrame(resume=resume)], iter(()))))
        _over.wait()


def announces_a_tebibyte(address: str, ticket: Ticket) -> None:
    body, size = pb.Forward(), 1 << 40
    body.tensors.add(
        name="smashed", dtype=pb.DTYPE_UINT8, shape=[size], codec=pb.CODEC_NONE, total_bytes=size, num_chunks=1 << 20
    )
    _talk(address, ticket, iter([pb.UplinkFrame(sequence=1, forward=body)]), after_begin=True)


def replays_its_ticket(address: str, ticket: Ticket) -> None:
    """Is let in once, drops the stream, and then tries the same ticket again and again."""
    with _dialled(address) as turn:
        call = turn(_requests([pb.UplinkFrame(hello=hello(ticket))], iter(())))
        next(call)
        call.cancel()
        while not _over.wait(0.1):
            with contextlib.suppress(grpc.RpcError):
                answers = [
                    pb.DownlinkFrame.FromString(one)
                    for one in turn(_requests([pb.UplinkFrame(hello=hello(ticket))], iter(())))
                ]
                assert not any(answer.HasField("welcome") for answer in answers)


# ---- and those that have none


def tcp_and_no_more(address: str, _ticket: Ticket) -> None:
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as held:
        for _ in range(10):
            held.enter_context(socket.create_connection((host, int(port))))
        _over.wait()


def noise(address: str, ticket: Ticket) -> None:
    host, _, port = address.rpartition(":")
    rng = random.Random(ticket.node_id)
    while not _over.wait(0.05):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as end:
            end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * rng.randint(0, 1) + rng.randbytes(2_000))
            end.recv(1000)
        with _dialled(address) as turn:
            _drain(turn(iter([rng.randbytes(2_000)])))


def many_silent_streams(address: str, _ticket: Ticket) -> None:
    """As many as a connection takes, over many connections, and new ones when they are cut off."""
    with contextlib.ExitStack() as held:
        turns = [held.enter_context(_dialled(address)) for _ in range(10)]
        calls: list[tuple[int, grpc.Call]] = []
        while not _over.wait(0.1):
            calls = [(at, call) for at, call in calls if call.is_active()]
            for at, turn in enumerate(turns):
                for _ in range(4 - sum(one == at for one, _ in calls)):
                    calls.append((at, turn(_requests([], iter(())))))


BAD: dict[str, Callable[[str, Ticket], None]] = {
    function.__name__: function
    for function in (
        flood_before_the_turn,
        flood_within_the_turn,
        dribble,
        silent_in_its_turn,
        takes_nothing,
        lies_about_acknowledgements,
        lies_when_it_resumes,
        announces_a_tebibyte,
        replays_its_ticket,
        tcp_and_no_more,
        noise,
        many_silent_streams,
    )
}


# ---- how they talk


def _tensor(content: bytes) -> EncodedTensor:
    return EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)


@contextlib.contextmanager
def _dialled(address: str) -> Iterator[grpc.StreamStreamMultiCallable]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20)]
    with grpc.insecure_channel(address, options) as channel:
        yield channel.stream_stream(_METHOD)


def _endless(make: Callable[[int], pb.UplinkFrame]) -> Iterator[pb.UplinkFrame]:
    sequence = 1
    while not _over.is_set():
        yield make(sequence)
        sequence += 1


def _requests(
    first: list[pb.UplinkFrame], then: Iterator[pb.UplinkFrame], when: threading.Event | None = None
) -> Iterator[bytes]:
    for frame in first:
        yield frame.SerializeToString()
    if when is not None:
        when.wait(PATIENCE_S)
    for frame in then:
        yield frame.SerializeToString()
    _over.wait()


def _talk(
    address: str, ticket: Ticket, frames: Iterator[pb.UplinkFrame], *, after_begin: bool = False, read: bool = True
) -> None:
    begun = threading.Event() if after_begin else None
    with _dialled(address) as turn:
        call = turn(_requests([pb.UplinkFrame(hello=hello(ticket))], frames, begun))
        with contextlib.suppress(grpc.RpcError):
            next(call)
            for answer in call if read else ():
                if begun and pb.DownlinkFrame.FromString(answer).HasField("begin"):
                    begun.set()
        _over.wait()


def _drain(call: Iterator[bytes]) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass


def main() -> None:
    work = json.loads(sys.stdin.readline())
    ended: dict[str, str] = {}

    def take_part(name: str, what: str) -> None:
        session_id, token, node_id = work["tickets"][name]
        ticket = Ticket(
            session_id=session_id, token=bytes.fromhex(token), run_id=10, node_id=node_id, server_round=3, expires_s=0
        )
        try:
            ended[name] = good(work["address"], ticket) if what == "good" else str(BAD[what](work["address"], ticket))
        except SplitKDError as error:
            ended[name] = f"{type(error).__name__}: {error}"
        except grpc.RpcError as error:
            ended[name] = f"{type(error).__name__}: {error.code()}"

    threads = [threading.Thread(target=take_part, args=item, daemon=True) for item in work["devices"].items()]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    print("begun", flush=True)
    if "good" in work["devices"].values():
        for thread in threads:
            thread.join(PATIENCE_S)
        print(json.dumps({"ended": ended, "torch": "torch" in sys.modules}), flush=True)
    sys.stdin.readline()
    _over.set()
    time.sleep(0.5)
    print(json.dumps({"ended": ended, "torch": "torch" in sys.modules}), flush=True)
    os._exit(0)  # whatever a bad one is still busy with


if __name__ == "__main__":
    main()
