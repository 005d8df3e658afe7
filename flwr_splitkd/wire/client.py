"""The device's end of the data plane: dial, shake hands, and hold a link for one turn. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from flwr_splitkd.errors import PeerLostError
from flwr_splitkd.wire.channel import channel_options
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb
from flwr_splitkd.wire.v1 import dataplane_pb2_grpc as pb_grpc

__all__ = ["connect"]

_DRAIN_S = 5.0
"""Seconds that the last queued frames have to leave before the channel closes."""


@contextmanager
def connect(
    address: str,
    hello: pb.Hello,
    *,
    root_certificate: bytes = b"",
    timeout_s: float = 20.0,
    limits: Limits | None = None,
) -> Iterator[Link]:
    """Open a stream to the edge and shake hands; the link is closed at the end of the ``with`` block.

    Parameters
    ----------
    address
        ``host:port`` of the edge.
    hello
        What this device says of itself.
    root_certificate
        PEM of the authority that signed the edge's certificate; plaintext when empty.
    timeout_s
        Seconds for the connection and for the handshake, each.

    Raises
    ------
    PeerLostError
        If the edge cannot be reached.
    HandshakeError
        If the edge refuses this device; the message says why.
    """
    limits = limits or Limits()
    options = channel_options(limits)
    if root_certificate:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificate), options)
    else:
        channel = grpc.insecure_channel(address, options)
    link = Link(pb.DeviceFrame, peer=f"the edge at {address}", limits=limits)
    reader: threading.Thread | None = None
    try:
        _wait_ready(channel, address, timeout_s)
        responses = pb_grpc.DataPlaneStub(channel).Turn(link.outgoing())
        reader = threading.Thread(target=_read, args=(link, responses), name="splitkd-reader", daemon=True)
        reader.start()
        link.send(hello)
        link.receive("Welcome", timeout_s)
        yield link
    except BaseException as error:
        link.fail(error)
        raise
    finally:
        link.close()
        if reader is not None:
            reader.join(_DRAIN_S)
        channel.close()


def _wait_ready(channel: grpc.Channel, address: str, timeout_s: float) -> None:
    try:
        grpc.channel_ready_future(channel).result(timeout_s)
    except grpc.FutureTimeoutError:
        raise PeerLostError(
            f"The edge's data plane at {address} did not answer for {timeout_s:g} s. Check that this address is "
            "reachable from the device (`advertised_address`, firewall), and that its certificate names this host and is "
            "signed by the root certificate that the edge was given (`tls`)."
        ) from None


def _read(link: Link, responses: Iterator[pb.EdgeFrame]) -> None:
    try:
        link.incoming(responses)
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, grpc.Call) else "unknown"
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        link.lost(f"{code}: {details}")
