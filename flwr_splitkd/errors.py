"""Every error that flwr_splitkd raises on purpose, in one tree.

::

    SplitKDError
    ├── ConfigError             a setting is unknown, mistyped or out of range (also a ValueError)
    ├── CutError                a cut layer is out of range or would break the model (also a ValueError)
    │   └── UncuttableModelError    this architecture cannot be cut at all
    ├── DataError               a data set or partition cannot be used
    ├── NonFiniteError          NaN or infinity in smashed data, a gradient or the loss
    ├── InfeasibleError         no cut meets the delay bound, the memory and the battery at once
    ├── NoDeviceError           no device can take part
    ├── StoreError              a checkpoint or cache file is missing, corrupt or cannot be written
    ├── ClockError              the clock of the edge's GPU cannot be set, or not be put back
    ├── PeerLostError           the other side of a stream is gone
    │   └── PeerTimeoutError        it is there, and silent or too slow (also a TimeoutError)
    └── ProtocolError           the other side broke the protocol
        ├── HandshakeError      refused before any tensor: version, token, model or codec
        ├── CorruptFrameError   bytes were altered on their way; the stream is opened anew
        └── TensorError         a tensor arrived truncated, oversized, duplicated or out of order

Every message gives the offending value, what was expected, and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "ClockError",
    "ConfigError",
    "CorruptFrameError",
    "CutError",
    "DataError",
    "HandshakeError",
    "InfeasibleError",
    "NoDeviceError",
    "NonFiniteError",
    "PeerLostError",
    "PeerTimeoutError",
    "ProtocolError",
    "SplitKDError",
    "StoreError",
    "TensorError",
    "UncuttableModelError",
]


class SplitKDError(Exception):
    """Base class of every error that flwr_splitkd raises on purpose."""


class ConfigError(SplitKDError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class CutError(SplitKDError, ValueError):
    """A cut layer is out of range, or cutting there would change the model."""


class UncuttableModelError(CutError):
    """The architecture shares state across layers in a way that no cut can respect."""


class DataError(SplitKDError, ValueError):
    """A data set or partition cannot be used for training or evaluation."""


class NonFiniteError(SplitKDError, ArithmeticError):
    """NaN or infinity appeared in smashed data, a gradient or the loss."""


class InfeasibleError(SplitKDError, ValueError):
    """No cut and clock meet every constraint of a turn; the message says what would."""


class NoDeviceError(SplitKDError, RuntimeError):
    """No device can take part in a round."""


class StoreError(SplitKDError, OSError):
    """A checkpoint or cache file is missing, corrupt or cannot be written."""


class ClockError(SplitKDError, OSError):
    """The clock of the edge's GPU cannot be set, or cannot be put back."""


class PeerLostError(SplitKDError, ConnectionError):
    """The other side of a stream is gone or has been silent for too long."""


class PeerTimeoutError(PeerLostError, TimeoutError):
    """The other side of a stream is connected, and has been silent or too slow for too long."""


class ProtocolError(SplitKDError):
    """The other side of a stream broke the protocol."""


class HandshakeError(ProtocolError):
    """A peer was refused before any tensor travelled."""


class CorruptFrameError(ProtocolError):
    """Bytes of a tensor are not those that the peer sent."""


class TensorError(ProtocolError):
    """A tensor arrived truncated, oversized, duplicated, reordered or of an unexpected kind."""
