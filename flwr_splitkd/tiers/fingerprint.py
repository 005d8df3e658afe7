"""A model's fingerprint as both sides put it into the handshake."""

from __future__ import annotations

from flwr_splitkd.models import Fingerprint
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["fingerprint_to_wire"]


def fingerprint_to_wire(fingerprint: Fingerprint) -> pb.ModelFingerprint:
    """Copy a fingerprint into the message of a Hello."""
    return pb.ModelFingerprint(
        architecture=fingerprint.architecture,
        num_blocks=fingerprint.num_blocks,
        hidden_size=fingerprint.hidden_size,
        vocab_size=fingerprint.vocab_size,
        dtype=fingerprint.dtype,
        digest=fingerprint.digest,
    )
