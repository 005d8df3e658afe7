"""Whether a service answers: ``healthcheck.py grpc|tcp HOST:PORT``; exit code 0 if it does, 1 with a line if it does not.

``grpc`` asks the health service that `flower-superlink` and `flower-supernode` have with ``--health-server-address``; ``tcp``
connects and leaves, for `flwr-splitkd cloud`, which has none. For images' HEALTHCHECK, and for whoever watches a machine.
"""

from __future__ import annotations

import socket
import sys

__all__ = ["main"]

_TIMEOUT_S = 4.0


def _ask(address: str) -> str:
    """What is wrong with a gRPC service; nothing if it serves."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{address} does not answer: {error.code().name}"
    serves = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serves else f"{address} says {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"


def _connect(address: str) -> str:
    """What is wrong with a port; nothing if somebody listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S).close()
    except OSError as error:
        return f"{address} does not answer: {error}"
    return ""


def main(arguments: list[str]) -> int:
    """Check, say what is wrong, and return the exit code."""
    checks = {"grpc": _ask, "tcp": _connect}
    if len(arguments) != 2 or arguments[0] not in checks or not arguments[1].rpartition(":")[2].isdecimal():
        print(__doc__.partition("\n")[0], file=sys.stderr)
        return 2
    if wrong := checks[arguments[0]](arguments[1]):
        print(wrong)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
