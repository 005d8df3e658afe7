"""Kinds of errors: each error of the tree has one, and a word of its own where operators tell it apart."""

from __future__ import annotations

import pytest

from flwr_splitkd import errors
from flwr_splitkd.faults import FAULTS, OTHER, RESTARTED, RESUMED, fault_of
from flwr_splitkd.wire.handshake import Refusal
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.PeerLostError("it is gone"), "lost"),
        (errors.PeerTimeoutError("it says nothing"), "timeout"),
        (errors.NonFiniteError("NaN"), "non_finite"),
        (errors.NoDeviceError("it did not come"), "absent"),
        (errors.TensorError("too long"), "protocol"),
        (errors.CorruptFrameError("altered"), "corrupt"),
        (Refusal(pb.FAILURE_CODE_TOKEN, "another token"), "handshake"),
        (errors.UncuttableModelError("it shares"), "cut"),
        (errors.SplitKDError("something"), OTHER),
        (ZeroDivisionError(), OTHER),
    ],
)
def test_the_nearest_class_counts(error: BaseException, kind: str) -> None:
    assert fault_of(error) == kind


def test_every_error_has_a_kind_that_is_listed() -> None:
    kinds = {name: fault_of(getattr(errors, name)("why")) for name in errors.__all__}
    assert set(kinds.values()) == set(FAULTS)
    assert [name for name, kind in kinds.items() if kind == OTHER] == ["SplitKDError"]
    assert len(FAULTS) == len(set(FAULTS)) and not {RESUMED, RESTARTED} & set(FAULTS)


def test_a_silent_peer_is_also_a_lost_one() -> None:
    """Whoever caught the one before there was the other still does."""
    error = errors.PeerTimeoutError("it says nothing")
    assert isinstance(error, errors.PeerLostError) and isinstance(error, TimeoutError)
    assert isinstance(error, ConnectionError)
