"""What kind of fault an error is, in a word: for whoever counts faults rather than reads them."""

from __future__ import annotations

from flwr_splitkd.errors import (
    ClockError,
    ConfigError,
    CorruptFrameError,
    CutError,
    DataError,
    HandshakeError,
    InfeasibleError,
    NoDeviceError,
    NonFiniteError,
    PeerLostError,
    PeerTimeoutError,
    ProtocolError,
    SplitKDError,
    StoreError,
)

__all__ = ["FAULTS", "OTHER", "RESTARTED", "RESUMED", "fault_of"]

RESUMED = "resumed"
"""A connection was lost and taken up again: no error."""
RESTARTED = "restarted"
"""A process came back in the place of another one: no error."""
OTHER = "other"

# The nearest class of an error's counts.
_KINDS: dict[type[BaseException], str] = {
    NoDeviceError: "absent",
    ClockError: "clock",
    ConfigError: "config",
    CorruptFrameError: "corrupt",
    CutError: "cut",
    DataError: "data",
    HandshakeError: "handshake",
    InfeasibleError: "infeasible",
    PeerLostError: "lost",
    NonFiniteError: "non_finite",
    ProtocolError: "protocol",
    StoreError: "store",
    PeerTimeoutError: "timeout",
    SplitKDError: OTHER,
}

FAULTS = (*sorted({*_KINDS.values()} - {OTHER}), OTHER)
"""Every word that `fault_of` has."""


def fault_of(error: BaseException) -> str:
    """The kind of an error, one of `FAULTS`."""
    return next((_KINDS[kind] for kind in type(error).__mro__ if kind in _KINDS), OTHER)
