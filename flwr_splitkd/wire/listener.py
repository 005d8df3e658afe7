"""A gRPC server of bidirectional streams: port, TLS, threads, and who holds a place. Torch-free.

What a stream's first message must be is for whoever made the server: the edge (`flwr_splitkd.wire.server`) or the cloud
(`flwr_splitkd.wire.cloud_server`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass

import grpc

from flwr_splitkd.errors import ConfigError, CorruptFrameError, SplitKDError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.wire import handshake
from flwr_splitkd.wire.address import ListenAddress, address_to_dial, is_loopback, parse_listen_address
from flwr_splitkd.wire.channel import channel_options
from flwr_splitkd.wire.chunk_frame import ChunkFrame, serialize_frame
from flwr_splitkd.wire.credentials import ResumeTokens, TlsFiles
from flwr_splitkd.wire.framing import Limits, WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.places import Places
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.tally import Tally
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Admission", "Service", "StreamServer", "resume_link"]

_STOP_GRACE_S = 2.0
_SWEEP_S = 1.0

Admission = Callable[[Stream, WireMessage], Callable[[], None]]
"""Judges a stream's first message, answers it, and attaches the stream to a link.

What it returns is called when the other side has said something more: then it has the token that came with the answer.
It raises a SplitKDError to refuse.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Which of the proto's services a server offers, and what it calls those who come.

    Parameters
    ----------
    name, method
        As in the proto.
    peer
        A stream's other side before it has said who it is.
    """

    name: str
    method: str
    peer: str


class StreamServer:
    """Listens, and hands each stream's first message to `admit`.

    Parameters
    ----------
    service
        What is offered.
    admit
        See `Admission`.
    data_address, advertised_address, tls, insecure, max_streams, handshake_timeout_s, limits
        As in `DataPlaneServer`.

    Raises
    ------
    ConfigError
        If the address is malformed or taken, or plaintext would leave this machine unasked.

    Attributes
    ----------
    tally
        What the streams have carried, and what went wrong with them.
    """

    def __init__(
        self,
        service: Service,
        admit: Admission,
        *,
        data_address: str,
        advertised_address: str | None,
        tls: TlsFiles | None,
        insecure: bool,
        max_streams: int,
        handshake_timeout_s: float,
        limits: Limits,
    ) -> None:
        listen = parse_listen_address(data_address)
        if tls is None and not insecure and not is_loopback(listen.host):
            raise ConfigError(
                f"`data_address` is {data_address!r} without TLS; expected certificate files (`tls`) where traffic "
                "leaves this machine. Pass `insecure=True` to send activations and weights in the clear."
            )
        self._peer, self._admit, self._limits = service.peer, admit, limits
        self.tally = Tally()
        self._handshake_timeout_s = handshake_timeout_s
        self._places = Places(max_streams)
        self._started, self._stopped = False, threading.Event()
        self._pool = futures.ThreadPoolExecutor(max_streams, thread_name_prefix="splitkd-data-plane")
        self._server = grpc.server(
            self._pool,
            options=channel_options(self._limits),
            maximum_concurrent_rpcs=max_streams,
        )
        # Not the generated service: it parses on gRPC's own thread, whatever the size, and logs what is no frame.
        method = grpc.stream_stream_rpc_method_handler(self._serve, response_serializer=serialize_frame)
        full_name = pb.DESCRIPTOR.services_by_name[service.name].full_name
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(full_name, {service.method: method}),)
        )
        port = self._bind(listen, tls)
        self.address = address_to_dial(advertised_address, listen, port)
        self.root_certificate = tls.root() if tls else b""

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._places)

    def start(self) -> None:
        """Begin to admit streams."""
        self._started = True
        self._server.start()
        threading.Thread(target=self._sweep, name="splitkd-sweeper", daemon=True).start()

    def stop(self) -> None:
        """Close every stream and the port, and end the threads."""
        if not self._started:  # gRPC (1.85) would keep the port
            self._started = True
            self._server.start()
        # Not without a bound: after bytes that are no frame, gRPC (1.85) sometimes never calls a server stopped.
        self._server.stop(_STOP_GRACE_S).wait(2 * _STOP_GRACE_S)
        self._stopped.set()
        self._pool.shutdown(wait=False)  # gRPC leaves that to whoever made the pool

    def _bind(self, listen: ListenAddress, tls: TlsFiles | None) -> int:
        for port in listen.ports:
            try:
                if tls is None:
                    bound = self._server.add_insecure_port(listen.join(port))
                else:
                    bound = self._server.add_secure_port(listen.join(port), tls.server_credentials())
            except RuntimeError:  # gRPC's word for a port that is taken
                continue
            if bound:
                return int(bound)
        raise ConfigError(
            f"`data_address` is {listen.host} with the ports {listen.ports[0]}-{listen.ports[-1]}; none can be bound. "
            "Choose a free port, a range such as 9095-9105, or 0; check that the host is this machine's"
            + (", and that certificate and private key are PEM files of one pair." if tls else ".")
        )

    # ---- gRPC's threads

    def _serve(
        self, serialized: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[pb.DownlinkFrame | ChunkFrame]:
        stream = Stream(pb.DownlinkFrame, peer=self._peer, limits=self._limits, tally=self.tally)
        self._places.take(stream, context.cancel)
        # Called when the stream ends in any way; without it a vanished peer would hold this thread forever.
        if not context.add_callback(lambda: self._leave(stream)):
            return self._leave(stream)
        threading.Thread(
            target=self._read, args=(stream, stream.parsed(serialized)), name="splitkd-reader", daemon=True
        ).start()
        yield from stream.outgoing(self._handshake_timeout_s)
        if stream.corrupt:  # otherwise the other side would take the stream's end for an answer
            self.tally.fault(fault_of(stream.corrupt))
            context.abort(grpc.StatusCode.DATA_LOSS, str(stream.corrupt))
        if stream.displaced:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{stream.peer} said nothing, and another one needed its place"
            )

    def _leave(self, stream: Stream) -> None:
        self._places.leave(stream)
        stream.end("its connection dropped")

    def _sweep(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self._places.sweep(time.monotonic())

    def _read(self, stream: Stream, frames: Iterator[pb.UplinkFrame | ChunkFrame]) -> None:
        try:
            settle = self._admit(stream, stream.first(frames))
            stream.carry(_noticed(frames, settle))
        except CorruptFrameError as error:
            stream.corrupt = error
            stream.end(str(error))
        except SplitKDError as error:
            stream.refuse(error)
        except grpc.RpcError:
            stream.end("its connection dropped")


def resume_link(stream: Stream, resume: pb.Resume, link: Link | None, tokens: ResumeTokens) -> bytes:
    """Attach a stream that goes on with a link; return the token that opens the next one.

    Raises
    ------
    Refusal
        If the token opens nothing, or the link is over.
    """
    if link is None or not tokens.opened_by(resume.token):
        raise handshake.wrong_token(resume.session_id)
    if link.closed and (link.done or link.error):
        raise handshake.given_up(link.error)
    resumed = pb.Resumed(received=link.received, resume_token=tokens.renew())
    stream.attach(link, resume.received, answer=resumed)
    return resumed.resume_token


def _noticed(
    frames: Iterator[pb.UplinkFrame | ChunkFrame], notice: Callable[[], None]
) -> Iterator[pb.UplinkFrame | ChunkFrame]:
    """The same frames; `notice` is called with the first one."""
    for position, frame in enumerate(frames):
        if position == 0:
            notice()
        yield frame
