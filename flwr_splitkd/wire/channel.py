"""gRPC settings that both ends share. Torch-free."""

from __future__ import annotations

from flwr_splitkd.wire.framing import Limits

__all__ = ["channel_options"]

_KEEPALIVE_MS = 5_000
_KEEPALIVE_TIMEOUT_MS = 5_000
_HANDSHAKE_MS = 10_000
_STREAMS_OF_A_CONNECTION = 4


def channel_options(limits: Limits) -> list[tuple[str, int]]:
    """Frame sizes on purpose (gRPC's default refuses 4 MiB), and pings that notice a dead link in seconds."""
    return [
        ("grpc.max_send_message_length", limits.max_frame_bytes),
        ("grpc.max_receive_message_length", limits.max_frame_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        # Whoever connects and says nothing, or opens many streams at once, shall not hold the server up.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_concurrent_streams", _STREAMS_OF_A_CONNECTION),
        # A link opens its own next channel at once; gRPC's pause before it tries again is for those that do not.
        ("grpc.use_local_subchannel_pool", 1),
        # Two runs on one machine must not share a port by accident.
        ("grpc.so_reuseport", 0),
    ]
