"""A tensor there and one of the same size back over gRPC on loopback: the product's links beside bare messages."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from torch import Tensor

from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import decode, encode, supported_codecs
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["bare_exchange", "our_exchange"]

_TIMEOUT_S = 120.0
_MODEL = pb.ModelFingerprint(architecture="none", num_blocks=2, dtype="float32", digest="none")
_METHOD = "/benchmark/Echo"


@contextmanager
def our_exchange(tensor: Tensor, codec: int) -> Iterator[Callable[[], Tensor]]:
    """Serve an edge that decodes a Forward's tensor and sends it back as a Backward's; yield the device's exchange."""
    server = DataPlaneServer()
    server.start(model=_MODEL, codecs=supported_codecs())
    ticket = new_ticket(run_id=1, node_id=2, server_round=1, expires_s=1e12)
    session = server.expect(ticket)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=ticket.session_id,
        token=ticket.token,
        run_id=1,
        node_id=2,
        server_round=1,
        student=_MODEL,
        codecs=supported_codecs(),
    )
    try:
        with connect(server.address, hello) as device:
            if session.link is None:
                raise RuntimeError("The device has not been let in.")
            edge = threading.Thread(target=_echo, args=(session.link, codec), daemon=True)
            edge.start()

            def exchange() -> Tensor:
                device.send(pb.Forward(), {"smashed": encode(tensor, codec)})
                return decode(device.receive("Backward", _TIMEOUT_S).tensors["gradient"])

            yield exchange
            device.send(pb.TurnDone())
            edge.join(_TIMEOUT_S)
            server.end(session)
    finally:
        server.stop()


def _echo(link: Link, codec: int) -> None:
    link.admit()
    while (message := link.receive("Forward|TurnDone", _TIMEOUT_S)).kind == "Forward":
        link.send(pb.Backward(), {"gradient": encode(decode(message.tensors["smashed"]), codec)})


@contextmanager
def bare_exchange(payload: bytes) -> Iterator[Callable[[], BytesValue]]:
    """Serve an echo of messages of one bytes field, each whole in one frame; yield the client's exchange."""
    options = [
        ("grpc.max_send_message_length", 2 * len(payload) + 1024),
        ("grpc.max_receive_message_length", 2 * len(payload) + 1024),
    ]
    handler = grpc.stream_stream_rpc_method_handler(
        lambda messages, _: (BytesValue(value=message.value) for message in messages),
        request_deserializer=BytesValue.FromString,
        response_serializer=BytesValue.SerializeToString,
    )
    pool = futures.ThreadPoolExecutor(2)
    server = grpc.server(pool, options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    outbox: queue.Queue[BytesValue | None] = queue.Queue()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = channel.stream_stream(
                _METHOD, request_serializer=BytesValue.SerializeToString, response_deserializer=BytesValue.FromString
            )(iter(outbox.get, None))

            def exchange() -> BytesValue:
                outbox.put(BytesValue(value=payload))
                answer: BytesValue = next(call)
                return answer

            yield exchange
            outbox.put(None)
    finally:
        server.stop(1.0).wait()
        pool.shutdown()
