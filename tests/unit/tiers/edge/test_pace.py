"""What a device's next turn is served with, by what its last one took."""

from __future__ import annotations

from typing import Any

import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.pipeline import FIRST_DEPTH
from flwr_splitkd.tiers.edge import TurnOutcome, TurnSettings
from flwr_splitkd.tiers.edge.pace import Pace, Paces


def outcome(**given: Any) -> TurnOutcome:
    """Ten micro-batches: a second on the device, 0.1 s on the edge, and what is given."""
    zeros: dict[str, Any] = dict.fromkeys(
        ("num_examples", "num_tokens", "loss", "cross_entropy", "kl_divergence", "num_correct", "num_resumed"), 0
    )
    zeros |= dict.fromkeys(
        ("first_forward_s", "uplink_bytes", "downlink_bytes", "uplink_s", "downlink_s", "fixed_s"), 0
    )
    zeros |= dict.fromkeys(("handover_bytes", "handover_downlink_bytes"), 0)
    payloads = {"uplink_payload_bytes": 100, "downlink_payload_bytes": 100}
    measured = {"num_batches": 10, "num_steps": 10, "device_s": 10.0, "edge_s": 1.0, "duration_s": 20.0}
    return TurnOutcome(cut=1, commit_id="", **{**zeros, **payloads, **measured, **given})


def test_a_first_turn_loses_nothing() -> None:
    settings = TurnSettings(num_microbatches=4, uplink_codec="auto", downlink_codec="auto")
    assert Paces(settings, 4).of("jetson") == Pace(FIRST_DEPTH, "none", "none")


def test_each_device_has_its_own() -> None:
    paces = Paces(TurnSettings(num_microbatches=8, uplink_codec="auto", downlink_codec="auto"), 4)
    paces.learn("far", outcome(uplink_s=300.0))
    paces.learn("near", outcome(uplink_s=0.1))
    assert paces.of("far").uplink_codec == "int8"
    assert paces.of("far").downlink_codec == "none"
    assert paces.of("near") == Pace(3, "none", "none")
    assert paces.of("new") == Pace(FIRST_DEPTH, "none", "none")
    assert paces.codecs == {"none", "bfloat16", "int8"}


def test_what_was_measured_with_a_codec_is_not_mistaken_for_the_whole() -> None:
    """A turn with int8 whose way takes a quarter of the time says the same of the link."""
    paces = Paces(TurnSettings(uplink_codec="auto"), 4)
    paces.learn("far", outcome(uplink_s=300.0))
    paces.learn("far", outcome(uplink_s=300.0 * 1.03125 / 4, uplink_codec="int8"))
    assert paces.of("far").uplink_codec == "int8"
    paces.learn("far", outcome(uplink_s=0.1, uplink_codec="int8"))  # it has come near
    assert paces.of("far").uplink_codec == "none"


def test_layers_that_changed_hands_are_not_counted_as_steps() -> None:
    paces = Paces(TurnSettings(uplink_codec="auto"), 4)
    handed = {"uplink_payload_bytes": 1000, "handover_bytes": 999}
    paces.learn("far", outcome(uplink_s=300.0, **handed))
    assert paces.of("far").uplink_codec == "none"


def test_what_the_settings_fix_is_left_alone() -> None:
    paces = Paces(TurnSettings(num_microbatches=8, pipeline_depth=5, uplink_codec="float16"), 4)
    paces.learn("far", outcome(uplink_s=300.0, uplink_codec="float16"))
    assert paces.of("far") == Pace(5, "float16", "none")
    assert paces.codecs == {"float16", "none"}


def test_a_turn_without_a_step_teaches_nothing() -> None:
    paces = Paces(TurnSettings(uplink_codec="auto"), 4)
    paces.learn("far", outcome(uplink_s=300.0))
    paces.learn("far", outcome(num_batches=0))
    assert paces.of("far").uplink_codec == "int8"


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match="'zip'"):
        TurnSettings(downlink_codec="zip")  # type: ignore[arg-type]
