"""Errors to Failure messages and back, so that both sides of a stream raise the same kind."""

from __future__ import annotations

from flwr_splitkd.errors import (
    DataError,
    HandshakeError,
    NonFiniteError,
    PeerLostError,
    ProtocolError,
    SplitKDError,
)
from flwr_splitkd.wire.handshake import Refusal
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["error_from", "failure_from"]

_MAX_TEXT = 2000
"""Characters of a peer's message that are kept: enough for a reason, too few to flood a log."""

_ERRORS: dict[int, type[SplitKDError]] = {
    pb.FAILURE_CODE_PROTOCOL_VERSION: HandshakeError,
    pb.FAILURE_CODE_TOKEN: HandshakeError,
    pb.FAILURE_CODE_MODEL: HandshakeError,
    pb.FAILURE_CODE_CODEC: HandshakeError,
    pb.FAILURE_CODE_PROTOCOL: ProtocolError,
    pb.FAILURE_CODE_NON_FINITE: NonFiniteError,
    pb.FAILURE_CODE_DATA: DataError,
    pb.FAILURE_CODE_CANCELLED: PeerLostError,
}
_CODES: list[tuple[type[BaseException], pb.FailureCode]] = [
    (NonFiniteError, pb.FAILURE_CODE_NON_FINITE),
    (DataError, pb.FAILURE_CODE_DATA),
    (ProtocolError, pb.FAILURE_CODE_PROTOCOL),
    (PeerLostError, pb.FAILURE_CODE_CANCELLED),
    (KeyboardInterrupt, pb.FAILURE_CODE_CANCELLED),
]


def failure_from(error: BaseException) -> pb.Failure:
    """Describe an error of this side to the other one."""
    if isinstance(error, Refusal):
        return pb.Failure(code=error.code, message=str(error)[:_MAX_TEXT])
    code = next((code for kind, code in _CODES if isinstance(error, kind)), pb.FAILURE_CODE_INTERNAL)
    text = str(error) if isinstance(error, SplitKDError) else f"{type(error).__name__}: {error}"
    return pb.Failure(code=code, message=text[:_MAX_TEXT])


def error_from(failure: pb.Failure, peer: str) -> SplitKDError:
    """Turn the other side's Failure into the error to raise here."""
    kind = _ERRORS.get(failure.code, SplitKDError)
    return kind(f"{peer} reported: {failure.message[:_MAX_TEXT]}")
